"""Log files: bytes from a foreign program, of any size."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from descriptors import open_descriptors

from pytest_infserver.launcher.diagnosis.log import MAX_READ, ServerLog
from pytest_infserver.launcher.diagnosis.log_follower import LogFollower


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], ServerLog]:
    def make(data: bytes) -> ServerLog:
        log = ServerLog(tmp_path, "server")
        for descriptor in log.open():
            os.close(descriptor)
        log.path.write_bytes(data)
        return log

    return make


def test_place(tmp_path: Path) -> None:
    assert ServerLog(tmp_path, "llama").path == tmp_path / "llama" / "server.log"


def test_nothing_yet(tmp_path: Path) -> None:
    log = ServerLog(tmp_path, "server")
    assert (log.size(), log.read(), log.read_bytes(0, 10), log.read_head(0, 10)) == (0, "", (b"", 0), b"")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\n", "plain\n"),
        (b"windows\r\nlines\r\n", "windows\nlines\n"),
        (b"bad \xff\xfe bytes", "bad \ufffd\ufffd bytes"),
        ("ä€😀".encode(), "ä€😀"),
        (b"nul \0", "nul \0"),
    ],
)
def test_text(write: Callable[[bytes], ServerLog], data: bytes, text: str) -> None:
    assert write(data).read() == text


def test_parts(write: Callable[[bytes], ServerLog]) -> None:
    log = write(b"0123456789")
    assert log.size() == 10
    assert log.read(4) == "456789"
    assert log.read_bytes(2, 3) == (b"789", 5)
    assert log.read_head(2, 3) == b"234"
    assert log.read(0, 4).splitlines()[0] == f"[... 6 bytes left out, see {log.path}]"


def test_what_is_new(write: Callable[[bytes], ServerLog]) -> None:
    log = write(b"0123456789")
    assert log.read_new(4, 100) == (b"456789", 0, 10)
    assert log.read_new(4, 2) == (b"89", 4, 10)
    assert log.read_new(10, 100) == (b"", 0, 10)
    # Truncated meanwhile.
    assert log.read_new(12, 100) == (b"0123456789", 0, 10)
    log.path.unlink()
    assert log.read_new(4, 100) == (b"", 0, 4)


def test_each_byte_of_a_growing_log_is_read_once(write: Callable[[bytes], ServerLog]) -> None:
    log, position, seen = write(b""), 0, b""
    written = b"".join(b"line %d\n" % number for number in range(20_000))

    def grow() -> None:
        with log.path.open("ab", buffering=0) as file:
            for at in range(0, len(written), 7):
                file.write(written[at : at + 7])

    writer = threading.Thread(target=grow)
    writer.start()
    while writer.is_alive() or position < len(written):
        data, left_out, position = log.read_new(position, len(written))
        assert left_out == 0
        seen += data
        assert position == len(seen)
    writer.join()
    assert seen == written


def test_truncated_log_is_read_from_its_beginning(write: Callable[[bytes], ServerLog]) -> None:
    assert write(b"new").read(1000) == "new"


def test_character_cut_in_two_is_no_error(write: Callable[[bytes], ServerLog]) -> None:
    assert write("ää".encode()).read(1) == "\ufffdä"


def open_log(log: ServerLog, text: bytes) -> int:
    """Write to a log as a server does; returns the descriptor that locks its folder."""
    output, lock = log.open()
    os.write(output, text)
    os.close(output)
    return lock


def test_restart_appends_and_a_new_server_keeps_the_previous_log(tmp_path: Path) -> None:
    first, second = ServerLog(tmp_path, "server"), ServerLog(tmp_path, "server")
    for text in (b"one ", b"two "):
        os.close(open_log(first, text))
    assert first.path.read_bytes() == b"one two "
    os.close(open_log(second, b"three"))
    assert second.path.read_bytes() == b"three"
    assert second.path.with_name("server.previous.log").read_bytes() == b"one two "


def test_servers_of_one_name_at_the_same_time(tmp_path: Path) -> None:
    logs = [ServerLog(tmp_path, "server") for _ in range(3)]
    locks = [open_log(log, b"x") for log in logs]
    assert [log.path.parent.name for log in logs] == ["server", "server-2", "server-3"]
    os.close(locks[0])
    os.close(locks[2])
    # A restart goes on where it was, also when a lower number is free by now.
    os.close(open_log(logs[2], b"y"))
    assert logs[2].path.parent.name == "server-3"
    assert logs[2].path.read_bytes() == b"xy"
    os.close(locks[1])


def test_log_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "server").write_text("in the way")
    with pytest.raises(OSError):
        ServerLog(tmp_path, "server").open()


@pytest.mark.usefixtures("nothing_left")
def test_log_of_a_gigabyte_costs_no_memory(tmp_path: Path) -> None:
    """Sparse on disk; in a process of its own, whose peak tells."""
    code = """
import os, resource, sys
from pathlib import Path
from pytest_infserver.launcher.diagnosis import root_cause
from pytest_infserver.launcher.diagnosis.log import ServerLog

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 * 1024 if sys.platform == "darwin" else 1024)

log = ServerLog(Path(sys.argv[1]), "big")
for descriptor in log.open():
    os.close(descriptor)
with log.path.open("wb") as file:
    file.write(b"first line\\nValueError: the cause\\n")
    file.seek(1 << 30)
    file.write(b"\\nlast line\\n")
before = peak()
print(len(log.read()) <= 70_000, root_cause.root_cause(log), root_cause.last_lines(log, 1))
print(root_cause.reports_port_taken(log, lambda port: port in (None, 8000)), peak() - before < 100)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "True ValueError: the cause ['last line']\nFalse True\n"
    assert MAX_READ <= 1 << 20


# What others may have put there.


@pytest.mark.usefixtures("hard_limit")
@pytest.mark.parametrize("planted", ["pipe", "link", "dangling link", "socket"])
def test_what_is_no_log_is_an_error_with_words(tmp_path: Path, planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, precious = tmp_path / "server" / "server.log", tmp_path / "precious"
    path.parent.mkdir()
    precious.write_text("precious")
    if planted == "pipe":
        os.mkfifo(path)
    elif planted == "socket":
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("server.log")
    else:
        path.symlink_to(precious if planted == "link" else tmp_path / "absent")
    before = open_descriptors()
    log = ServerLog(tmp_path, "server")
    with pytest.raises(OSError, match=r"server\.log is a (pipe|link|socket) and not an ordinary file: remove it"):
        log.open()
    assert open_descriptors() == before
    # Nor does a reader wait, or follow.
    assert (log.read(), log.read_head(0, 9), log.read_new(0, 9)) == ("", b"", (b"", 0, 0))
    assert LogFollower(frozenset()).new_lines(path, 0) == []
    assert precious.read_text() == "precious"
    assert not (tmp_path / "absent").exists()


@pytest.mark.usefixtures("hard_limit")
@pytest.mark.parametrize("name", [".lock", "server.previous.log"])
def test_other_files_of_a_log_are_no_pipes_and_links_either(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    os.close(open_log(ServerLog(tmp_path, "server"), b"old"))
    planted = tmp_path / "server" / name
    planted.unlink(missing_ok=True)
    if name == ".lock":
        os.mkfifo(planted)
        with pytest.raises(OSError, match=r"\.lock is a pipe"):
            ServerLog(tmp_path, "server").open()
    else:
        planted.symlink_to(precious)
        os.close(open_log(ServerLog(tmp_path, "server"), b"new"))
        assert planted.read_bytes() == b"old"
    assert precious.read_text() == "precious"


def test_nobody_else_can_write_a_log_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        os.close(open_log(ServerLog(tmp_path / "logs", "server"), b"x"))
    finally:
        os.umask(previous)
    for path in (tmp_path / "logs").rglob("*"):
        assert not path.stat().st_mode & 0o022, path
