"""What the kernel writes when it kills a process for memory, recorded on several kernels."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_infserver.system.kernel_log import KernelLog, Kill, knows_our_pids, parse

MiB = 1024 * 1024
RECORDED = [
    # 6.18, limit of a cgroup
    (
        (
            "Memory cgroup out of memory: Killed process 6732 (python3) total-vm:217316kB, anon-rss:65280kB,"
            " file-rss:5764kB, shmem-rss:0kB, UID:0 pgtables:200kB oom_score_adj:0"
        ),
        Kill(6732, "python3", (65280 + 5764) * 1024, True),
    ),
    # 5.4, the whole machine
    (
        (
            "Out of memory: Killed process 4711 (VLLM::EngineCor) total-vm:99999999kB, anon-rss:1048576kB,"
            " file-rss:0kB, shmem-rss:1024kB, UID:1000 pgtables:4096kB oom_score_adj:0"
        ),
        Kill(4711, "VLLM::EngineCor", 1025 * MiB, False),
    ),
    # 3.10: the reason stands in the line before
    (
        "Killed process 25 (a) (b)), UID 1000, total-vm:2000kB, anon-rss:1024kB, file-rss:0kB, shmem-rss:0kB",
        Kill(25, "a) (b)", MiB, None),
    ),
    ("Killed process 7 () vsz:10kB, anon-rss:1024kB, file-rss:0kB", Kill(7, "", MiB, None)),
    (
        "Out of memory (oom_kill_allocating_task): Killed process 9 (x\\x0ay) total-vm:1kB, anon-rss:0kB",
        Kill(9, "x\\x0ay", 0, False),
    ),
]
SUMMARY = (
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg={},task_memcg=/a/b,"
    "task=python3,pid={},uid=0"
)


def record(text: str, sequence: int = 1, priority: int = 3) -> str:
    return f"{priority},{sequence},18101443445,-;{text}\n"


@pytest.fixture
def kmsg(tmp_path: Path) -> Path:
    file = tmp_path / "kmsg"
    file.write_text(record(RECORDED[0][0]))
    return file


def append(file: Path, text: str | bytes) -> None:
    with file.open("ab") as opened:
        opened.write(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(("text", "kill"), RECORDED)
def test_recorded_messages(text: str, kill: Kill) -> None:
    assert parse(text.encode()) == kill


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oom_reaper: reaped process 6732 (python3), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB",
        "Out of memory: Kill process 25 (a) score 900 or sacrifice child",
        "Killed process 25",
        "Killed process x (a) total-vm:1kB",
        "Killed process 99999999999999 (a) total-vm:1kB",
        f"Killed process 1 ({'n' * 500}) total-vm:1kB",
    ],
)
def test_other_messages_are_none(text: str) -> None:
    assert parse(text.encode()) is None


def test_only_what_comes_after_the_beginning_counts(kmsg: Path) -> None:
    log = KernelLog(kmsg)
    assert log.kills() == []
    append(kmsg, record(RECORDED[1][0]))
    assert [kill.pid for kill in log.kills()] == [4711]
    append(kmsg, record(RECORDED[2][0]))
    assert [kill.pid for kill in log.kills()] == [4711, 25]
    assert log.complete
    log.close()
    append(kmsg, record(RECORDED[3][0]))
    assert [kill.pid for kill in log.kills()] == [4711, 25]
    assert not log.complete
    log.close()


def test_the_cgroup_of_the_limit_stands_before_the_process(kmsg: Path) -> None:
    log = KernelLog(kmsg)
    append(kmsg, record(SUMMARY.format("/h,3t/x", 6732)) + record(RECORDED[0][0]) + record(RECORDED[1][0]))
    assert [(kill.pid, kill.cgroup) for kill in log.kills()] == [(6732, "/h,3t/x"), (4711, None)]


def test_what_programs_write_there_does_not_count(kmsg: Path) -> None:
    log = KernelLog(kmsg)
    # Facility "user": the kernel gives it to all that is written from outside.
    append(kmsg, record(RECORDED[0][0], priority=12))
    append(kmsg, "no header at all\n;\n,;\n" + "9" * 5000 + ",1,1,-;" + RECORDED[0][0] + "\n")
    append(kmsg, f" SUBSYSTEM=x\n DEVICE=;{RECORDED[0][0]}\n")
    assert log.kills() == []


def test_garbage_and_a_flood_are_survived_in_bounded_time(kmsg: Path) -> None:
    log = KernelLog(kmsg)
    append(kmsg, os.urandom(200_000))
    append(kmsg, b"\n" + b"x" * 2_000_000 + b"\n")
    append(kmsg, record("Killed process 1 (" + "(" * 60 + "x" * 100_000))
    append(kmsg, record(RECORDED[1][0]) * 5000)
    begin = time.monotonic()
    kills = log.kills()
    assert time.monotonic() - begin < 30
    assert 0 < len(kills) <= 1000
    assert kills[0].pid == 4711


def test_records_that_were_overwritten_leave_a_gap(kmsg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = KernelLog(kmsg)
    answers = [BrokenPipeError(), record(RECORDED[1][0]).encode(), BlockingIOError()]

    def read(handle: int, size: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "read", read)
    assert [kill.pid for kill in log.kills()] == [4711]
    assert not log.complete


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError("what?")])
def test_a_log_that_only_fails_ends(kmsg: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    log = KernelLog(kmsg)

    def read(handle: int, size: int) -> bytes:
        raise error

    monkeypatch.setattr(os, "read", read)
    assert log.kills() == []
    assert not log.complete


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_without_a_log_nothing_is_known(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kmsg"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    before = os.listdir("/dev/fd")
    log = KernelLog(path)
    assert log.kills() == []
    assert not log.complete or kind == "folder"
    log.close()
    assert os.listdir("/dev/fd") == before


def test_a_log_that_may_not_be_read(kmsg: Path, ordinary_user: Callable) -> None:  # type: ignore[type-arg]
    kmsg.chmod(0)
    with ordinary_user():
        assert not KernelLog(kmsg).complete


def test_a_forgotten_log_is_closed(kmsg: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    logs = [KernelLog(kmsg) for _ in range(10)]
    assert len(os.listdir("/dev/fd")) == before + 10
    del logs
    assert len(os.listdir("/dev/fd")) == before


def test_process_ids_of_another_namespace_are_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "self/ns"
    assert not knows_our_pids(tmp_path)
    folder.mkdir(parents=True)
    for number, answer in ((4026531836, True), (4026532201, False)):
        (folder / "pid").unlink(missing_ok=True)
        (folder / "pid").symlink_to(f"pid:[{number}]")
        assert knows_our_pids(tmp_path) is answer
