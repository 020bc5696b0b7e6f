"""The file with what tests and starts took: what is written, and what somebody else has made of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pytest_infserver.errors import ConfigError
from pytest_infserver.pool.collection.durations import Durations, read_durations, save_durations


def test_it_is_read_as_it_was_written_and_a_later_run_adds_to_it(tmp_path: Path) -> None:
    path = tmp_path / "ci" / "durations.json"
    assert read_durations(path) == Durations()
    save_durations(path, Durations({"test_b.py::test_ü[x]": 1.23456, "test_a.py::test": 2}, {"b": 60}))
    save_durations(path, Durations({"test_a.py::test": 3}, {"a": 0.5}))
    assert read_durations(path) == Durations({"test_a.py::test": 3, "test_b.py::test_ü[x]": 1.235}, {"a": 0.5, "b": 60})
    # One line each, in an order that does not change: good to commit.
    assert path.read_text("utf-8").splitlines()[1:4] == [
        ' "tests": {',
        '  "test_a.py::test": 3,',
        '  "test_b.py::test_ü[x]": 1.235',
    ]
    assert os.listdir(path.parent) == [path.name]


def test_its_permissions_stay(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    save_durations(path, Durations())
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    save_durations(path, Durations())
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "expected a mapping with 'tests' and 'starts'"),
        (b'{"tests": [1]}', "tests: expected a mapping of names to seconds"),
        (b'{"tests": {"test_a": "1"}}', "tests: 'test_a': expected seconds, not '1'"),
        (b'{"tests": {"test_a": true}}', "tests: 'test_a': expected seconds, not True"),
        (b'{"starts": {"a": -1}}', "starts: 'a': expected seconds, not -1"),
        (b'{"starts": {"a": NaN}}', "starts: 'a': expected seconds, not nan"),
        (b'{"starts": {"a": Infinity}}', "starts: 'a': expected seconds, not inf"),
        (b'{"starts": {"a": null}}', "starts: 'a': expected seconds, not None"),
    ],
)
def test_a_broken_file_is_an_error_that_says_what_to_do(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "durations.json"
    path.write_bytes(text)
    for use in (lambda: read_durations(path), lambda: save_durations(path, Durations())):
        with pytest.raises(ConfigError) as caught:
            use()
        assert str(caught.value).startswith(f"{path}: {problem}")
        assert "--infserver-save-durations" in str(caught.value)
    assert path.read_bytes() == text


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        read_durations(tmp_path)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "durations.json"
    save_durations(path, Durations({"test_a": 1}))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_durations(path, Durations({"test_b": 1}))
    assert read_durations(path).tests == {"test_a": 1}
    assert os.listdir(tmp_path) == [path.name]


def test_whoever_reads_while_others_write_finds_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    save_durations(path, Durations({"test": 1}))

    def write(name: str) -> None:
        for _ in range(50):
            save_durations(path, Durations({name: 1}))

    writers = [threading.Thread(target=write, args=(f"test_{number}",)) for number in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert "test" in read_durations(path).tests
    assert os.listdir(tmp_path) == [path.name]
