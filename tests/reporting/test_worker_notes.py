"""Notes on their way from xdist's workers to the controller."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_infserver.reporting.record.worker_notes import Notes, WorkerNotes, leave_notes


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerNotes]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield WorkerNotes()
    assert list(tmp_path.iterdir()) == []


def test_notes_of_all_workers_are_collected_once(notes: WorkerNotes) -> None:
    leave_notes(notes.folder, "gw1", Notes(["c"], ["error of 1"], {"/p/1": "a"}))
    leave_notes(notes.folder, "gw0", Notes(["a", "b \u2014 \u00fc"], ["error of 0"], {"/p/0": "a"}))
    assert stat.S_IMODE(Path(notes.folder).stat().st_mode) == 0o700
    assert notes.collect() == Notes(
        ["a", "b \u2014 \u00fc", "c"], ["error of 0", "error of 1"], {"/p/0": "a", "/p/1": "a"}
    )
    assert notes.collect() == Notes()


def test_no_notes_are_no_folder(notes: WorkerNotes) -> None:
    leave_notes(notes.folder, "gw0", Notes())
    assert not Path(notes.folder).exists()
    assert notes.collect() == Notes()


def test_half_a_note_of_a_worker_that_was_killed_is_none(notes: WorkerNotes) -> None:
    leave_notes(notes.folder, "gw0", Notes(["whole"]))
    Path(notes.folder, "gw1.part").write_text('{"incidents": ["ha')
    assert notes.collect() == Notes(["whole"])


def test_notes_that_cannot_be_left_are_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    leave_notes("/nonexistent/folder", "gw0", Notes(["a"], ["b"]))
    assert capsys.readouterr().err == "a\nb\n"


def test_a_folder_that_somebody_else_has_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notes = WorkerNotes()
    folder = Path(notes.folder)
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "gw0.json").write_text('{"errors": ["forged"]}')
    leave_notes(notes.folder, "gw1", Notes(["a"]))
    assert capsys.readouterr().err == "a\n"
    assert notes.collect() == Notes()
