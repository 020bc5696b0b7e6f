"""Lock files, of this user's and of all users: what cannot be opened is not held, and nobody innocent is named."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from other_user import NOBODY, in_child, root_only

from pytest_infserver.system.disk import locks
from pytest_infserver.system.disk.locks import named_holder, sign, take_lock, take_shared_lock, wait_for_lock
from pytest_infserver.system.disk.places import shared_lock_file

pytestmark = pytest.mark.usefixtures("no_descriptor_left", "hard_limit")

TRY_LOCK = """
import fcntl, os, sys
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(1)
"""
Take = Callable[[Path], "int | None"]
BOTH = pytest.mark.parametrize("take", [take_lock, take_shared_lock])


@pytest.fixture
def shared(public: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that all users share, as in a machine of this test's own."""
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(public))
    return shared_lock_file("x.lock").parent


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def others_can_lock(path: Path) -> bool:
    """Return whether another process gets the lock."""
    return subprocess.run([sys.executable, "-I", "-S", "-c", TRY_LOCK, path], timeout=60, check=False).returncode == 0


def taken(path: Path) -> str:
    lock = take_shared_lock(path)
    return "held" if lock is None else "mine"


@BOTH
@pytest.mark.usefixtures("nothing_left")
def test_second_locker_is_refused_until_the_first_lets_go(take: Take, shared: Path) -> None:
    path = shared / "x.lock"
    lock = take(path)
    assert lock is not None
    assert not os.get_inheritable(lock)
    assert take(path) is None
    assert not others_can_lock(path)
    copy = os.dup(lock)
    os.close(lock)
    assert not others_can_lock(path)
    os.close(copy)
    assert others_can_lock(path)
    again = take(path)
    assert again is not None
    os.close(again)


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_lock_file_is_open_to_all_users_whatever_the_umask(shared: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        for take in (take_shared_lock, take_lock):
            lock = take(shared / f"{take.__name__}.lock")
            assert lock is not None
            os.close(lock)
    finally:
        os.umask(previous)
    assert mode(shared / "take_shared_lock.lock") == 0o666
    assert mode(shared / "take_lock.lock") == 0o600


@BOTH
@pytest.mark.parametrize("planted", ["link", "dangling link", "pipe", "folder", "hard link"])
def test_what_is_no_lock_file_is_an_error_and_not_a_lock_that_is_held(
    shared: Path, tmp_path: Path, take: Take, planted: str
) -> None:
    path, precious = shared / "x.lock", shared.parent / "file"
    precious.write_text("precious")
    precious.chmod(0o600)
    if planted == "pipe":
        os.mkfifo(path)
    elif planted == "folder":
        path.mkdir()
    elif planted == "hard link":
        os.link(precious, path)
    else:
        path.symlink_to(precious if planted == "link" else tmp_path / "absent")
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"x\.lock"):
        take(path)
    assert time.monotonic() - begin < 10
    assert named_holder(path) is None
    assert (mode(precious), precious.read_text()) == (0o600, "precious")
    assert not (tmp_path / "absent").exists()


@BOTH
def test_lock_in_a_folder_that_does_not_exist(shared: Path, take: Take) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        take(shared / "gone" / "x.lock")


def test_a_file_system_without_locks(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    lock = take_lock(shared / "x.lock")
    assert lock is not None
    os.close(lock)
    with pytest.raises(OSError, match="not supported"):
        take_shared_lock(shared / "x.lock")


@BOTH
def test_an_interrupt_loses_no_lock(shared: Path, monkeypatch: pytest.MonkeyPatch, take: Take) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(locks.fcntl, "flock", interrupt)
    with pytest.raises(KeyboardInterrupt):
        take(shared / "x.lock")


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_lock_of_another_user(shared: Path) -> None:
    path = shared / "x.lock"
    lock = take_shared_lock(path)
    assert lock is not None
    assert in_child(lambda: taken(path), NOBODY) == "held"
    os.close(lock)
    assert in_child(lambda: taken(path), NOBODY) == "mine"


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_lock_made_by_another_user(shared: Path) -> None:
    path = shared / "x.lock"
    assert in_child(lambda: taken(path), NOBODY) == "mine"
    assert path.stat().st_uid == NOBODY
    lock = take_shared_lock(path)
    assert lock is not None
    os.close(lock)


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_file_that_another_user_keeps_to_himself_is_no_lock(shared: Path) -> None:
    (shared / "x.lock").write_text("")
    (shared / "x.lock").chmod(0o600)
    assert in_child(lambda: taken(shared / "x.lock"), NOBODY).startswith("PermissionError: ")


def test_file_that_is_just_being_made_is_waited_for(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps of its maker it is open to nobody else."""
    real, refusals = locks._open_or_make, [PermissionError(13, "x.lock")] * 3

    def at_first_refused(path: Path) -> int:
        if refusals:
            raise refusals.pop()
        return real(path)

    monkeypatch.setattr(locks, "_open_or_make", at_first_refused)
    lock = take_shared_lock(shared / "x.lock")
    assert lock is not None
    os.close(lock)


def test_waiting_for_a_lock_ends_at_a_limit_that_is_said(shared: Path) -> None:
    path = shared / "x.lock"
    lock = wait_for_lock(path, 0)
    sign(lock)
    with pytest.raises(TimeoutError, match=f".pid {os.getpid()}. has held .*x.lock for more than 0.1 s"):
        wait_for_lock(path, 0.1)
    os.close(lock)


# Who holds it.


@pytest.mark.parametrize("text", [b"", b"nonsense", b"-1", b"0", b"1.5", b"12345678901" * 9, bytes(40)])
def test_nobody_is_named_by_nonsense(shared: Path, text: bytes) -> None:
    (shared / "x.lock").write_bytes(text)
    assert named_holder(shared / "x.lock") is None


def test_a_lock_file_of_eight_gigabytes(shared: Path) -> None:
    path = shared / "x.lock"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    assert named_holder(path) is None
    lock = take_shared_lock(path)
    assert lock is not None
    sign(lock)
    os.close(lock)
    assert path.read_bytes() == str(os.getpid()).encode()
    assert named_holder(path) == os.getpid()


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_a_process_is_named_only_in_a_file_of_its_own_user(shared: Path) -> None:
    path = shared / "x.lock"
    path.write_text(str(os.getpid()))
    assert named_holder(path) == os.getpid()
    # Made by somebody else, who names a process of ours.
    os.chown(path, NOBODY, NOBODY)
    assert named_holder(path) is None
    with subprocess.Popen(["sleep", "20"], user=NOBODY) as process:
        path.write_text(str(process.pid))
        named = named_holder(path)
        process.kill()
    assert named == process.pid
    # It is gone: nobody can tell whose it was, unless the file is ours.
    assert named_holder(path) is None
    os.chown(path, 0, 0)
    assert named_holder(path) == process.pid
