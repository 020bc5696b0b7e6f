"""What a server can do wrong, what its user then sees, and that nothing is left of it whatever it does.

Each table has one row per fault; each row runs a real server. Rows of whose kind there is another one are left to
.ci/nightly. `Traces` finds what is left without any help from the
server: it may have wiped its environment, renamed itself and left its session.
"""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import itertools
import mmap
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from isolation import port_of_nobody
from sampling import sampled

from pytest_infserver import CommandServer, LeakError, ServerStartupError, ServerState
from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.disk import places
from pytest_infserver.system.proc_net import listeners, socket_inodes

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the faults are those of Linux"),
    pytest.mark.usefixtures("hard_limit", "traces"),
]

ENGINE = Path(__file__).parents[1] / "fake_engine.py"
SHM = Path("/dev/shm")
STOP_TIMEOUT = 1.0
LONG = 60.0

FakeServer = Callable[..., CommandServer]


# What is left of a server.


class Traces:
    """All by which the servers of one test can be recognised.

    This process adopts what their supervisors lose, so that no process can get out of its sight.

    Attributes:
        prefix: Begins the names of all objects that the servers make.
        folder: The temporary directory of this process and all below it.
    """

    _numbers = itertools.count()

    def __init__(self, folder: Path) -> None:
        self.prefix = f"ift-{os.getpid()}-{next(self._numbers)}-"
        self.folder = folder
        self._others = set(psutil.Process().children(recursive=True))
        self._processes: set[psutil.Process] = set()
        self._listeners: set[str] = set()

    def follow(self) -> None:
        """Remember what runs and listens below this process now."""
        below = set(psutil.Process().children(recursive=True)) - self._others
        self._processes |= below
        held = set().union(*(socket_inodes(process.pid) for process in below))
        self._listeners |= {listener.inode for listener in listeners() if listener.inode in held}

    def except_for(self, pid: int) -> None:
        """Do not take a process of the test's own for a server's."""
        self._others.add(psutil.Process(pid))

    def processes(self) -> list[psutil.Process]:
        """Return the processes that have not ended."""
        below = set(psutil.Process().children(recursive=True)) - self._others
        return [process for process in self._processes | below if not ended(process)]

    def objects(self) -> list[Path]:
        """Return the objects in /dev/shm."""
        return [path for path in SHM.iterdir() if path.name.removeprefix("sem.").startswith(self.prefix)]

    def left(self) -> list[str]:
        """Return all that is left, in words."""
        self._processes.update(set(psutil.Process().children(recursive=True)) - self._others)
        pids = {process.pid for process in self._processes}
        left = [f"process {shown(process)}" for process in self.processes()]
        left += [f"shm {path}" for path in self.objects()]
        left += [f"sysv {number}" for number, creator in sysv_segments() if creator in pids]
        left += [f"temporary {path}" for path in self.folder.glob("infs-*")]
        left += [f"listener {listener}" for listener in listeners() if listener.inode in self._listeners]
        return left

    def remove(self) -> None:
        """Remove all that is left; to be called last."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(self._processes, LONG)
        for path in self.objects():
            path.unlink()
        for zombie in set(psutil.Process().children()) - self._others:
            with contextlib.suppress(ChildProcessError, psutil.Error):
                if zombie.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(zombie.pid, os.WNOHANG)


def ended(process: psutil.Process) -> bool:
    try:
        # The group of all threads is a zombie as soon as its first thread has ended.
        return not process.is_running() or (process.status() == psutil.STATUS_ZOMBIE and process.num_threads() < 2)
    except psutil.Error:
        return True


def shown(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {process.name()} {process.status()} {process.cmdline()}"
    except psutil.Error:
        return str(process.pid)


def sysv_segments() -> list[tuple[int, int]]:
    """Return id and creator of each SysV segment."""
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return [(int(row[1]), int(row[4])) for row in rows]


def adopt_orphans(do: bool) -> None:
    ctypes.CDLL(None).prctl(36, int(do), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Traces]:
    """Follow the servers of a test, and fail if anything is left of them in the end."""
    state = places.state_dir()
    if state is not None:
        # Ports are shared with those who have another temporary directory.
        monkeypatch.setenv("INFSERVER_STATE_DIR", str(state))
    with tempfile.TemporaryDirectory(prefix="ift-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        traces = Traces(Path(folder))
        adopt_orphans(True)
        try:
            yield traces
            left = traces.left()
        finally:
            traces.remove()
            adopt_orphans(False)
    assert left == []


@pytest.fixture
def faulty(traces: Traces, fake_server: FakeServer) -> Iterator[Callable[..., CommandServer]]:
    """Make servers as `fake_server` does, in whose arguments ``{prefix}`` and ``{folder}`` are filled in."""
    made: list[CommandServer] = []

    def make(arguments: Sequence[str], **settings: Any) -> CommandServer:
        filled = [word.format(prefix=traces.prefix, folder=traces.folder) for word in arguments]
        server = fake_server(*filled, **{"stop_timeout": STOP_TIMEOUT, "debug_mode": True, **settings})
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()
        # Floods fill the disk if each test keeps its own.
        server.log_path.unlink(missing_ok=True)


def warnings_of(server: CommandServer) -> list[str]:
    """Return the list to which the server's warnings are going to be added.

    Not the one of a disk that its log may fill: whether a flood is near that depends on the machine's disk.
    """
    warnings: list[str] = []

    def add(text: str) -> None:
        if "the disk of its log is nearly full" not in text:
            warnings.append(text)

    server.on_warning = add
    return warnings


def findings_of(server: CommandServer) -> Sequence[Finding]:
    assert server.leak_report is not None
    return server.leak_report.findings


def wait_until(condition: Callable[[], object], limit: float = LONG) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def assert_found(
    found: Sequence[Finding], patterns: Sequence[str], count: int | None, also: Sequence[str] = ()
) -> None:
    """Check that each finding fits one of the patterns ``kind:glob``, and each pattern but ``also`` a finding."""
    names = [f"{finding.kind}:{finding.name}" for finding in found]
    for pattern in patterns:
        assert fnmatch.filter(names, pattern), f"{pattern} is not among {names}"
    for name in names:
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in (*patterns, *also)), f"{name} is too much"
    assert count in (None, len(names)), names


# Servers that leave something behind when they are stopped.


@dataclass(frozen=True)
class Leak:
    """A server that leaves something behind.

    Attributes:
        arguments: Of the engine.
        found: ``kind:glob`` of what debug mode finds.
        says: Regular expressions that the error's text contains.
        count: How much is found; None if that differs.
        also: What may be found besides.
        settings: Further settings of the server.
    """

    arguments: Sequence[str]
    found: Sequence[str]
    says: Sequence[str] = ()
    count: int | None = 1
    also: Sequence[str] = ()
    settings: dict[str, Any] = field(default_factory=dict)


GROUP = r"pid \d+, in the server's process group, did not end within 1 s of the server's end"
SESSION = r"pid \d+, in a session of its own, did not end within 1 s of the server's end"
ROOT = r"pid \d+, the root process, did not end within 1 s of the request to stop"
HIDDEN = ["--wipe-environment", "--rename={prefix}engine"]
PORT = ["port:*"]
OBJECTS = ["--leak-shm={prefix}a", "--leak-semaphore={prefix}b", "--leak-sysv", "--leak-socket=c", "--leak-file=d"]
OBJECTS_FOUND = ["shm:/dev/shm/ift-*-a", "semaphore:/dev/shm/sem.ift-*-b", "sysv:shmid *", "socket:*/c", "file:*/d"]

LEAKS = {
    "ignores SIGTERM": Leak(["--ignore-term"], ["process:*fake_engine*"], [ROOT, "; killed"]),
    "stops too slowly": Leak(["--stop-delay=600"], ["process:*fake_engine*"], [ROOT]),
    "ends its first thread only": Leak(["--headless"], ["process:*"], [ROOT]),
    "forgets children": Leak(
        ["--children=2", "--forget-children"], ["process:*python*"], ["left behind 2 processes", GROUP], 2
    ),
    "forgets stubborn children": Leak(
        ["--children=2", "--forget-children", "--stubborn-children"], ["process:*python*"], [GROUP], 2
    ),
    "forgets a child in another session": Leak(
        ["--setsid-child", "--forget-children"], ["process:*python*"], [SESSION]
    ),
    "leaves a daemon": Leak(["--daemon"], ["process:*fake_engine*"], ["left behind a process", SESSION]),
    "leaves a daemon without environment": Leak(
        ["--daemon", "--wipe-environment"], ["process:no command line"], [SESSION]
    ),
    "leaves a renamed daemon": Leak(["--daemon", "--rename={prefix}engine"], ["process:ift-*-engine"], [SESSION]),
    "leaves whatever hides": Leak(
        ["--daemon", "--setsid-child", "--children=1", "--forget-children", "--stubborn-children", *HIDDEN],
        ["process:ift-*-engine", "process:*python*"],
        ["left behind 3 processes", GROUP, SESSION],
        3,
    ),
    "is a hidden root that ignores SIGTERM": Leak(["--ignore-term", *HIDDEN], ["process:ift-*-engine"], [ROOT]),
    "leaves a port": Leak(
        ["--leak-port"],
        ["process:*fake_engine*", "port:127.0.0.1:*"],
        ["left behind a process and a listening port", r"port +127\.0\.0\.1:\d+, .*held by pid \d+; closed"],
        2,
    ),
    "leaves a port and hides": Leak(["--leak-port", *HIDDEN], ["process:ift-*-engine", "port:127.0.0.1:*"], [], 2),
    "leaves shared memory": Leak(
        ["--leak-shm={prefix}a"],
        ["shm:/dev/shm/ift-*-a"],
        ["left behind a shared memory object", r"-a, 4 KiB, .*held by pid \d+; removed", r"allow_leaks: \[\"shm:ift-"],
    ),
    "leaves much shared memory": Leak(
        [f"--leak-shm={{prefix}}{number}" for number in range(40)], ["shm:/dev/shm/ift-*"], ["40 shared memory"], 40
    ),
    "makes shared memory until it is killed": Leak(
        ["--make-shm={prefix}", "--ignore-term"], ["process:*fake_engine*", "shm:/dev/shm/ift-*"], [ROOT], None
    ),
    "makes shared memory until it is asked to end": Leak(
        ["--make-shm={prefix}", "--default-term"], ["shm:/dev/shm/ift-*"], [], None
    ),
    "leaves a semaphore": Leak(["--leak-semaphore={prefix}b"], ["semaphore:/dev/shm/sem.ift-*-b"], ["; removed"]),
    "leaves a SysV segment": Leak(["--leak-sysv"], ["sysv:shmid *"], ["4096 bytes", "; removed"]),
    "leaves a socket": Leak(["--leak-socket=c"], ["socket:*/infs-*/c"], ["left behind a unix socket", "; removed"]),
    "leaves a socket elsewhere": Leak(["--leak-socket={folder}/c"], ["socket:*/c"], ["; removed"]),
    "leaves a file": Leak(["--leak-file=d"], ["file:*/infs-*/d"], ["in the server's TMPDIR", "; removed"]),
    "leaves objects and hides": Leak([*OBJECTS, *HIDDEN], OBJECTS_FOUND, ["; removed"], 5),
    "leaves objects and ignores SIGTERM": Leak(
        [*OBJECTS, *HIDDEN, "--ignore-term"], [*OBJECTS_FOUND, "process:ift-*-engine"], [ROOT], 6
    ),
    "leaves all there is": Leak(
        [*OBJECTS, "--daemon", "--leak-port", "--children=1", "--forget-children", "--setsid-child"],
        [*OBJECTS_FOUND, "process:*", "port:*"],
        [GROUP, SESSION, "; removed", "; killed", "; closed"],
        10,
    ),
    "leaves objects and exits 3": Leak([*OBJECTS, "--stop-code=3"], OBJECTS_FOUND, [], 5),
    "leaves objects and closes its log": Leak([*OBJECTS, "--close-log"], OBJECTS_FOUND, [], 5),
    "leaves objects and floods its log": Leak([*OBJECTS, "--flood-log"], OBJECTS_FOUND, [], 5),
    # Forks hold the port of the server too, if they live long enough to be asked.
    "forks a chain": Leak(["--fork-chain=30"], ["process:*fake_engine*", "port:*"], [GROUP], 2),
    "forks a chain without an end": Leak(["--fork-chain=100000"], ["process:*"], [], None, PORT),
    "forks a tree": Leak(
        ["--fork-tree=20"],
        ["process:*fake_engine*", "port:*"],
        ["left behind 21 processes and a listening port"],
        22,
        # All of them must be there when it is over, on a busy machine too.
        settings={"stop_timeout": 2},
    ),
    "forks a bomb": Leak(["--fork-bomb=500"], ["process:*"], [], None, PORT),
    "forks a bomb while it is killed": Leak(
        ["--fork-bomb=800", "--daemon", *HIDDEN], ["process:*"], [], None, PORT, {"stop_timeout": 0.2}
    ),
}


LEAKS_AT_NIGHT = (
    "stops too slowly",
    "forgets stubborn children",
    "leaves a daemon without environment",
    "leaves a renamed daemon",
    "leaves a port and hides",
    "makes shared memory until it is asked to end",
    "leaves objects and hides",
    "leaves objects and exits 3",
    "leaves objects and closes its log",
    "forks a chain",
    "forks a bomb",
)


@pytest.mark.parametrize("row", sampled(LEAKS, nightly=LEAKS_AT_NIGHT))
def test_leaks_in_debug_mode(row: Leak, faulty: FakeServer, traces: Traces) -> None:
    server = faulty(row.arguments, **row.settings)
    warnings = warnings_of(server)
    server.start()
    traces.follow()
    with pytest.raises(LeakError) as caught:
        server.stop()
    assert traces.left() == []
    error = caught.value
    assert_found(error.findings, row.found, row.count, row.also)
    assert all(finding.fails and finding.removed for finding in error.findings)
    assert error.findings == findings_of(server)
    for pattern in row.says:
        assert re.search(pattern, str(error)), str(error)
    assert warnings == []
    assert server.state is ServerState.STOPPED


NOTHING_WRONG = {
    "obeys": [],
    "has children": ["--children=2", "--setsid-child"],
    "has a daemon that follows it": ["--tidy-daemon"],
    "removes its objects": ["--tidy-shm={prefix}a", "--tidy-semaphore={prefix}b"],
    "hides": ["--children=1", "--tidy-daemon", *HIDDEN],
    "stops slowly": ["--stop-delay=0.5", "--children=1"],
    "waits for SIGTERM in its first thread only": ["--idle-first-thread", "--children=1"],
    "exits 3 when it is stopped": ["--stop-code=3"],
    "answers 503 first": ["--loading=0.7"],
    "closes its log": ["--close-log", "--children=1"],
    "floods its log": ["--flood-log", "--children=1"],
}


SAMPLE_IN_PLAIN_MODE = ("hides", "waits for SIGTERM in its first thread only", "floods its log")
"""Debug mode looks for what is left behind; without it there is less that can go wrong."""
NOTHING_WRONG_IN_MODES = {
    f"{what}-{mode}": (arguments, mode == "debug")
    for what, arguments in NOTHING_WRONG.items()
    for mode in ("debug", "plain")
}
NOTHING_WRONG_AT_NIGHT = [f"{what}-plain" for what in NOTHING_WRONG if what not in SAMPLE_IN_PLAIN_MODE]


@pytest.mark.parametrize(("arguments", "debug_mode"), sampled(NOTHING_WRONG_IN_MODES, nightly=NOTHING_WRONG_AT_NIGHT))
def test_nothing_is_wrong(arguments: list[str], debug_mode: bool, faulty: FakeServer, traces: Traces) -> None:
    server = faulty(arguments, debug_mode=debug_mode, stop_timeout=10)
    warnings = warnings_of(server)
    server.start()
    traces.follow()
    assert server.check_health()
    server.stop()
    assert traces.left() == []
    assert warnings == []
    assert server.survivors == ()
    if debug_mode:
        assert findings_of(server) == ()


# Without debug mode.

KILLED = r"{} of its processes did not end by themselves \(stop_timeout 1 s\):"
QUIET = ""

PLAIN = {
    "ignores SIGTERM": (["--ignore-term"], KILLED.format(1)),
    "ignores SIGTERM and hides": (["--ignore-term", *HIDDEN], KILLED.format(1) + r"\n  pid \d+ \(ift-.*-engine\)"),
    "stops too slowly": (["--stop-delay=600"], KILLED.format(1)),
    "ends its first thread only": (["--headless"], KILLED.format(1)),
    "forgets children": (["--children=2", "--forget-children"], QUIET),
    "forgets stubborn children": (["--children=2", "--forget-children", "--stubborn-children"], KILLED.format(2)),
    "forgets a child in another session": (["--setsid-child", "--forget-children"], QUIET),
    "forgets a stubborn child in another session": (
        ["--setsid-child", "--forget-children", "--stubborn-children"],
        KILLED.format(1),
    ),
    "leaves a daemon": (["--daemon"], QUIET),
    "leaves whatever hides": (["--daemon", "--leak-port", "--setsid-child", "--forget-children", *HIDDEN], QUIET),
    "leaves a port": (["--leak-port"], QUIET),
    "forks a chain": (["--fork-chain=30"], KILLED.format(1)),
    "forks a chain without an end": (["--fork-chain=100000"], KILLED.format(r"\d+")),
    "forks a tree": (["--fork-tree=100"], KILLED.format(r"\d+")),
    "forks a bomb": (["--fork-bomb=500"], KILLED.format(r"\d+")),
    "forks a bomb and hides": (["--fork-bomb=500", *HIDDEN], KILLED.format(r"\d+")),
}


PLAIN_AT_NIGHT = (
    "ignores SIGTERM",
    "stops too slowly",
    "forgets stubborn children",
    "forgets a child in another session",
    "leaves a daemon",
    "leaves a port",
    "forks a chain",
    "forks a bomb",
)


@pytest.mark.parametrize(("arguments", "warning"), sampled(PLAIN, nightly=PLAIN_AT_NIGHT))
def test_leaks_without_debug_mode(arguments: list[str], warning: str, faulty: FakeServer, traces: Traces) -> None:
    server = faulty(arguments, debug_mode=False)
    warnings = warnings_of(server)
    server.start()
    traces.follow()
    server.stop()
    assert traces.left() == []
    assert len(warnings) == (warning != QUIET), warnings
    assert re.search(warning, "".join(warnings))
    assert server.leak_report is None


def test_objects_are_left_alone_without_debug_mode(faulty: FakeServer, traces: Traces) -> None:
    server = faulty(["--leak-shm={prefix}a", "--leak-semaphore={prefix}b"], debug_mode=False)
    warnings = warnings_of(server)
    server.start().stop()
    assert warnings == []
    assert len(traces.objects()) == 2
    for path in traces.objects():
        path.unlink()


# Servers that do not become ready.


@dataclass(frozen=True)
class Failure:
    """A server that does not become ready.

    Attributes:
        arguments: Of the engine.
        says: Regular expressions that the error's text contains.
        exit_code: As in the error.
        held: Whether it lives long enough for its objects to be seen.
        limit: Seconds until it is given up.
    """

    arguments: Sequence[str]
    says: Sequence[str]
    exit_code: int | None = None
    held: bool = False
    limit: float = LONG


def never_ready(*arguments: str, last: str) -> Failure:
    says = [rf"was not ready after \d+ s \(startup_timeout\): http://127\.0\.0\.1:\d+/health {last}", "What to do: "]
    return Failure(arguments, says, held=True, limit=2)


FAMILY = ["--children=1", "--forget-children", "--stubborn-children", "--daemon", *HIDDEN]
BEFORE = ", before it was ready"
FAILURES_IN_PLAIN_MODE = ["exits 3", "is killed", "answers 503", "ignores SIGTERM", "forks a bomb"]
"""Debug mode changes little of how a start fails: not all of it is worth a second run."""

FAILURES = {
    "exits 0": Failure(["--exit=0"], [f"exited with code 0{BEFORE}"], 0),
    "exits 3": Failure(["--exit=3", "--say=RuntimeError: no"], [f"exited with code 3{BEFORE}", "cause: .*no"], 3),
    "exits 3 after a while": Failure(["--exit=3", "--delay=1.5"], [f"exited with code 3{BEFORE}"], 3, held=True),
    "is killed": Failure(["--die-of=9"], [f"was killed by SIGKILL{BEFORE}"], -9),
    "crashes": Failure(["--die-of=11"], [f"was killed by SIGSEGV{BEFORE}"], -11),
    "exits 0 while it answers 503": Failure(
        ["--loading=600", "--exit-after", "1.5", "0"], [f"exited with code 0{BEFORE}"], 0, held=True
    ),
    "exits 4 and never answers": Failure(
        ["--mute", "--exit-after", "1.5", "4"], [f"exited with code 4{BEFORE}"], 4, held=True
    ),
    "exits 5 and floods its log": Failure(
        ["--flood-log", "--delay=600", "--exit-after", "1.5", "5"], [f"exited with code 5{BEFORE}"], 5, held=True
    ),
    "exits 3 and has closed its log": Failure(
        ["--close-log", "--exit=3"], [f"exited with code 3{BEFORE}", "unknown, it wrote nothing"], 3
    ),
    "never listens": never_ready("--delay=600", last=""),
    "answers 503": never_ready("--loading=600", last=".*503"),
    "accepts and never answers": never_ready("--mute", last=""),
    "never accepts": never_ready("--backlog-only", last=""),
    "answers garbage": never_ready("--garbage", last=""),
    "answers a byte a second": never_ready("--drip", last=""),
    "floods its log and answers 503": never_ready("--flood-log", "--loading=600", last=".*503"),
    "ignores SIGTERM": never_ready("--ignore-term", "--loading=600", last=".*503"),
    "forks a bomb": never_ready("--fork-bomb=500", "--loading=600", last=".*503"),
}


FAILURES_IN_MODES = {
    **{f"{fault}-debug": (row, True) for fault, row in FAILURES.items()},
    **{f"{fault}-plain": (FAILURES[fault], False) for fault in FAILURES_IN_PLAIN_MODE},
}
FAILURES_AT_NIGHT = (
    "exits 3 after a while-debug",
    "crashes-debug",
    # Their answers are those of tests/launcher/test_readiness.py.
    "never accepts-debug",
    "answers garbage-debug",
    "answers a byte a second-debug",
    "exits 3-plain",
    "is killed-plain",
    "ignores SIGTERM-plain",
)


def failed_start(
    row: Failure, debug_mode: bool, objects: list[str], faulty: FakeServer
) -> tuple[CommandServer, list[str], ServerStartupError]:
    """Let a server fail to start; return it, its warnings and the error.

    One that has not got as far as its row says in its short time gets more: the machine may be busy.
    """
    say = ["--say-when-held=holds all"] if objects else []
    for limit in (row.limit, LONG):
        server = faulty([*row.arguments, *FAMILY, *objects, *say], debug_mode=debug_mode, startup_timeout=limit)
        warnings = warnings_of(server)
        with pytest.raises(ServerStartupError) as caught:
            server.start()
        with server.log_path.open("rb") as log:
            holds_all = not objects or b"holds all" in log.read(1 << 20)
        if holds_all and all(re.search(pattern, str(caught.value)) for pattern in row.says):
            break
    return server, warnings, caught.value


@pytest.mark.parametrize(("row", "debug_mode"), sampled(FAILURES_IN_MODES, nightly=FAILURES_AT_NIGHT))
def test_start_that_fails(row: Failure, debug_mode: bool, faulty: FakeServer, traces: Traces) -> None:
    objects = OBJECTS if debug_mode and row.held else []
    server, warnings, error = failed_start(row, debug_mode, objects, faulty)
    assert traces.left() == []
    for pattern in row.says:
        assert re.search(pattern, str(error)), str(error)
    assert error.exit_code == row.exit_code
    assert server.state is ServerState.FAILED
    if objects:
        # It had no chance to clean up: no error, but a word about what it would have left.
        found = [finding for finding in findings_of(server) if finding.kind not in ("process", "port")]
        assert_found(found, OBJECTS_FOUND, 5)
        assert len(warnings) == 1
        assert all(finding.name in warnings[0] for finding in found), warnings
        assert re.search("left behind", warnings[0])
    else:
        assert warnings == []
    server.stop()


# Servers that are ready and then end.


def kill_root(number: signal.Signals) -> Callable[[CommandServer], None]:
    return lambda server: os.kill(server.pid or 0, number)


def tell_to_exit(code: int) -> Callable[[CommandServer], None]:
    def tell(server: CommandServer) -> None:
        with contextlib.suppress(requests.ConnectionError):
            requests.get(server.url_for(f"/exit?code={code}"), timeout=LONG)

    return tell


def kill_supervisor(server: CommandServer) -> None:
    assert server.runtime.process is not None
    os.kill(server.runtime.process.supervisor_pid or 0, signal.SIGKILL)


def wait_for_it(server: CommandServer) -> None:
    """Do nothing: it ends by itself."""


DEATHS: dict[str, tuple[list[str], Callable[[CommandServer], None], str]] = {
    "is killed": ([], kill_root(signal.SIGKILL), "was killed by SIGKILL, while it was in use"),
    "crashes": ([], kill_root(signal.SIGSEGV), "was killed by SIGSEGV, while"),
    "is told to end by somebody else": ([], kill_root(signal.SIGTERM), "exited with code 0, while"),
    "exits 0": ([], tell_to_exit(0), "exited with code 0, while"),
    "exits 3": ([], tell_to_exit(3), "exited with code 3, while"),
    "exits 7 at some moment": (["--exit-after", "3", "7"], wait_for_it, "exited with code 7, while"),
    "exits 3 and floods its log": (["--flood-log"], tell_to_exit(3), "exited with code 3, while"),
    "is killed with a closed log": (["--close-log"], kill_root(signal.SIGKILL), "was killed by SIGKILL, while"),
    "loses its supervisor": ([], kill_supervisor, "ended together with its supervisor"),
}


DEATHS_IN_MODES = {
    f"{death}-{mode}": (*row, mode == "debug") for death, row in DEATHS.items() for mode in ("debug", "plain")
}
DEATHS_EVERY_DAY = (
    "is killed-debug",
    "is killed-plain",
    "is told to end by somebody else-debug",
    "exits 3-debug",
    "exits 7 at some moment-debug",
    "exits 3 and floods its log-debug",
    "exits 3 and floods its log-plain",
    "loses its supervisor-debug",
    "loses its supervisor-plain",
)


@pytest.mark.parametrize(
    ("arguments", "end", "reason", "debug_mode"),
    sampled(DEATHS_IN_MODES, nightly=set(DEATHS_IN_MODES) - set(DEATHS_EVERY_DAY)),
)
def test_death(
    arguments: list[str],
    end: Callable[[CommandServer], None],
    reason: str,
    debug_mode: bool,
    faulty: FakeServer,
    traces: Traces,
) -> None:
    server = faulty([*arguments, *FAMILY, *(OBJECTS if debug_mode else [])], debug_mode=debug_mode)
    warnings = warnings_of(server)
    server.start()
    traces.follow()
    # What it holds is looked at when it is ready.
    time.sleep(0.5 if debug_mode else 0)
    end(server)
    assert server.wait_death(LONG)
    assert reason in (server.why_died() or "")
    server.stop()
    assert traces.left() == []
    if debug_mode:
        found = [finding for finding in findings_of(server) if finding.kind not in ("process", "port")]
        assert_found(found, OBJECTS_FOUND, 5)
        assert len(warnings) == 1
        assert all(finding.name in warnings[0] for finding in found), warnings
        assert "What to do" not in warnings[0]
    else:
        assert warnings == []


@pytest.mark.parametrize("moment", ["starting", "running"])
def test_server_that_makes_shm_until_its_supervisor_is_killed(moment: str, faulty: FakeServer, traces: Traces) -> None:
    server = faulty(["--make-shm={prefix}", *(["--loading=600"] if moment == "starting" else [])])

    def start() -> None:
        with contextlib.suppress(ServerStartupError):
            server.start()

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: len(traces.objects()) > 20)
    kill_supervisor(server)
    thread.join(LONG)
    assert server.wait_death(LONG) or server.state is ServerState.FAILED
    server.stop()
    assert traces.left() == []


@pytest.mark.parametrize("debug_mode", sampled({"debug": True, "plain": False}, nightly=["plain"]))
@pytest.mark.parametrize("asked_first", [True, False], ids=["stopped", "not stopped"])
def test_server_that_loses_its_guard_is_none_the_worse(
    debug_mode: bool, asked_first: bool, faulty: FakeServer, traces: Traces
) -> None:
    server = faulty(["--children=1", "--tidy-daemon", "--tidy-shm={prefix}a"], debug_mode=debug_mode, stop_timeout=10)
    warnings = warnings_of(server)
    server.start()
    assert server.runtime.process is not None
    traces.follow()
    guard = psutil.Process(server.runtime.process.supervisor_pid).ppid()
    assert guard != os.getpid()
    os.kill(guard, signal.SIGKILL)
    time.sleep(0 if asked_first else 0.5)
    assert server.check_health()
    server.stop()
    wait_until(lambda: traces.left() == [])
    assert warnings == []


# What is not the server's.


class Segment:
    """An object in /dev/shm that is none of a server's."""

    def __init__(self, name: str) -> None:
        self.path = SHM / name
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(handle, 4096)
        self.memory = mmap.mmap(handle, 4096)
        os.close(handle)
        self.memory[:4] = b"mine"

    def close(self) -> None:
        self.memory.close()

    def untouched(self) -> bool:
        return self.path.exists() and self.path.read_bytes()[:4] == b"mine"


@pytest.fixture
def segment() -> Iterator[Callable[[str], Segment]]:
    """Make objects of the test's own."""
    made: list[Segment] = []

    def make(name: str) -> Segment:
        made.append(Segment(f"own-{os.getpid()}-{time.monotonic_ns()}-{name}"))
        return made[-1]

    yield make
    for one in made:
        one.path.unlink(missing_ok=True)


def attach(server: CommandServer, name: str) -> None:
    assert requests.get(server.url_for(f"/attach-shm?name={name}"), timeout=LONG).ok


def failures(server: CommandServer) -> list[str]:
    return [finding.name for finding in findings_of(server) if finding.fails]


def test_own_shm_is_not_touched(faulty: FakeServer, traces: Traces, segment: Callable[[str], Segment]) -> None:
    before = segment("before")
    attached_at_start = segment("attached-at-start")
    server = faulty([f"--attach-shm={attached_at_start.path.name}"]).start()
    traces.follow()
    attach(server, before.path.name)
    during = segment("during")
    attached_during = segment("attached-during")
    attach(server, attached_during.path.name)
    closed = segment("closed")
    closed.close()
    time.sleep(0.7)
    server.stop()
    assert traces.left() == []
    assert failures(server) == []
    assert all(one.untouched() for one in (before, attached_at_start, during, attached_during, closed))


def test_own_shm_is_not_touched_when_the_server_leaks(
    faulty: FakeServer, traces: Traces, segment: Callable[[str], Segment]
) -> None:
    server = faulty(["--leak-shm={prefix}a"]).start()
    attached = segment("attached")
    attach(server, attached.path.name)
    closed = segment("closed")
    closed.close()
    with pytest.raises(LeakError) as caught:
        server.stop()
    assert [finding.name for finding in caught.value.findings if finding.fails] == [f"/dev/shm/{traces.prefix}a"]
    assert attached.untouched()
    assert closed.untouched()
    assert str(attached.path) not in str(caught.value)


@pytest.mark.parametrize("end", ["stop", "death", "supervisor"])
def test_own_objects_outlive_any_end_of_the_server(
    end: str, faulty: FakeServer, traces: Traces, segment: Callable[[str], Segment]
) -> None:
    libc = ctypes.CDLL(None)
    before = segment("before")
    sysv_before = libc.shmget(0, 4096, 0o1600)
    server = faulty([f"--attach-shm={before.path.name}"]).start()
    attached = segment("attached")
    attach(server, attached.path.name)
    sysv = libc.shmget(0, 4096, 0o1600)
    try:
        if end == "death":
            kill_root(signal.SIGKILL)(server)
            assert server.wait_death(LONG)
        elif end == "supervisor":
            kill_supervisor(server)
            assert server.wait_death(LONG)
        server.stop()
        assert traces.left() == []
        assert failures(server) == []
        assert before.untouched()
        assert attached.untouched()
        assert {sysv, sysv_before} <= {number for number, _ in sysv_segments()}
    finally:
        libc.shmctl(sysv, 0, None)
        libc.shmctl(sysv_before, 0, None)


@pytest.fixture
def foreigner(traces: Traces) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes of somebody else's that make an object in /dev/shm."""
    made: list[subprocess.Popen[str]] = []

    def start(path: Path, holds: bool, **how: Any) -> subprocess.Popen[str]:
        keep = f"exec 3<{path};" if holds else ""
        script = f"printf mine > {path}; {keep} echo made; read line"
        process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **how,
        )
        made.append(process)
        traces.except_for(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        return process

    yield start
    for process in made:
        process.communicate(timeout=LONG)


@pytest.mark.parametrize(
    ("who", "holds"),
    sampled(
        {
            "same user-holds it": ("same user", True),
            "same user-has closed it": ("same user", False),
            "another user-holds it": ("another user", True),
            "another user-has closed it": ("another user", False),
        },
        nightly=["same user-holds it", "another user-has closed it"],
    ),
)
def test_objects_of_others_are_not_touched(
    who: str, holds: bool, faulty: FakeServer, foreigner: Callable[..., subprocess.Popen[str]]
) -> None:
    if who == "another user" and os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    how = {"user": 65534, "group": 65534, "extra_groups": []} if who == "another user" else {}
    path = SHM / f"own-{os.getpid()}-{time.monotonic_ns()}"
    server = faulty([])
    warnings = warnings_of(server)
    server.start()
    process = foreigner(path, holds, **how)
    try:
        time.sleep(0.7)
        server.stop()
        assert findings_of(server) == ()
        assert path.read_text() == "mine"
        assert process.poll() is None
        assert warnings == []
    finally:
        path.unlink()


def test_object_that_is_named_after_the_server_but_was_never_seen_held(
    faulty: FakeServer, traces: Traces, segment: Callable[[str], Segment]
) -> None:
    """It may be the server's or not: a warning, and it stays."""
    server = faulty([])
    warnings = warnings_of(server)
    server.start()
    named = segment(f"{server.pid}-x")
    named.close()
    server.stop()
    assert failures(server) == []
    assert named.untouched()
    assert all("left alone" in warning for warning in warnings)


@pytest.mark.parametrize("leaking_first", [True, False], ids=["leaking first", "clean first"])
def test_two_servers_do_not_report_each_other(leaking_first: bool, faulty: FakeServer, traces: Traces) -> None:
    clean = faulty(["--tidy-shm={prefix}y", "--tidy-semaphore={prefix}z", "--tidy-daemon"], name="clean")
    warnings = warnings_of(clean)
    clean.start()
    leaking = faulty([*OBJECTS, "--daemon", "--leak-port"], name="leaking").start()
    traces.follow()
    time.sleep(0.7)

    def stop_leaking() -> None:
        with pytest.raises(LeakError):
            leaking.stop()
        assert_found(findings_of(leaking), [*OBJECTS_FOUND, "process:*", "port:*"], 8)

    def stop_clean() -> None:
        clean.stop()
        assert findings_of(clean) == ()
        assert warnings == []

    assert len(traces.objects()) == 4
    if leaking_first:
        stop_leaking()
        assert clean.check_health()
        assert sorted(path.name[-1] for path in traces.objects()) == ["y", "z"]
        stop_clean()
    else:
        stop_clean()
        assert leaking.check_health()
        assert sorted(path.name[-1] for path in traces.objects()) == ["a", "b"]
        stop_leaking()
    assert traces.left() == []


def test_server_that_is_being_stopped_is_no_matter_of_another_one(faulty: FakeServer, traces: Traces) -> None:
    """Nobody holds the objects of a server whose root has ended and whose daemon is waited for."""
    clean = faulty(["--tidy-shm={prefix}z"], name="clean", stop_timeout=3)
    warnings = warnings_of(clean)
    clean.start()
    leaking = faulty([*OBJECTS, "--setsid-child", "--forget-children"], name="leaking", stop_timeout=3).start()
    traces.follow()
    errors: list[LeakError] = []

    def stop() -> None:
        try:
            leaking.stop()
        except LeakError as error:
            errors.append(error)

    thread = threading.Thread(target=stop)
    thread.start()
    wait_until(lambda: leaking.pid is None)
    clean.stop()
    assert thread.is_alive()
    thread.join(LONG)
    assert traces.left() == []
    assert len(errors) == 1
    assert_found(findings_of(leaking), [*OBJECTS_FOUND, "process:*"], 6)
    assert findings_of(clean) == ()
    assert warnings == []


def test_allowed_leaks_are_removed_and_warned_of(faulty: FakeServer, traces: Traces) -> None:
    allowed = [f"shm:{traces.prefix}*", "semaphore:sem.ift-*", "sysv:*", "socket:c", "file:d", "process:*fake_engine*"]
    server = faulty([*OBJECTS, "--daemon"], allow_leaks=allowed)
    warnings = warnings_of(server)
    server.start()
    traces.follow()
    server.stop()
    assert traces.left() == []
    assert_found(findings_of(server), [*OBJECTS_FOUND, "process:*"], 6)
    assert failures(server) == []
    assert len(warnings) == 1
    assert all(finding.name in warnings[0] or finding.kind == "process" for finding in findings_of(server))


def test_one_leak_that_is_not_allowed_is_an_error(faulty: FakeServer, traces: Traces) -> None:
    server = faulty(OBJECTS, allow_leaks=["shm:ift-*", "semaphore:*", "sysv:*", "socket:*", "file:other"]).start()
    traces.follow()
    with pytest.raises(LeakError, match="What to do") as caught:
        server.stop()
    assert traces.left() == []
    assert [finding.kind for finding in caught.value.findings if finding.fails] == ["file"]
    assert str(caught.value).count("  warning: ") == 4


# The end of the process that owns the server.

OWNER = """
import os, signal, sys, time
from pytest_infserver import CommandServer

server = CommandServer(launch_command={command!r}, output_dir={folder!r}, startup_timeout=60, **{settings!r})

def now(*_):
    print("now", flush=True)

{body}
time.sleep(100)
"""

WAIT_AND_SAY = """
import threading
def watch():
    while server.pid is None or b"held" not in open(server.log_path, "rb").read():
        time.sleep(0.005)
    now()
threading.Thread(target=watch, daemon=True).start()
server.start()
"""

MOMENTS = {
    "starting": (["--delay=600"], WAIT_AND_SAY),
    "running": ([], "server.start()\nnow()"),
    "stopping": (
        ["--stop-delay=600"],
        "import threading\nserver.start()\nthreading.Timer(0.3, now).start()\nserver.stop()",
    ),
}


@pytest.fixture
def owner(tmp_path: Path, traces: Traces) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a plain script that owns a server; returns when it says that the moment has come."""
    made: list[subprocess.Popen[str]] = []

    def start(body: str, command: Sequence[str], **settings: Any) -> subprocess.Popen[str]:
        settings = {"debug_mode": True, "stop_timeout": STOP_TIMEOUT, **settings}
        text = OWNER.format(command=list(command), folder=str(tmp_path), settings=settings, body=body)
        script = subprocess.Popen(
            [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        made.append(script)
        assert script.stdout is not None
        if script.stdout.readline() != "now\n":
            raise AssertionError(script.communicate(timeout=LONG)[1])
        return script

    yield start
    for script in made:
        script.kill()
        script.communicate(timeout=LONG)


def engine_command(traces: Traces, *arguments: str) -> list[str]:
    words = [word.format(prefix=traces.prefix, folder=traces.folder) for word in arguments]
    return [sys.executable, "-S", str(ENGINE), "--port={port}", *words]


@pytest.mark.parametrize("moment", ["starting", "running"])
def test_server_that_makes_shm_until_its_owner_is_killed(
    moment: str, owner: Callable[..., subprocess.Popen[str]], traces: Traces
) -> None:
    arguments, body = MOMENTS[moment]
    command = engine_command(traces, *arguments, "--make-shm={prefix}", "--default-term", "--say-when-held=held")
    script = owner(body, command)
    wait_until(lambda: len(traces.objects()) > 20)
    script.kill()
    wait_until(lambda: traces.left() == [])


ENDS: dict[str, signal.Signals] = {number.name: number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)}


OWNER_ENDS = {f"{how}-{moment}": (how, moment) for how in (*ENDS, "os._exit") for moment in MOMENTS}
OWNER_ENDS_AT_NIGHT = (
    "SIGTERM-starting",
    "SIGTERM-stopping",
    "SIGHUP-starting",
    "SIGHUP-running",
    "os._exit-running",
    "os._exit-stopping",
)


@pytest.mark.parametrize(("how", "moment"), sampled(OWNER_ENDS, nightly=OWNER_ENDS_AT_NIGHT))
def test_end_of_the_owner(how: str, moment: str, owner: Callable[..., subprocess.Popen[str]], traces: Traces) -> None:
    arguments, body = MOMENTS[moment]
    command = engine_command(traces, *arguments, *OBJECTS, *FAMILY, "--leak-port", "--say-when-held=held")
    if how == "os._exit":
        body = "signal.signal(signal.SIGUSR1, lambda *_: os._exit(3))\n" + body
    # Time to look at what stops.
    settings = {"stop_timeout": 10} if moment == "stopping" else {}
    script = owner(body, command, **settings)
    traces.follow()
    assert len(traces.objects()) == 2
    assert len(traces.processes()) >= 7
    script.send_signal(ENDS.get(how, signal.SIGUSR1))
    assert script.wait(LONG) == (3 if how == "os._exit" else -ENDS[how])
    wait_until(lambda: traces.left() == [])


# Servers that are stopped by a command.


class Daemon:
    """Plays docker's daemon: when a client asks for it, it starts a "container" that is nobody's descendant.

    Attributes:
        client: The command that asks for a container and waits.
        stop: The command that ends the container.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        request, pid_file = folder / "request", folder / "pid"
        self.client = ["/bin/sh", "-c", f"echo {{port}} > {request}.new; mv {request}.new {request}; exec sleep 600"]
        self.stop = f"kill $(cat {pid_file})"
        self.container: subprocess.Popen[bytes] | None = None
        self._request, self._pid_file, self._arguments = request, pid_file, arguments
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._quit.wait(0.01):
            if self._request.exists():
                port = self._request.read_text().strip()
                command = [sys.executable, "-S", str(ENGINE), "--port", port, *self._arguments]
                self.container = subprocess.Popen(command, start_new_session=True)
                self._pid_file.write_text(str(self.container.pid))
                return

    @property
    def running(self) -> bool:
        return self.container is not None and self.container.poll() is None

    def close(self) -> None:
        self._quit.set()
        self._thread.join(LONG)
        if self.container is not None:
            self.container.kill()
            self.container.wait(LONG)


@pytest.fixture
def docker(tmp_path: Path, traces: Traces) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.close()


@pytest.fixture
def client_server(tmp_path: Path, docker: Daemon) -> Iterator[Callable[..., CommandServer]]:
    """Make servers whose launched process is a client only, and that are stopped by ``stop``."""
    made: list[CommandServer] = []

    def make(stop: str | None = None, **settings: Any) -> CommandServer:
        server = CommandServer(
            **{
                "launch_command": docker.client,
                "stop_command": ["/bin/sh", "-c", stop or docker.stop],
                # The container's listener is not known to be ours: it must be nobody else's.
                "port": port_of_nobody(),
                "own_listener": False,
                "output_dir": tmp_path / "server_logs",
                "startup_timeout": LONG,
                "stop_timeout": STOP_TIMEOUT,
                **settings,
            }
        )
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


@pytest.mark.parametrize("debug_mode", sampled({"debug": True, "plain": False}, nightly=["plain"]))
def test_stop_command_stops(
    debug_mode: bool, client_server: Callable[..., CommandServer], docker: Daemon, traces: Traces
) -> None:
    server = client_server(debug_mode=debug_mode, stop_timeout=10)
    warnings = warnings_of(server)
    server.start()
    assert docker.running
    server.stop()
    wait_until(lambda: not docker.running)
    assert warnings == []
    assert traces.left() == []


def test_stop_command_gets_placeholders_and_environment(
    client_server: Callable[..., CommandServer], docker: Daemon, tmp_path: Path
) -> None:
    script = f"echo {{host}}:{{port}} $COLOUR > {tmp_path}/told; {docker.stop}"
    server = client_server(script, env_vars={"COLOUR": "blue"}).start()
    port = server.port
    server.stop()
    assert (tmp_path / "told").read_text() == f"127.0.0.1:{port} blue\n"


@pytest.mark.parametrize(
    ("after", "problem", "debug_mode"),
    sampled(
        {
            "fails-debug": ("exit 3", "ended with exit code 3", True),
            "fails-plain": ("exit 3", "ended with exit code 3", False),
            "hangs-debug": ("exec sleep 600", "did not end within 1 s", True),
            "hangs-plain": ("exec sleep 600", "did not end within 1 s", False),
        },
        nightly=["fails-debug", "hangs-plain"],
    ),
)
def test_stop_command_that_misbehaves_is_a_warning(
    after: str,
    problem: str,
    debug_mode: bool,
    client_server: Callable[..., CommandServer],
    docker: Daemon,
    traces: Traces,
) -> None:
    server = client_server(f"{docker.stop}; {after}", debug_mode=debug_mode)
    warnings = warnings_of(server)
    server.start()
    if problem.startswith("did not"):
        # The client is killed too, before anybody has asked it to end.
        with contextlib.suppress(LeakError):
            server.stop()
    else:
        server.stop()
    wait_until(lambda: not docker.running)
    assert traces.left() == []
    assert any(f"its stop_command {problem}" in warning for warning in warnings), warnings


def test_stop_command_that_does_not_exist_is_refused(client_server: Callable[..., CommandServer]) -> None:
    server = client_server(stop_command=["/nonexistent/docker", "stop"])
    with pytest.raises(ServerStartupError, match=r"'/nonexistent/docker' does not exist.*'stop_command'"):
        server.start()
    assert server.launches == 0


def test_stop_command_runs_when_the_client_dies(
    client_server: Callable[..., CommandServer], docker: Daemon, traces: Traces
) -> None:
    server = client_server(debug_mode=True).start()
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(LONG)
    wait_until(lambda: not docker.running)
    server.stop()
    assert traces.left() == []


def test_stop_command_runs_when_the_start_fails(tmp_path: Path, traces: Traces) -> None:
    docker = Daemon(tmp_path, "--loading=600")
    server = CommandServer(
        launch_command=docker.client,
        stop_command=["/bin/sh", "-c", docker.stop],
        port=port_of_nobody(),
        own_listener=False,
        output_dir=tmp_path,
        startup_timeout=15,
        stop_timeout=STOP_TIMEOUT,
    )
    try:
        with pytest.raises(ServerStartupError, match="503"):
            server.start()
        assert docker.container is not None
        wait_until(lambda: not docker.running)
    finally:
        docker.close()
    assert traces.left() == []


def test_stop_command_runs_when_the_supervisor_is_killed(
    client_server: Callable[..., CommandServer], docker: Daemon, traces: Traces
) -> None:
    server = client_server(debug_mode=True).start()
    kill_supervisor(server)
    assert server.wait_death(LONG)
    wait_until(lambda: not docker.running)
    server.stop()
    assert traces.left() == []


@pytest.mark.parametrize(
    ("how", "debug_mode"),
    sampled(
        {f"{how}-{mode}": (how, mode == "debug") for how in ENDS for mode in ("debug", "plain")},
        nightly=["SIGKILL-plain", "SIGTERM-debug", "SIGHUP-debug", "SIGHUP-plain"],
    ),
)
def test_stop_command_runs_when_the_owner_ends(
    how: str, debug_mode: bool, owner: Callable[..., subprocess.Popen[str]], docker: Daemon, traces: Traces
) -> None:
    script = owner(
        MOMENTS["running"][1],
        docker.client,
        debug_mode=debug_mode,
        stop_command=["/bin/sh", "-c", docker.stop],
        port=port_of_nobody(),
        own_listener=False,
    )
    traces.follow()
    assert docker.running
    script.send_signal(ENDS[how])
    wait_until(lambda: not docker.running)
    assert script.wait(LONG) == -ENDS[how]
    wait_until(lambda: traces.left() == [])
