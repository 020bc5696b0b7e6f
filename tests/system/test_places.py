"""Folders and locks that runs and users of one machine share."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_user import NOBODY, in_child, root_only

from pytest_infserver.system.disk import places
from pytest_infserver.system.disk.files import UnsafePathError
from pytest_infserver.system.disk.places import require_state_dir, shared_lock_file, state_dir

DEVICES = "pytest-infserver-devices"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which all users have their locks, as in a machine of this test's own."""
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def open_umask() -> Iterator[None]:
    previous = os.umask(0)
    yield
    os.umask(previous)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_shared_folder_lets_anybody_add_and_nobody_remove_anothers(state: Path) -> None:
    file = shared_lock_file("x.lock")
    assert file == state / DEVICES / "x.lock"
    assert not file.exists()
    assert mode(file.parent) == 0o1777
    assert shared_lock_file("x.lock") == file


@pytest.mark.parametrize("half", [0o755, 0o777])
def test_shared_folder_that_was_made_only_half_is_mended(state: Path, half: int) -> None:
    (state / DEVICES).mkdir()
    (state / DEVICES).chmod(half)
    assert mode(shared_lock_file("x.lock").parent) == 0o1777


def test_shared_folder_is_the_machines_own_whatever_tmpdir_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    before = mode(Path("/tmp"))
    assert shared_lock_file("x.lock") == Path("/tmp/pytest-infserver-x.lock")
    assert mode(Path("/tmp")) == before


@pytest.mark.parametrize(
    ("planted", "words"), [("link", "no folder but a link"), ("dangling", "but a link"), ("file", "is no folder")]
)
def test_what_is_no_folder_is_refused(state: Path, planted: str, words: str) -> None:
    (state / "elsewhere").mkdir(mode=0o700)
    if planted == "file":
        (state / DEVICES).write_text("")
    else:
        (state / DEVICES).symlink_to(state / ("elsewhere" if planted == "link" else "absent"))
    with pytest.raises(OSError, match=f"{words}|File exists"):
        shared_lock_file("x.lock")
    assert mode(state / "elsewhere") == 0o700
    assert not (state / "absent").exists()


@root_only
def test_folder_of_another_user_is_refused(state: Path) -> None:
    (state / DEVICES).mkdir()
    (state / DEVICES).chmod(0o1777)
    os.chown(state / DEVICES, NOBODY, NOBODY)
    with pytest.raises(UnsafePathError, match=f"belongs to another user .uid {NOBODY}., who could remove them"):
        shared_lock_file("x.lock")


@root_only
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("bits", "words"), [(0o777, "is not sticky: `chmod +t` it"), (0o1777, "")])
def test_folder_of_root_has_to_be_sticky(public: Path, monkeypatch: pytest.MonkeyPatch, bits: int, words: str) -> None:
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(public))
    (public / DEVICES).mkdir()
    (public / DEVICES).chmod(bits)
    said = in_child(lambda: shared_lock_file("x.lock"), NOBODY)
    assert words in said
    assert said.endswith("x.lock") == (not words)


@pytest.mark.parametrize("parent", ["/proc", "/dev/null", "/dev/null/x"])
def test_no_place_for_a_shared_folder(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFSERVER_STATE_DIR", parent)
    with pytest.raises(OSError, match=parent):
        shared_lock_file("x.lock")


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
    with pytest.raises(UnsafePathError, match=r"no private folder for locks: .*set INFSERVER_STATE_DIR"):
        require_state_dir()


@root_only
def test_private_folder_that_somebody_else_has_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"pytest-infserver-{os.getuid()}"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    assert state_dir() is None
    assert places.servers_dir() is None
    with pytest.raises(UnsafePathError, match=f"{folder} is not a folder of this user alone"):
        require_state_dir()
