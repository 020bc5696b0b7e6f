"""The server's own temporary directory: what is in it is named, and all of it goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_infserver.launcher.leaks.temporary_files import TemporaryDirectory, new_path
from pytest_infserver.leak_finding import Finding

from .holders import root_only

AnotherUser = Callable[[], "contextlib.AbstractContextManager[None]"]


def made_in(parent: Path) -> TemporaryDirectory:
    directory = TemporaryDirectory(new_path(str(parent)))
    directory.make()
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> TemporaryDirectory:
    return made_in(tmp_path)


def make(directory: TemporaryDirectory, name: str) -> Path:
    return Path(directory.path) / name


def test_directory_is_private_and_short_and_its_own(tmp_path: Path, directory: TemporaryDirectory) -> None:
    status = os.stat(directory.path)
    assert stat.S_ISDIR(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert Path(directory.path).parent == tmp_path
    assert len(Path(directory.path).name) <= 16
    assert new_path(str(tmp_path)) != directory.path


def test_empty_directory_is_no_finding_and_goes(directory: TemporaryDirectory) -> None:
    assert directory.left() == []
    assert not os.path.exists(directory.path)


@pytest.mark.parametrize("removed", ["the directory", "its parent"])
def test_directory_that_is_gone_is_no_finding(directory: TemporaryDirectory, tmp_path: Path, removed: str) -> None:
    shutil.rmtree(directory.path if removed == "the directory" else tmp_path)
    assert directory.left() == []


def test_file(directory: TemporaryDirectory) -> None:
    path = make(directory, "file")
    path.write_text("left")
    [finding] = directory.left()
    assert finding == Finding("file", str(path), "in the server's TMPDIR", age=finding.age, fails=True, removed=True)
    assert finding.age is not None
    assert 0 <= finding.age < 100
    assert not os.path.exists(directory.path)


def test_directory_is_named_once_whatever_is_in_it(directory: TemporaryDirectory) -> None:
    tree = make(directory, "tree") / "a" / "b"
    tree.mkdir(parents=True)
    (tree / "file").write_text("left")
    (tree / "link").symlink_to("..")
    [finding] = directory.left()
    assert (finding.kind, finding.name) == ("file", os.path.join(directory.path, "tree"))
    assert finding.detail == "a directory in the server's TMPDIR"
    assert finding.removed
    assert not os.path.exists(directory.path)


def test_socket(directory: TemporaryDirectory) -> None:
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(directory.path)
        try:
            bound.bind("s")
        finally:
            os.chdir(here)
    [finding] = directory.left()
    assert (finding.kind, finding.name, finding.removed) == ("socket", os.path.join(directory.path, "s"), True)


def test_pipe_is_not_waited_for(directory: TemporaryDirectory) -> None:
    os.mkfifo(make(directory, "pipe"))
    begin = time.monotonic()
    assert [(finding.kind, finding.removed) for finding in directory.left()] == [("file", True)]
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("below", ["", "sub"])
@pytest.mark.parametrize("broken", [True, False])
def test_link_goes_and_its_target_stays(
    directory: TemporaryDirectory, tmp_path: Path, below: str, broken: bool
) -> None:
    target = tmp_path / "precious"
    if not broken:
        target.mkdir()
        (target / "file").write_text("precious")
        target.chmod(0o500)
    folder = make(directory, below)
    folder.mkdir(exist_ok=True)
    (folder / "link").symlink_to(target)
    assert [(finding.kind, finding.removed) for finding in directory.left()] == [("file", True)]
    assert not os.path.exists(directory.path)
    if not broken:
        assert (target / "file").read_text() == "precious"
        assert stat.S_IMODE(target.stat().st_mode) == 0o500


def test_everything_is_named_in_order(directory: TemporaryDirectory) -> None:
    for name in ("b", "c", "a"):
        make(directory, name).write_text("")
    assert [os.path.basename(finding.name) for finding in directory.left()] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["new\nline", "ü", os.fsdecode(b"\xff\xfe"), "-rf", "x" * 255])
def test_odd_names(directory: TemporaryDirectory, name: str) -> None:
    make(directory, name).write_text("")
    assert [finding.name for finding in directory.left()] == [os.path.join(directory.path, name)]
    assert not os.path.exists(directory.path)


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a folder in which every user may do what he likes."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="infs-test-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.parametrize("mode", [0o000, 0o500, 0o600])
def test_folders_without_permissions_go_too(public: Path, ordinary_user: AnotherUser, mode: int) -> None:
    with ordinary_user():
        directory = made_in(public)
        folder = make(directory, "a") / "b"
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
        for one in (folder, folder.parent, folder.parent.parent):
            one.chmod(mode)
        [finding] = directory.left()
    assert finding.removed
    assert not os.path.exists(directory.path)


@root_only
def test_what_cannot_be_removed_is_said(public: Path, ordinary_user: AnotherUser) -> None:
    directory = made_in(public)
    os.chmod(directory.path, 0o777)
    folder = make(directory, "of_root")
    folder.mkdir()
    (folder / "file").write_text("")
    make(directory, "of_anybody").write_text("")
    with ordinary_user():
        found = {os.path.basename(finding.name): finding.removed for finding in directory.left()}
    assert found == {"of_root": False, "of_anybody": True}
    assert (folder / "file").exists()


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_what_is_mounted_in_it_is_not_temporary(tmp_path: Path) -> None:
    """Not even where it is a folder of the same file system."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("")
    directory = made_in(tmp_path)
    place = make(directory, "a b")
    place.mkdir()
    if subprocess.run(["mount", "--bind", precious, place], check=False, capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        assert [finding.removed for finding in directory.left()] == [False]
        assert (precious / "file").exists()
    finally:
        subprocess.run(["umount", place], check=True)
    directory.remove()
    assert not os.path.exists(directory.path)


def test_removing_without_a_look(directory: TemporaryDirectory) -> None:
    make(directory, "file").write_text("")
    directory.remove()
    assert not os.path.exists(directory.path)


@pytest.mark.parametrize("parent", ["/nonexistent", "/proc", "/dev/null"])
def test_parent_that_takes_no_directory(parent: str) -> None:
    with pytest.raises(OSError):
        TemporaryDirectory(new_path(parent)).make()


def test_path_that_somebody_else_was_quicker_to_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("")
    path = Path(new_path(str(tmp_path)))
    path.symlink_to("theirs")
    directory = TemporaryDirectory(str(path))
    with pytest.raises(FileExistsError):
        directory.make()
    directory.remove()
    assert path.is_symlink()
    assert (tmp_path / "theirs" / "file").exists()


@pytest.mark.parametrize("instead", ["link", "folder"])
def test_what_a_server_has_put_in_its_place_is_no_finding_and_stays(
    tmp_path: Path, directory: TemporaryDirectory, instead: str
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o500)
    (precious / "file").write_text("")
    Path(directory.path).rename(tmp_path / "moved")
    if instead == "link":
        Path(directory.path).symlink_to(precious)
    else:
        precious = precious.rename(directory.path)
    assert directory.left() == []
    directory.remove()
    assert (precious / "file").exists()
    assert stat.S_IMODE(precious.stat().st_mode) == 0o500


@root_only
def test_directory_of_somebody_else_that_no_process_here_has_made_stays(tmp_path: Path) -> None:
    theirs = tmp_path / "infs-0"
    theirs.mkdir()
    (theirs / "file").write_text("")
    os.chown(theirs, 65534, 65534)
    TemporaryDirectory(str(theirs)).remove()
    assert (theirs / "file").exists()
