"""The names of traces, and whether they are complete."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from pytest_infserver.launcher.profiling.traces import (
    claim,
    discard_if_empty,
    files_of,
    held_open,
    problem_of,
    stem_of,
)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("server", "server"),
        ("tests/test_a.py::TestB::test_c[llama-1]", "test_a.TestB.test_c-llama-1"),
        ("test_a.py::test_b[x/y z]", "test_a.test_b-x-y-z"),
        ("my/profile", "my-profile"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "profile"),
        ("", "profile"),
        ("::", "profile"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("a\nb\0c", "a-b-c"),
        ("a=b+c_d.e", "a=b+c_d.e"),
    ],
)
def test_stem(name: str, stem: str) -> None:
    assert stem_of(name) == stem


@pytest.mark.parametrize(
    "name", ["проба", "test_a.py::test_ü", "a" * 121, "test_a.py::test[" + "x" * 5000 + "]", "\udcff"]
)
def test_long_and_foreign_names_are_told_apart(name: str) -> None:
    stem, other = stem_of(name), stem_of(name + "ö")
    assert stem != other
    assert stem.isascii()
    # The longest suffix, a number and the dot of a note must have room, too.
    assert len(stem) <= 120
    assert stem_of(name) == stem
    assert "/" not in stem


def test_longest_name_can_be_a_file(tmp_path: Path) -> None:
    path = claim(tmp_path, "é" * 5000, ".speedscope.json")
    path.with_name(f".{path.name}.log").touch()
    assert claim(tmp_path, "é" * 5000, ".speedscope.json").name.endswith("-2.speedscope.json")


def test_names_that_collide_are_numbered(tmp_path: Path) -> None:
    assert [claim(tmp_path, name, ".svg").name for name in ("a b", "a-b", "a/b")] == [
        "a-b.svg",
        "a-b-2.svg",
        "a-b-3.svg",
    ]
    assert [claim(tmp_path, "f", "").is_dir() for _ in range(2)] == [True, True]
    assert (tmp_path / "f-2").is_dir()


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.svg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a-2.svg").mkdir()
    assert claim(tmp_path, "a", ".svg").name == "a-3.svg"
    assert not (tmp_path / "nowhere").exists()


def test_race_for_a_name(tmp_path: Path) -> None:
    claimed: list[Path] = []
    threads = [threading.Thread(target=lambda: claimed.append(claim(tmp_path, "a", ".svg"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(claimed)) == 20


def test_folder_is_made(tmp_path: Path) -> None:
    assert claim(tmp_path / "a" / "b", "c", ".svg").read_bytes() == b""
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        claim(tmp_path / "file", "c", ".svg")


def test_only_what_is_empty_is_discarded(tmp_path: Path) -> None:
    empty, full = claim(tmp_path, "empty", ".svg"), claim(tmp_path, "full", ".svg")
    full.write_text("x")
    folder, full_folder = claim(tmp_path, "folder", ""), claim(tmp_path, "full-folder", "")
    (folder / "a" / "b").mkdir(parents=True)
    (full_folder / "a").mkdir()
    (full_folder / "a" / "f").touch()
    for path in (empty, full, folder, full_folder, tmp_path / "not there"):
        discard_if_empty(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full-folder", "full.svg"]
    assert (full_folder / "a" / "f").exists()


def test_files(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "1").touch()
    (tmp_path / "b" / "0").touch()
    assert files_of(tmp_path / "b") == [tmp_path / "b" / "0", tmp_path / "b" / "c" / "1"]
    assert files_of(tmp_path / "b" / "0") == [tmp_path / "b" / "0"]
    assert files_of(tmp_path / "none") == []


def test_problems(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    assert problem_of(path, []) == f"it has written nothing to {path}"
    path.touch()
    assert problem_of(path, []) == f"it has written nothing to {path}"
    path.write_text("x")
    assert problem_of(path, []) is None
    folder = tmp_path / "folder"
    folder.mkdir()
    assert problem_of(folder, []) == f"it has written nothing to {folder}"
    (folder / "full").write_text("x")
    assert problem_of(folder, []) is None
    (folder / "empty").touch()
    assert problem_of(folder, []) == f"{folder / 'empty'} is empty"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_file_that_is_held_open(tmp_path: Path) -> None:
    path, link = tmp_path / "a.svg", tmp_path / "link.svg"
    path.write_text("x")
    link.symlink_to(path)
    # A process that has ended is no obstacle.
    pids = [2**22 + 1, os.getpid()]
    with path.open("a"):
        assert problem_of(path, pids) == f"{path} is still being written"
        assert held_open([link], pids) == [link]
        assert problem_of(path, pids[:1]) is None
    assert problem_of(path, pids) is None
