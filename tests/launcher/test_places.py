"""Folders and locks that runs and users of one machine share."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_infserver.launcher.places import shared_dir, state_dir, take_lock, take_shared_lock

AnotherUser = Callable[[], "contextlib.AbstractContextManager[None]"]
FD_FOLDER = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
NOBODY = 65534
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
TRY_LOCK = """
import fcntl, os, sys
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(1)
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that all users share, as in a machine of this test's own."""
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path))
    found = shared_dir()
    assert found is not None
    return found


@pytest.fixture
def open_umask() -> Iterator[None]:
    previous = os.umask(0)
    yield
    os.umask(previous)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def others_can_lock(path: Path) -> bool:
    """Tell whether another process gets the lock."""
    return subprocess.run([sys.executable, "-I", "-S", "-c", TRY_LOCK, path], timeout=60, check=False).returncode == 0


def test_shared_folder_lets_anybody_add_and_nobody_remove_anothers(shared: Path, tmp_path: Path) -> None:
    assert shared.parent == tmp_path
    assert mode(shared) == 0o1777
    assert shared_dir() == shared


def test_shared_folder_that_was_made_only_half_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path))
    (tmp_path / "pytest-infserver-devices").mkdir(mode=0o755)
    found = shared_dir()
    assert found is not None
    assert mode(found) == 0o1777


def test_shared_folder_is_the_same_whatever_tmpdir_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    existed = Path("/tmp/pytest-infserver-devices").exists()
    found = shared_dir()
    assert found == Path("/tmp/pytest-infserver-devices")
    if not existed:
        assert mode(found) == 0o1777
        # Unless another run has begun to use it.
        with contextlib.suppress(OSError):
            found.rmdir()


def test_shared_folder_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "pytest-infserver-devices").symlink_to(tmp_path / "elsewhere")
    assert shared_dir() is None
    assert mode(tmp_path / "elsewhere") == 0o700


@pytest.mark.parametrize("parent", ["/proc", "/dev/null", "/dev/null/x"])
def test_no_place_for_a_shared_folder(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFSERVER_STATE_DIR", parent)
    assert shared_dir() is None


def test_file_in_place_of_the_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path))
    (tmp_path / "pytest-infserver-devices").write_text("")
    assert shared_dir() is None


@pytest.mark.parametrize("take", [take_lock, take_shared_lock])
@pytest.mark.usefixtures("nothing_left")
def test_second_locker_is_refused_until_the_first_lets_go(take: object, shared: Path) -> None:
    assert callable(take)
    path = shared / "x.lock"
    lock = take(path)
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


@pytest.mark.parametrize("take", [take_lock, take_shared_lock])
def test_locks_are_not_inherited_by_programs(take: object, shared: Path) -> None:
    assert callable(take)
    lock = take(shared / "x.lock")
    assert not os.get_inheritable(lock)
    os.close(lock)


def test_lock_that_is_refused_leaves_no_descriptor_open(shared: Path) -> None:
    lock = take_shared_lock(shared / "x.lock")
    assert lock is not None
    before = os.listdir(FD_FOLDER)
    assert take_shared_lock(shared / "x.lock") is None
    assert os.listdir(FD_FOLDER) == before
    os.close(lock)


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_lock_file_is_open_to_all_users_whatever_the_umask(shared: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        lock = take_shared_lock(shared / "x.lock")
    finally:
        os.umask(previous)
    assert lock is not None
    assert mode(shared / "x.lock") == 0o666
    os.close(lock)


@pytest.mark.parametrize("target", ["file", "nothing"])
def test_link_in_place_of_a_lock_file_is_refused(shared: Path, tmp_path: Path, target: str) -> None:
    if target == "file":
        (tmp_path / "file").write_text("precious")
        (tmp_path / "file").chmod(0o600)
    (shared / "x.lock").symlink_to(tmp_path / target)
    assert take_shared_lock(shared / "x.lock") is None
    assert (tmp_path / target).exists() == (target == "file")
    if target == "file":
        assert mode(tmp_path / "file") == 0o600
        assert (tmp_path / "file").read_text() == "precious"


def test_folder_in_place_of_a_lock_file_is_refused(shared: Path) -> None:
    (shared / "x.lock").mkdir()
    assert take_shared_lock(shared / "x.lock") is None


def test_lock_in_a_folder_that_does_not_exist(shared: Path) -> None:
    assert take_shared_lock(shared / "gone" / "x.lock") is None
    with pytest.raises(FileNotFoundError):
        take_lock(shared / "gone" / "x.lock")


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a shared folder that every user can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)
        patch.setenv("INFSERVER_STATE_DIR", folder)
        found = shared_dir()
        assert found is not None
        yield found


@root_only
def test_lock_of_another_user(public: Path, ordinary_user: AnotherUser) -> None:
    lock = take_shared_lock(public / "x.lock")
    assert lock is not None
    with ordinary_user():
        assert take_shared_lock(public / "x.lock") is None
    os.close(lock)
    with ordinary_user():
        lock = take_shared_lock(public / "x.lock")
    assert lock is not None
    os.close(lock)


@root_only
def test_lock_made_by_another_user(public: Path, ordinary_user: AnotherUser) -> None:
    with ordinary_user():
        lock = take_shared_lock(public / "x.lock")
    assert lock is not None
    assert (public / "x.lock").stat().st_uid == NOBODY
    assert take_shared_lock(public / "x.lock") is None
    os.close(lock)
    lock = take_shared_lock(public / "x.lock")
    assert lock is not None
    os.close(lock)


@root_only
def test_file_that_another_user_keeps_to_himself_is_no_lock(public: Path, ordinary_user: AnotherUser) -> None:
    (public / "x.lock").write_text("")
    (public / "x.lock").chmod(0o600)
    with ordinary_user():
        assert take_shared_lock(public / "x.lock") is None


def test_private_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_umask: None) -> None:
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path / "state" / "dir"))
    found = state_dir()
    assert found == tmp_path / "state" / "dir"
    assert mode(found) == 0o700


@pytest.mark.parametrize("spoil", ["open to others", "a file", "a link", "not makeable"])
def test_private_folder_that_is_not_private_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    folder, runtime = tmp_path / "state", tmp_path / "runtime"
    if spoil == "open to others":
        folder.mkdir()
        folder.chmod(0o750)
    elif spoil == "a file":
        folder.write_text("")
    elif spoil == "a link":
        (tmp_path / "private").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "private")
    else:
        folder = Path("/proc/state")
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert state_dir() == runtime / "pytest-infserver"


@root_only
def test_private_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, runtime = tmp_path / "state", tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert state_dir() == runtime / "pytest-infserver"


def test_private_folder_without_any_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert state_dir() == tmp_path / f"pytest-infserver-{os.getuid()}"


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/proc")
    assert state_dir() is None
