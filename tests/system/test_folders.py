"""Folders for output ignore themselves, if they are ours."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from other_user import NOBODY, in_child, root_only

from pytest_infserver.system.disk import folders
from pytest_infserver.system.disk.files import UnsafePathError
from pytest_infserver.system.disk.folders import is_private, make_output_folder, make_private_folder


def test_a_new_folder_is_ignored_with_all_that_is_in_it(tmp_path: Path) -> None:
    top = tmp_path / "out" / "logs"
    assert make_output_folder(top, "a", "b") == top / "a" / "b"
    assert (top / "a" / "b").is_dir()
    assert (top / ".gitignore").read_text().splitlines()[-1] == "*"
    assert (top / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["logs"]


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    make_output_folder(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    new = tmp_path / "new"
    make_output_folder(new)
    (new / ".gitignore").write_text("!wanted\n")
    make_output_folder(new, "b")
    assert (new / ".gitignore").read_text() == "!wanted\n"


def test_marks_that_cannot_be_written_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_whole", fail)
    assert make_output_folder(tmp_path / "logs", "a").is_dir()


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    with pytest.raises(OSError, match="logs"):
        make_output_folder(tmp_path / "logs", "a")


@pytest.mark.usefixtures("nothing_left")
def test_git_sees_nothing_of_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=60)
    make_output_folder(tmp_path / "logs", "a").joinpath("server.log").write_text("x")
    words = ["git", "-C", str(tmp_path), "status", "--porcelain"]
    assert subprocess.run(words, check=True, capture_output=True, timeout=60).stdout == b""


# Whose folder it is.


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_what_is_made_nobody_else_can_write_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        folder = make_output_folder(tmp_path / "new" / "logs", "a", "b")
    finally:
        os.umask(previous)
    for made in (folder, folder.parent, folder.parent.parent, folder.parent.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o755 & ~umask
    for made in (tmp_path / "new" / "logs").iterdir():
        assert not made.stat().st_mode & 0o022


def test_a_folder_that_anybody_may_write_is_refused_with_what_to_do(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    logs.chmod(0o777)
    with pytest.raises(UnsafePathError, match=r"logs can be written by anybody.*`chmod o-w` it") as caught:
        make_output_folder(logs, "a")
    assert str(caught.value).startswith(str(logs))
    assert list(logs.iterdir()) == []
    # As it says: a new folder in it will do.
    assert make_output_folder(logs / "mine", "a").is_dir()
    # Or a sticky one, as /tmp is.
    logs.chmod(0o1777)
    assert make_output_folder(logs, "a").is_dir()


@pytest.mark.parametrize("bits", [0o775, 0o770, 0o700])
def test_a_folder_of_ones_own_that_the_group_may_write_is_fine(tmp_path: Path, bits: int) -> None:
    tmp_path.chmod(bits)
    assert make_output_folder(tmp_path, "a").is_dir()


def test_a_folder_in_it_counts_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(UnsafePathError, match="a can be written by anybody"):
        make_output_folder(tmp_path, "a", "b")


def test_a_file_system_without_modes_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On WSL's disks everything is everybody's, and cannot be otherwise."""
    tmp_path.chmod(0o777)
    real = os.open

    def opened(path: str, flags: int, mode: int = 0o777, **where: int) -> int:
        handle = real(path, flags, mode, **where)
        if flags & os.O_CREAT:
            os.fchmod(handle, 0o777)
        return handle

    monkeypatch.setattr(os, "open", opened)
    assert make_output_folder(tmp_path, "a").is_dir()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_only_folders_in_it_are_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafePathError, match="is not in"):
        make_output_folder(tmp_path / "logs", name)


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_a_folder_of_another_user_is_refused_to_all_but_root(public: Path) -> None:
    logs = public / "logs"
    logs.mkdir()
    logs.chmod(0o1777)
    os.chown(logs, NOBODY, NOBODY)

    def tried(name: str) -> str:
        return str(make_output_folder(logs, name))

    said = in_child(lambda: tried("a"), NOBODY - 1)
    assert f"{logs} belongs to another user (uid {NOBODY})" in said
    assert "use a folder of your own" in said
    assert in_child(lambda: tried("b"), NOBODY) == str(logs / "b")
    assert tried("c") == str(logs / "c")
    assert (logs / "c").stat().st_uid == 0
    # Root works in the folder of one user at a time: in /tmp anybody may have made it.
    os.chown(logs, 0, 0)
    with pytest.raises(UnsafePathError, match="b belongs to another user"):
        tried("b")
    assert in_child(lambda: tried("d"), NOBODY) == str(logs / "d")


@root_only
def test_root_follows_no_link_of_the_folders_owner(public: Path) -> None:
    logs = public / "logs"
    (public / "of_root").mkdir()
    logs.mkdir()
    (logs / "llama").symlink_to(public / "of_root")
    for path in (logs, logs / "llama"):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(UnsafePathError, match="'llama' on the way is a link of another user"):
        make_output_folder(logs, "llama")
    assert list((public / "of_root").iterdir()) == []


def test_private_folders(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        make_private_folder(tmp_path / "a")
    finally:
        os.umask(previous)
    make_private_folder(tmp_path / "a")
    assert is_private(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        make_private_folder(tmp_path / "absent" / "a")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a").chmod(0o750)
    for name in ("a", "link"):
        assert not is_private(tmp_path / name)
        with pytest.raises(UnsafePathError, match="is not a folder of this user alone"):
            make_private_folder(tmp_path / name)
