"""What people read of leaks, and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import yaml

from pytest_infserver.launcher.leaks.report import LeakReport, as_text, from_message, is_allowed, judged
from pytest_infserver.launcher.profiling.profilers.nsys import Nsys
from pytest_infserver.leak_finding import Finding

NOTHING: frozenset[str] = frozenset()
COMMAND = "python worker.py --rank 1"
PROCESS = Finding("process", COMMAND, "in a session of its own, did not end", 7, COMMAND, 12.4, removed=True)
PORT = Finding("port", "127.0.0.1:8001", "", 7, COMMAND, 12.4, removed=True)
SHM = Finding("shm", "/dev/shm/cache", "4 KiB", 8, "python other.py", 0.3, removed=True)
SEMAPHORE = Finding("semaphore", "/dev/shm/sem.mp-1", "32 bytes", 8, "python other.py", 3.0, removed=True)
SYSV = Finding("sysv", "shmid 5", "10 bytes", 9, "", 3.0, removed=True)
SOCKET = Finding("socket", "/tmp/x/s", "", None, "", 3.0, removed=True)
FILE = Finding("file", "/tmp/infs-1/a.txt", "in the server's TMPDIR", age=3.0, removed=True)
GPU = Finding("gpu", "GPU 0 (NVIDIA H200)", "512 MiB still held 10 s after the end", 7, COMMAND)
UNKNOWN = Finding("shm", "/dev/shm/whose", "6 bytes, holder unknown, left alone", age=2.0, fails=False)


def lines(*findings: Finding) -> list[str]:
    return as_text("vllm", findings).splitlines()


def test_whole_text() -> None:
    head, *rest = lines(UNKNOWN, PROCESS, PORT, SHM, SEMAPHORE, SYSV, SOCKET, FILE, GPU)
    assert head.startswith("vllm left behind 2 shared memory objects, a process, a listening port, a semaphore, ")
    assert head.endswith(" a SysV segment, a unix socket, a temporary file and memory of a GPU:")
    assert rest == [
        "  process   pid 7, in a session of its own, did not end, 12 s old; killed",
        "            python worker.py --rank 1",
        "  port      127.0.0.1:8001, 12 s old, held by pid 7; closed",
        "  shm       /dev/shm/cache, 4 KiB, less than 1 s old, held by pid 8; removed",
        "            python other.py",
        "  semaphore /dev/shm/sem.mp-1, 32 bytes, 3 s old, held by pid 8; removed",
        "  sysv      shmid 5, 10 bytes, 3 s old, held by pid 9; removed",
        "  socket    /tmp/x/s, 3 s old; removed",
        "  file      /tmp/infs-1/a.txt, in the server's TMPDIR, 3 s old; removed",
        "  gpu       GPU 0 (NVIDIA H200), 512 MiB still held 10 s after the end, held by pid 7",
        "  warning: shm       /dev/shm/whose, 6 bytes, holder unknown, left alone, 2 s old",
        '  What to do: let it clean up, or accept what you know of: allow_leaks: ["shm:cache"]',
    ]


def test_many_warnings_of_a_kind_are_one_line_more() -> None:
    others = [UNKNOWN._replace(name=f"/dev/shm/{number}") for number in range(3)]
    text = lines(UNKNOWN, *others, SEMAPHORE._replace(fails=False))
    assert text[0] == "vllm left behind 4 shared memory objects and a semaphore:"
    assert text[1].startswith("  shm       /dev/shm/whose, ")
    assert text[2] == "            and 3 more shared memory objects"
    assert text[3].startswith("  semaphore ")


def test_warnings_alone_give_no_advice() -> None:
    assert lines(UNKNOWN) == [
        "vllm left behind a shared memory object:",
        "  shm       /dev/shm/whose, 6 bytes, holder unknown, left alone, 2 s old",
    ]


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        ([PROCESS], "a process"),
        ([PROCESS, PROCESS], "2 processes"),
        ([PORT, PORT], "2 listening ports"),
        ([SHM, SHM, SEMAPHORE], "2 shared memory objects and a semaphore"),
        ([SEMAPHORE, SEMAPHORE, SYSV, SYSV], "2 semaphores and 2 SysV segments"),
        ([SOCKET, SOCKET, FILE, FILE, FILE], "2 unix sockets and 3 temporary files"),
        ([GPU, GPU, FILE, PORT], "2 GPUs' memory, a temporary file and a listening port"),
    ],
)
def test_summary(findings: Sequence[Finding], words: str) -> None:
    assert lines(*findings)[0] == f"vllm left behind {words}:"


@pytest.mark.parametrize(
    ("finding", "fate"),
    [
        (PROCESS, "could not be killed"),
        (PORT, "could not be closed"),
        (SHM, "could not be removed"),
        (FILE, "could not be removed"),
    ],
)
def test_what_could_not_be_removed(finding: Finding, fate: str) -> None:
    assert lines(finding._replace(removed=False))[1].endswith(f"; {fate}")
    assert "could not" not in lines(finding._replace(removed=False, fails=False))[1]


def test_long_command_is_cut() -> None:
    shown = lines(PROCESS._replace(command="x" * 1000))[2]
    assert shown == f"            {'x' * 160} ..."


def test_process_without_a_command_line() -> None:
    text = lines(Finding("process", "no command line", "the root process", 7, "", removed=True))
    assert text[1:] == [
        "  process   pid 7, the root process; killed",
        '  What to do: let it clean up, or accept what you know of: allow_leaks: ["process:no command line"]',
    ]


@pytest.mark.parametrize(
    ("findings", "pattern"),
    [
        ([PROCESS, PORT], "process:*worker.py*"),
        ([PROCESS, SHM], "shm:cache"),
        ([Finding("process", "/usr/bin/sleep", "", 7, "/usr/bin/sleep")], "process:*sleep*"),
        ([Finding("process", "python -m vllm.worker", "", 7, "python -m vllm.worker")], "process:*vllm.worker*"),
        ([Finding("process", "/usr/bin/sleep 30", "", 7, "/usr/bin/sleep 30")], "process:*sleep*"),
        (
            [Finding("process", "python3.11 -S -c import time", "", 7, "python3.11 -S -c import time")],
            "process:*python3.11*",
        ),
        ([Finding("process", "bash run.sh 30", "", 7, "bash run.sh 30")], "process:*run.sh*"),
        ([Finding("port", "[::1]:8000")], "port:[[]::1]:8000"),
        ([Finding("file", "/tmp/infs-1/a*?[b]")], "file:a[*][?][[]b]"),
        ([Finding("file", '/tmp/infs-1/say "hi"\\n')], 'file:say "hi"\\n'),
        ([Finding("sysv", "shmid 5")], "sysv:shmid 5"),
        ([GPU], "gpu:GPU 0 (NVIDIA H200)"),
        ([Finding("file", "/tmp/infs-1/ü: #1")], "file:ü: #1"),
    ],
)
def test_advice_can_be_copied_and_allows_what_it_names(findings: Sequence[Finding], pattern: str) -> None:
    advice = lines(*findings)[-1].partition("accept what you know of: ")[2]
    assert yaml.safe_load(advice) == {"allow_leaks": [pattern]}
    assert is_allowed(next(one for one in findings if one.kind == pattern.partition(":")[0]), [pattern])


@pytest.mark.parametrize(
    ("pattern", "finding", "allowed"),
    [
        ("shm:/dev/shm/cache", SHM, True),
        ("shm:cache", SHM, True),
        ("shm:ca*", SHM, True),
        ("shm:*", SHM, True),
        ("shm:CACHE", SHM, False),
        ("shm:ach", SHM, False),
        ("shm:", SHM, False),
        ("shm", SHM, False),
        ("*", SHM, False),
        ("semaphore:cache", SHM, False),
        ("semaphore:sem.mp-?", SEMAPHORE, True),
        ("process:*worker*", PROCESS, True),
        ("process:worker.py", PROCESS, False),
        ("port:*:8001", PORT, True),
        ("port:127.0.0.1:8001", PORT, True),
        ("port:8001", PORT, False),
        ("file:*.txt", FILE, True),
        ("file:/tmp/*", FILE, True),
        ("gpu:GPU 0*", GPU, True),
    ],
)
def test_allowed(pattern: str, finding: Finding, allowed: bool) -> None:
    assert is_allowed(finding, [pattern]) is allowed
    assert is_allowed(finding, ["port:none", pattern]) is allowed
    [result] = judged([finding], [pattern], NOTHING)
    assert result == finding._replace(fails=not allowed)


def test_what_is_a_warning_stays_one() -> None:
    assert judged([UNKNOWN], [], NOTHING) == (UNKNOWN,)


def test_secrets_are_masked_and_judged_before() -> None:
    secret = "hunter22222"
    command = f"python server.py --api-key {secret}"
    finding = Finding("process", command, "", 7, command)
    [result] = judged([finding], [f"process:*{secret}"], frozenset({secret}))
    assert result.name == result.command == "python server.py --api-key ********"
    assert not result.fails
    [result] = judged([Finding("file", f"/tmp/infs-1/{secret}.txt")], [], frozenset({secret}))
    assert secret not in as_text("vllm", [result])


def test_failed() -> None:
    assert LeakReport((UNKNOWN, SHM), ()).failed
    assert not LeakReport((UNKNOWN,), ("x",)).failed
    assert not LeakReport((), ()).failed


def test_what_cannot_be_printed_is_replaced() -> None:
    entry = SHM._asdict() | {"name": "/dev/shm/\udcff\x1b[31m\nü", "command": "a\tb"}
    [finding] = judged(from_message([entry]), [], NOTHING)
    assert (finding.name, finding.command) == ("/dev/shm/\ufffd ü", "a b")
    assert finding._replace(name=SHM.name, command=SHM.command) == SHM


def test_message_without_findings() -> None:
    assert from_message([]) == []


def test_a_flood_of_one_kind_is_cut() -> None:
    many = [Finding("file", f"/tmp/infs-1/{number}") for number in range(5000)]
    lines = as_text("llama", [*many, Finding("shm", "/dev/shm/x")]).splitlines()
    assert lines[0] == "llama left behind 5000 temporary files and a shared memory object:"
    assert "            and 4980 more temporary files" in lines
    assert "  shm       /dev/shm/x; could not be removed" in lines
    assert len(lines) == 24


def test_only_paths_are_allowed_by_their_last_part() -> None:
    assert is_allowed(Finding("shm", "/dev/shm/x"), ["shm:x"])
    assert not is_allowed(Finding("process", "python /srv/x"), ["process:x"])


def test_what_a_profiler_leaves_is_no_leak_of_the_servers() -> None:
    nsys = [
        Finding("shm", "/dev/shm/NSys-2022.4.2.1", "175 KiB", 8, COMMAND, removed=True),
        Finding("shm", "/dev/shm/quadd-agent-instance-16010", "4 KiB", 8, COMMAND, removed=True),
        Finding("semaphore", "/dev/shm/sem.nsys_sem_13060", "32 bytes", 8, COMMAND, removed=True),
    ]
    report = LeakReport((*nsys, SHM), ("ports: unknown",)).without(Nsys.leftovers)
    assert report == LeakReport((SHM,), ("ports: unknown",))
    assert report.failed
    assert not LeakReport(tuple(nsys), ()).without(Nsys.leftovers).failed
