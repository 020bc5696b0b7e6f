"""What an engine has left is removed, and nothing that has been put in its place."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from other_user import NOBODY, in_child, root_only

from pytest_infserver.system.disk import removal
from pytest_infserver.system.disk.removal import Seen, make_accessible, remove_own_folder

pytestmark = pytest.mark.usefixtures("no_descriptor_left", "hard_limit")


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "file").write_text("precious")
    return folder


def seen(path: Path) -> Seen:
    found = Seen.at(path)
    assert found is not None
    return found


def tree(path: Path) -> Path:
    (path / "a" / "b").mkdir(parents=True)
    (path / "a" / "b" / "file").write_text("")
    (path / "file").write_text("")
    return path


def test_files_and_folders_go(tmp_path: Path) -> None:
    for made in (tree(tmp_path / "x"), tmp_path / "empty", tmp_path / "file"):
        if made.name == "empty":
            made.mkdir()
        elif made.name == "file":
            made.write_text("")
        one = seen(made)
        assert one.remove()
        assert not made.exists()
        # Gone is gone.
        assert one.remove()


def test_nothing_is_seen_where_nothing_is(tmp_path: Path) -> None:
    assert Seen.at(tmp_path / "absent") is None
    assert Seen.at(None) is None
    assert remove_own_folder(tmp_path / "absent")


@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize("instead", ["link", "the same kind", "other kind", "parent that is a link", "other parent"])
def test_what_has_taken_its_place_stays(tmp_path: Path, precious: Path, what: str, instead: str) -> None:
    path = tmp_path / "engine" / "left"
    path.parent.mkdir()
    tree(path) if what == "folder" else path.write_text("")
    one = seen(path)
    path.rename(tmp_path / "kept")
    if instead == "link":
        path.symlink_to(precious)
    elif instead == "the same kind":
        tree(path) if what == "folder" else path.write_text("")
    elif instead == "other kind":
        tree(path) if what == "file" else path.write_text("")
    else:
        path.parent.rmdir()
        precious.rename(tmp_path / "left")
        (tmp_path / "elsewhere").mkdir()
        precious = (tmp_path / "left").rename(tmp_path / "elsewhere" / "left")
        if instead == "other parent":
            (tmp_path / "elsewhere").rename(path.parent)
            precious = path
        else:
            path.parent.symlink_to("elsewhere")
    assert one.remove()
    assert os.path.lexists(path)
    assert (precious / "file").read_text() == "precious"


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_not_even_the_same_is_removed_through_a_link_of_another_user(public: Path) -> None:
    """Root has seen a socket in a folder of the engine's; the folder is a link to a foreign one by then."""
    (public / "foreign").mkdir()
    (public / "foreign" / "socket").write_text("")
    (public / "engine").symlink_to("foreign")
    one = seen(public / "engine" / "socket")
    os.chown(public / "engine", NOBODY, NOBODY, follow_symlinks=False)
    assert not one.remove()
    assert (public / "foreign" / "socket").exists()


def test_links_inside_go_and_their_targets_stay(tmp_path: Path, precious: Path) -> None:
    precious.chmod(0o500)
    left = tree(tmp_path / "left")
    (left / "a" / "folder").symlink_to(precious)
    (left / "a" / "file").symlink_to(precious / "file")
    os.mkfifo(left / "a" / "pipe")
    assert seen(left).remove()
    assert (precious / "file").read_text() == "precious"
    assert precious.stat().st_mode & 0o777 == 0o500
    precious.chmod(0o700)


def linked(place: Path, precious: Path) -> Path:
    """Put a link to a folder at a place; return where its content is now."""
    place.symlink_to(precious)
    return precious


def moved(place: Path, precious: Path) -> Path:
    """Put the folder itself there."""
    precious.rename(place)
    return place


@pytest.mark.parametrize("swap", [linked, moved])
def test_a_folder_that_is_swapped_for_another_just_before_it_is_entered(
    tmp_path: Path, precious: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[[Path, Path], Path]
) -> None:
    left = tree(tmp_path / "left")
    real = removal._open_same
    swaps: list[Path] = []

    def swapped(parent: int, name: str, status: os.stat_result) -> int:
        if name == "a":
            (left / "a").rename(left / "moved")
            swaps.append(swap(left / "a", precious))
        return real(parent, name, status)

    monkeypatch.setattr(removal, "_open_same", swapped)
    assert not seen(left).remove()
    (place,) = swaps
    assert (place / "file").read_text() == "precious"


@pytest.mark.parametrize("bits", [0o000, 0o500, 0o600])
@pytest.mark.usefixtures("nothing_left")
def test_folders_without_permissions_go_too(public: Path, bits: int) -> None:
    public.chmod(0o777)

    def act() -> bool:
        left = tree(public / "left")
        one = seen(left)
        for folder in (left / "a" / "b", left / "a", left):
            folder.chmod(bits)
        return one.remove()

    assert in_child(act, NOBODY if os.getuid() == 0 else None) == "True"
    assert not (public / "left").exists()


@root_only
@pytest.mark.usefixtures("nothing_left")
def test_what_may_not_be_removed_stays_and_the_rest_goes(public: Path) -> None:
    left = tree(public / "left")
    public.chmod(0o777)
    left.chmod(0o777)
    (left / "of_anybody").write_text("")
    assert in_child(lambda: seen(left).remove(), NOBODY) == "False"
    assert (left / "a" / "b" / "file").exists()
    assert not (left / "of_anybody").exists()


def test_a_folder_deeper_than_descriptors_and_paths_reach(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    at = os.open(left, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, hard))
    try:
        begin = time.monotonic()
        assert seen(left).remove()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert time.monotonic() - begin < 20
    assert not left.exists()


@root_only
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("kind", [["--bind", "{precious}"], ["-t", "tmpfs", "none"]])
def test_what_is_mounted_in_it_is_left_alone(tmp_path: Path, precious: Path, kind: list[str]) -> None:
    left = tree(tmp_path / "left")
    place = left / "a b"
    place.mkdir()
    words = [word.format(precious=precious) for word in kind]
    if subprocess.run(["mount", *words, place], check=False, capture_output=True, timeout=20).returncode:
        pytest.skip("may not mount")
    try:
        (place / "file").write_text("precious")
        assert not seen(left).remove()
        assert (place / "file").read_text() == "precious"
    finally:
        subprocess.run(["umount", place], check=True, timeout=20)


def test_folder_of_ones_own(tmp_path: Path, precious: Path) -> None:
    assert remove_own_folder(tree(tmp_path / "left"))
    (tmp_path / "link").symlink_to(precious)
    assert not remove_own_folder(tmp_path / "link")
    assert not remove_own_folder(precious / "file")
    assert (precious / "file").exists()


@root_only
def test_folder_of_another_user_is_not_ones_own(precious: Path) -> None:
    os.chown(precious, NOBODY, NOBODY)
    assert not remove_own_folder(precious)
    assert (precious / "file").exists()


def test_making_a_link_accessible_does_nothing_to_what_it_leads_to(tmp_path: Path, precious: Path) -> None:
    precious.chmod(0o500)
    make_accessible(precious)
    assert precious.stat().st_mode & 0o777 == 0o700
    make_accessible(tmp_path / "absent")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("module", ["removal", "files"])
def test_the_supervisor_can_import_it(module: str) -> None:
    """Without site-packages, and without what is slow to import."""
    root = Path(removal.__file__).parents[3]
    code = f"""
import sys
sys.path.append({str(root)!r})
import pytest_infserver.system.disk.{module}
print(sorted({{"pathlib", "shutil", "tempfile", "subprocess", "psutil"}} & sys.modules.keys()))
"""
    words = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
