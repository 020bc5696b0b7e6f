"""Folders for output ignore themselves, if they are ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_infserver.system.folders import make_output_folder


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

    monkeypatch.setattr(Path, "write_text", fail)
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
