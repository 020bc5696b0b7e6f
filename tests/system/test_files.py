"""Files in folders that others may write: no planted link is followed, nothing blocks, nothing is half written."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from other_user import NOBODY, in_child, root_only

from pytest_infserver.system.disk import files
from pytest_infserver.system.disk.files import (
    UnsafePathError,
    move_file,
    open_append,
    open_folder,
    open_new,
    open_read,
    open_regular,
    parent_of,
    read_start,
    remove_file,
    whole_file,
    write_whole,
)

# Where something blocks the test is killed, and fails.
pytestmark = pytest.mark.usefixtures("no_descriptor_left", "hard_limit")


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("precious")
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def append(path: Path) -> None:
    os.close(open_append(path))


def empty(path: Path) -> None:
    os.close(open_append(path, empty=True))


def read(path: Path) -> None:
    read_start(path, 10)


OPENED = pytest.mark.parametrize("action", [append, empty, read])


# Whole files.


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_whole(path, b"old")
    with whole_file(path) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_bytes() == b"old"
        file.write(b"w")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("step", ["text", "rename", "interrupt"])
def test_what_goes_wrong_leaves_the_old_file_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    kind = KeyboardInterrupt if step == "interrupt" else OSError

    def fail(*_: object, **__: object) -> None:
        raise kind("no room")

    if step == "rename":
        monkeypatch.setattr(os, "replace", fail)

    def write() -> None:
        with whole_file(path) as file:
            file.write(b"new")
            if step != "rename":
                fail()

    with pytest.raises(kind, match="no room"):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_links_that_wait_for_a_part_are_no_use(tmp_path: Path, precious: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    for name in (".run.json.part", "run.part", "run.json.part", "run.json.new"):
        (tmp_path / name).symlink_to(precious)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    # Even somebody who knows the name cannot make us follow a link.
    monkeypatch.setattr(os, "urandom", lambda count: bytes(count))
    (tmp_path / f".run.json.{'00' * 8}.part").symlink_to(precious)
    with pytest.raises(FileExistsError, match=r"run\.json"):
        write_whole(path, b"newer")
    assert (path.read_bytes(), precious.read_text()) == (b"new", "precious")


@pytest.mark.parametrize("planted", ["link", "pipe", "hard link"])
def test_what_has_the_name_is_replaced_and_not_written(tmp_path: Path, precious: Path, planted: str) -> None:
    path = tmp_path / "run.json"
    if planted == "pipe":
        os.mkfifo(path)
    elif planted == "link":
        path.symlink_to(precious)
    else:
        os.link(precious, path)
    write_whole(path, b"new")
    assert stat.S_ISREG(path.lstat().st_mode)
    assert (path.read_bytes(), precious.read_text()) == (b"new", "precious")


@pytest.mark.parametrize(("umask", "wanted", "expected"), [(0, 0o644, 0o644), (0o77, 0o644, 0o600), (0, 0o600, 0o600)])
def test_the_mode_is_the_callers_whatever_the_umask(tmp_path: Path, umask: int, wanted: int, expected: int) -> None:
    previous = os.umask(umask)
    try:
        write_whole(tmp_path / "a", b"", wanted)
        append(tmp_path / "b")
        os.close(open_new(tmp_path / "c"))
    finally:
        os.umask(previous)
    assert mode(tmp_path / "a") == expected
    assert not (mode(tmp_path / "b") | mode(tmp_path / "c")) & 0o022


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "a b\n", os.fsdecode(b"\xff")])
def test_odd_names(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"x")
    assert read_start(tmp_path / name, 10) == b"x"
    remove_file(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_whole("here", b"1")
    (tmp_path / "sub").mkdir()
    write_whole("sub/../there", b"2")
    assert (read_start("here", 9), read_start("./there", 9)) == (b"1", b"2")


@pytest.mark.parametrize("act", [lambda path: write_whole(path, b""), append, read])
def test_an_error_says_the_whole_path(tmp_path: Path, act: Callable[[Path], object]) -> None:
    path = tmp_path / "absent" / "server.log"
    with pytest.raises(FileNotFoundError, match="absent"):
        act(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=str(tmp_path / "file")):
        act(tmp_path / "file" / "server.log")


def test_the_error_of_a_block_stays_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="/does/not/exist"), whole_file(tmp_path / "a"):
        Path("/does/not/exist").read_bytes()


# Opening.


@OPENED
@pytest.mark.parametrize("planted", ["pipe", "link", "dangling link", "socket", "folder", "device"])
def test_only_ordinary_files_are_opened(
    tmp_path: Path, precious: Path, planted: str, action: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "server.log"
    bound = socket.socket(socket.AF_UNIX)
    if planted == "pipe":
        os.mkfifo(path)
    elif planted == "link":
        path.symlink_to(precious)
    elif planted == "dangling link":
        path.symlink_to(tmp_path / "absent")
    elif planted == "socket":
        monkeypatch.chdir(tmp_path)
        bound.bind("server.log")
    elif planted == "folder":
        path.mkdir()
    else:
        path = Path("/dev/null")
    try:
        if planted == "folder" and action is not read:
            with pytest.raises(IsADirectoryError, match=r"server\.log"):
                action(path)
            return
        with pytest.raises(UnsafePathError, match=r"is a .*not an ordinary file: remove it") as caught:
            action(path)
    finally:
        bound.close()
    assert str(caught.value).startswith(str(path))
    assert precious.read_text() == "precious"
    assert not (tmp_path / "absent").exists()


def test_a_pipe_that_somebody_reads_is_none_either(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(UnsafePathError, match="is a pipe"):
            append(path)
    finally:
        os.close(reader)


@pytest.mark.parametrize("action", [append, empty])
def test_a_file_with_a_second_name_is_not_written(
    tmp_path: Path, precious: Path, action: Callable[[Path], None]
) -> None:
    os.link(precious, tmp_path / "server.log")
    with pytest.raises(UnsafePathError, match="hard link"):
        action(tmp_path / "server.log")
    assert precious.read_text() == "precious"
    assert read_start(tmp_path / "server.log", 3) == b"pre"


def test_a_second_name_that_goes_just_then_does_not_help(
    tmp_path: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "server.log"
    os.link(precious, path)
    real = os.fstat

    def slow(handle: int) -> os.stat_result:
        path.unlink(missing_ok=True)
        path.touch()
        return real(handle)

    with parent_of(path), monkeypatch.context() as patch:
        patch.setattr(os, "fstat", slow)
        with pytest.raises(UnsafePathError, match="hard link"):
            append(path)


def test_appending_and_emptying(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text in (b"one ", b"two"):
        handle = open_append(path)
        os.write(handle, text)
        assert os.get_blocking(handle)
        assert not os.get_inheritable(handle)
        os.close(handle)
    assert read_start(path, 100) == b"one two"
    assert read_start(path, 4) == b"one "
    empty(path)
    assert path.read_bytes() == b""


def test_a_new_file_is_new(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for path in (precious, tmp_path / "link"):
        with pytest.raises(FileExistsError):
            open_new(path)


def test_only_so_much_is_read_of_a_file_that_seems_to_be_huge(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    assert read_start(path, 32) == bytes(32)


def test_files_are_moved_and_removed_and_links_themselves_too(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "link").symlink_to(precious)
    move_file(tmp_path / "link", tmp_path / "moved")
    assert (tmp_path / "moved").is_symlink()
    remove_file(tmp_path / "moved")
    remove_file(tmp_path / "moved")
    assert precious.read_text() == "precious"
    move_file(precious, tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]


# Folders on the way.


def test_links_of_our_own_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "real")
    (tmp_path / "relative").symlink_to("absolute/sub/..")
    write_whole(tmp_path / "relative" / "sub" / "f", b"x")
    assert (tmp_path / "real" / "sub" / "f").read_bytes() == b"x"


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        open_folder(tmp_path / "a")


def test_a_system_that_cannot_walk_opens_the_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_WALKS", False)
    monkeypatch.setattr(files, "_FOLDER", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    write_whole(tmp_path / "a", b"x")
    assert read_start(tmp_path / "a", 9) == b"x"
    with pytest.raises(NotADirectoryError):
        open_folder(tmp_path / "a")


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_whose_links_are_followed(public: Path) -> None:
    """Root follows those of root; an ordinary user also those of whoever owns the folder with the link."""
    theirs, ours = public / "theirs", public / "ours"
    (public / "real").mkdir()
    (public / "real" / "f").write_text("x")
    for folder in (theirs, ours):
        folder.mkdir()
        (folder / "of_root").symlink_to(public / "real")
        (folder / "of_nobody").symlink_to(public / "real")
        os.chown(folder / "of_nobody", NOBODY, NOBODY, follow_symlinks=False)
    os.chown(theirs, NOBODY, NOBODY)

    def tried() -> str:
        said = []
        for folder in (ours, theirs):
            for link in ("of_root", "of_nobody"):
                try:
                    said.append(read_start(folder / link / "f", 9).decode())
                except UnsafePathError as error:
                    said.append("refused" if "is a link of another user" in str(error) else str(error))
        return " ".join(said)

    assert tried() == "x refused x refused"
    assert in_child(tried, NOBODY) == "x x x x"
    assert in_child(tried, NOBODY - 1) == "x refused x x"


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_folders_that_one_may_only_pass_through(public: Path) -> None:
    public.chmod(0o711)
    (public / "f").write_text("x")
    assert in_child(lambda: read_start(public / "f", 9), NOBODY) == "b'x'"


def test_a_user_namespace_shows_unknown_users_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = open
    known = tmp_path / "uid_map"

    def opened(path: str, *rest: object) -> object:
        return real(known if path == "/proc/self/uid_map" else path, *rest)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", opened)
    for text, expected in (("0 0 4294967295\n", None), ("1000 1000 1\n", 65534), ("", 65534), ("nonsense", None)):
        known.write_text(text)
        files.unknown_user.cache_clear()
        assert files.unknown_user() == expected
        assert files.is_trusted(65534) == (expected is not None)
    files.unknown_user.cache_clear()


def test_reading_gives_an_object_that_can_be_searched(tmp_path: Path) -> None:
    write_whole(tmp_path / "f", b"0123456789")
    with open_read(tmp_path / "f") as file:
        file.seek(4)
        assert file.read(2) == b"45"
    handle = open_regular(tmp_path / "f", os.O_RDWR)
    os.close(handle)
