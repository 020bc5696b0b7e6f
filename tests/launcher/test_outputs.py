"""Which files of a command count as written by its server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_infserver.launcher.keeping.outputs import is_output

BEGIN = 1_000_000.0


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that have changed since the server began."""
    monkeypatch.chdir(tmp_path)
    for name in ("x.log", "x", "state.json", "run.pid", "a.db", "log.conf", "cfg.yaml", "trace.py", "log_level", "key"):
        Path(name).write_text("")


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["engine", "x.log"], "x.log"),
        (["engine", "--log-file", "x"], "x"),
        (["engine", "--log-file=x"], "x"),
        (["engine", "-o", "x", "--state", "x"], "x"),
        (["engine", "--resume", "state.json"], "state.json"),
        (["engine", "run.pid"], "run.pid"),
        (["engine", "--store", "a.db"], "a.db"),
        (["engine", "--LOG_DIR", "x"], "x"),
    ],
)
def test_what_is_called_so_and_has_changed_meanwhile(written: None, words: list[str], path: str) -> None:
    assert is_output(words, path, BEGIN)
    # One that is as it was at the start has been written by somebody else.
    os.utime(path, (BEGIN - 1, BEGIN - 1))
    assert not is_output(words, path, BEGIN)
    # The server has removed it.
    Path(path).unlink()
    assert is_output(words, path, BEGIN)


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["engine", "cfg.yaml"], "cfg.yaml"),
        (["engine", "--config", "cfg.yaml"], "cfg.yaml"),
        (["engine", "--log-config", "x"], "x"),
        (["engine", "--log-config=x"], "x"),
        (["engine", "log.conf"], "log.conf"),
        (["engine", "--log", "trace.py"], "trace.py"),
        (["python", "trace.py"], "trace.py"),
        (["engine", "--model", "state.json"], "state.json"),
        (["engine", "log", "x"], "x"),
        (["engine", "--log-level", "log_level"], "log_level"),
        (["engine", "--api-key-file", "key"], "key"),
        (["engine", "x", "--log"], "x"),
        ([], ""),
        (["engine"], "x"),
        (["engine", "gone"], "gone"),
    ],
)
def test_what_a_server_is_started_from_counts_whenever_it_changes(written: None, words: list[str], path: str) -> None:
    assert not is_output(words, path, BEGIN)


def test_a_name_that_cannot_be_one_does_no_harm() -> None:
    assert is_output(["engine", "--log", "\0"], "\0", BEGIN)
