"""The tracker: it follows real processes as the supervisor does, and survives whatever its watches do."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.launcher.leaks import tracker as module
from pytest_infserver.launcher.leaks.holdings import Holdings
from pytest_infserver.launcher.leaks.report import from_message
from pytest_infserver.launcher.leaks.temporary_files import new_path
from pytest_infserver.launcher.leaks.tracker import Tracker
from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.processes.table import Process, read_process

from .holders import SHM, Holder, linux_only

pytestmark = [linux_only, pytest.mark.usefixtures("hard_limit")]

Start = Callable[..., Holder]
Track = Callable[..., Tracker]
EVERYTHING = f"""{SHM}
import socket
folder, name = sys.argv[1:]
hold(f"/dev/shm/{{name}}", "mapping")
libc.sem_open.restype = ctypes.c_void_p
assert libc.sem_open(f"/{{name}}".encode(), os.O_CREAT, 0o600, 1)
say(libc.shmget(0, 4096, 0o1600))
unix = socket.socket(socket.AF_UNIX)
unix.bind(f"{{folder}}/s")
listener = socket.create_server(("127.0.0.1", 0))
say(listener.getsockname()[1])
open(f"{{folder}}/file", "w").close()
"""


@pytest.fixture
def track() -> Iterator[Track]:
    """Make trackers: ``track(owner_pid, parent_of_tmpdir)``."""
    made: list[Tracker] = []

    def make(owner_pid: int, parent: str | Path) -> Tracker:
        made.append(Tracker(owner_pid, new_path(str(parent))))
        return made[-1]

    yield make
    for tracker in made:
        if tracker.alarm is not None:
            os.close(tracker.alarm)


@pytest.fixture
def tracker(track: Track, tmp_path: Path) -> Tracker:
    # A short path, as unix sockets need.
    return track(os.getpid(), "/tmp" if len(str(tmp_path)) > 60 else tmp_path)


def finish(tracker: Tracker, stuck: Sequence[int] = ()) -> dict[str, Any]:
    """Return what the tracker finds at the end, as the owner gets it."""
    message: dict[str, Any] = json.loads(json.dumps(tracker.finish(stuck)))
    return message


def found(message: dict[str, Any], *tokens: str) -> list[Finding]:
    """Return those of the findings that are this test's."""
    findings = from_message(message["findings"])
    return [finding for finding in findings if any(token in finding.name for token in tokens)]


def test_everything_that_a_server_leaves_is_found_and_removed(tracker: Tracker, start: Start, shm: str) -> None:
    folder = tracker.tmpdir
    server = start(EVERYTHING, folder, shm)
    tracker.look([server.process])
    identity = server.process
    command = server.holdings.command
    server.end()
    message = finish(tracker)
    kinds = {finding.kind: finding for finding in found(message, shm, f"shmid {server.said[0]}", f"{folder}/")}
    assert kinds.keys() == {"shm", "semaphore", "sysv", "socket", "file"}
    assert all(finding.fails and finding.removed for finding in kinds.values())
    assert {finding.pid for finding in kinds.values()} == {server.pid, None}
    assert message["processes"] == [[server.pid, identity.start, command]]
    assert message["not_checked"] == []
    assert not os.path.exists(str(folder))
    with socket.create_server(("127.0.0.1", int(server.said[1]))):
        pass


def test_tidy_server_leaves_nothing(tracker: Tracker, start: Start) -> None:
    server = start("pass")
    tracker.look([server.process])
    folder = str(tracker.tmpdir)
    server.end()
    message = finish(tracker)
    assert found(message, folder) == []
    assert [finding for finding in from_message(message["findings"]) if finding.fails] == []
    assert not os.path.exists(folder)


def test_what_this_process_holds_is_never_the_servers(tracker: Tracker, start: Start, shm: str) -> None:
    path = Path("/dev/shm") / shm
    with path.open("w") as file:
        file.truncate(4096)
        server = start(f"{SHM}\nhold(sys.argv[1])", path)
        tracker.look([server.process])
    server.end()
    assert found(finish(tracker), shm) == []
    path.unlink()


def test_processes_that_did_not_end(tracker: Tracker, start: Start) -> None:
    root, own = start("os.setsid()", "root"), start("os.setsid()")
    same = root.process._replace(pid=own.pid, group=root.pid, session=root.pid, start=own.process.start)
    group = same._replace(group=own.pid)
    tracker.note_left([root.process, own.process, same, group], root.pid, "3 s of the request to stop")
    processes = [finding for finding in found(finish(tracker, stuck=[root.pid]), "") if finding.kind == "process"]
    end = "did not end within 3 s of the request to stop"
    assert [finding.detail for finding in processes] == [
        f"the root process, {end}",
        f"in a session of its own, {end}",
        f"in the server's process group, {end}",
        f"in a process group of its own, {end}",
    ]
    assert [finding.removed for finding in processes] == [False, True, True, True]
    assert processes[0].command == processes[0].name
    assert processes[0].name.endswith(" root")
    assert all(finding.age is not None and 0 <= finding.age < 100 for finding in processes)


def test_port_of_what_did_not_end_is_named_but_not_the_roots(tracker: Tracker, start: Start) -> None:
    listen = "import socket\nlistener = socket.create_server(('127.0.0.1', 0))\nsay(listener.getsockname()[1])"
    root, other = start(listen), start(listen)
    tracker.note_left([root.process, other.process], root.pid, "1 s")
    for holder in (root, other):
        holder.end()
    ports = [finding for finding in from_message(finish(tracker)["findings"]) if finding.kind == "port"]
    assert [(finding.name, finding.pid, finding.removed) for finding in ports] == [
        (f"127.0.0.1:{other.said[0]}", other.pid, True)
    ]


def test_process_without_a_command_line_keeps_the_one_it_was_seen_with(tracker: Tracker, start: Start) -> None:
    seen, unseen = start("pass", "seen"), start("pass", "unseen")
    process, unseen_process = seen.process, unseen.process
    tracker.look([process])
    for holder in (seen, unseen):
        holder.end()
    tracker.note_left([process, unseen_process], 0, "1 s")
    message = finish(tracker)
    first, second = [finding for finding in from_message(message["findings"]) if finding.kind == "process"]
    assert first.name.endswith(" seen")
    assert (second.name, second.command) == ("no command line", "")
    assert [entry[2].rpartition(" ")[2] for entry in message["processes"]] == ["seen", ""]


def test_odd_bytes_survive_the_way_to_the_owner(tracker: Tracker) -> None:
    name = b"\xff\xfe-\x1b[2J-\xc3\xbc"
    Path(str(tracker.tmpdir), os.fsdecode(name)).write_text("")
    [finding] = found(finish(tracker), str(tracker.tmpdir))
    assert os.fsencode(os.path.basename(finding.name)) == name
    assert finding.removed


class Broken:
    """A watch that fails."""

    what = "broken things"

    def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
        raise ValueError("odd contents")

    def left(self) -> list[Finding]:
        raise ValueError("odd contents")


@pytest.mark.parametrize("when", ["made", "looks", "says what is left"])
def test_watch_that_fails_is_said_and_does_not_hurt_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, track: Track, start: Start, shm: str, when: str
) -> None:
    class Half(Broken):
        def __init__(self) -> None:
            if when == "made":
                raise ValueError("odd contents")

        def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
            if when == "looks":
                super().look(tree, owner)

    monkeypatch.setattr(module, "SysVSharedMemory", Half)
    tracker = track(os.getpid(), tmp_path)
    server = start(f"{SHM}\nhold(sys.argv[1])", Path("/dev/shm") / shm)
    for _ in range(2):
        tracker.look([server.process])
    server.end()
    message = finish(tracker)
    assert message["not_checked"] == ["broken things: ValueError: odd contents"]
    assert [finding.kind for finding in found(message, shm)] == ["shm"]


def test_ports_that_cannot_be_looked_for_do_not_hurt(
    monkeypatch: pytest.MonkeyPatch, tracker: Tracker, start: Start
) -> None:
    server = start("pass")

    def fail() -> list[object]:
        raise ValueError("odd contents")

    monkeypatch.setattr("pytest_infserver.launcher.leaks.ports.listeners", fail)
    tracker.note_left([server.process], 0, "1 s")
    message = finish(tracker)
    assert message["not_checked"] == ["listening ports: ValueError: odd contents"]
    assert [entry["kind"] for entry in message["findings"] if entry["pid"] == server.pid] == ["process"]


def test_temporary_directory_that_cannot_be_looked_at_does_not_hurt(
    monkeypatch: pytest.MonkeyPatch, tracker: Tracker
) -> None:
    def fail() -> list[Finding]:
        raise ValueError("odd contents")

    assert tracker._directory is not None
    monkeypatch.setattr(tracker._directory, "left", fail)
    assert finish(tracker)["not_checked"] == ["temporary files: ValueError: odd contents"]
    tracker._directory.remove()


def test_no_place_for_temporary_files_is_said(track: Track) -> None:
    tracker = track(os.getpid(), "/nonexistent")
    assert tracker.tmpdir is None
    [reason] = finish(tracker)["not_checked"]
    assert re.fullmatch(r"temporary files: /nonexistent/infs-\w+ cannot be made \(No such file or directory\)", reason)


def test_elsewhere_than_on_linux_it_says_what_is_not_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, track: Track, start: Start
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    tracker = track(os.getpid(), tmp_path)
    server = start("pass")
    tracker.look([server.process])
    tracker.note_left([server.process], server.pid, "1 s")
    Path(str(tracker.tmpdir), "file").write_text("")
    message = finish(tracker)
    assert message["not_checked"] == ["shared memory, sockets and ports: not on darwin"]
    assert [entry["kind"] for entry in message["findings"]] == ["process", "file"]
    assert [entry[0] for entry in message["processes"]] == [server.pid]


def test_owner_that_is_gone_does_no_harm(tmp_path: Path, track: Track, start: Start) -> None:
    owner = start("pass")
    tracker = track(owner.pid, tmp_path)
    owner.end()
    server = start("pass")
    tracker.look([server.process])
    assert finish(tracker)["not_checked"] == []


def test_process_that_has_just_ended_does_no_harm(tracker: Tracker) -> None:
    gone = Process(2**22 + 1, 1, "1", False, 1, 1)
    assert read_process(gone.pid) is None
    tracker.look([gone])
    tracker.note_left([gone], 0, "1 s")
    message = finish(tracker)
    assert message["not_checked"] == []
    assert message["processes"] == [[gone.pid, "1", ""]]


@pytest.mark.parametrize("name", ["listeners", "unix_sockets"])
@pytest.mark.parametrize("later", [True, False])
def test_sockets_that_cannot_be_seen_are_not_checked_and_none_is_removed(
    name: str, later: bool, track: Track, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise PermissionError(13, "Permission denied", "/proc/net")

    def restrict() -> None:
        monkeypatch.setattr(f"pytest_infserver.launcher.leaks.{where}.{name}", fail)

    where, what = {"listeners": ("ports", "listening ports"), "unix_sockets": ("unix_sockets", "unix sockets")}[name]
    if not later:
        restrict()
    tracker = track(os.getpid(), "/tmp" if len(str(tmp_path)) > 60 else tmp_path)
    path = Path(f"/tmp/infs-{os.getpid()}-{name}-{later}")
    server = start(f"import socket\nunix = socket.socket(socket.AF_UNIX)\nunix.bind({str(path)!r})")
    tracker.look([server.process])
    if later:
        restrict()
    server.end()
    message = finish(tracker)
    assert message["not_checked"] == [f"{what}: PermissionError: [Errno 13] Permission denied: '/proc/net'"]
    assert path.exists() == (name == "unix_sockets")
    path.unlink(missing_ok=True)
