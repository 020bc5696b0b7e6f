"""A copy of the environment while another thread changes it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pytest_infserver.system.environment import changes, environment, surroundings


def test_a_variable_that_comes_and_goes_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAYS", "1")
    monkeypatch.delenv("FLICKERS", raising=False)
    over = threading.Event()

    def flicker() -> None:
        while not over.is_set():
            os.environ["FLICKERS"] = "x"
            os.environ.pop("FLICKERS")

    thread = threading.Thread(target=flicker)
    thread.start()
    try:
        for _ in range(3000):
            found = environment()
            assert found["STAYS"] == "1"
            assert found.get("FLICKERS", "x") == "x"
    finally:
        over.set()
        thread.join()


def test_a_variable_that_goes_between_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaky(dict[str, str]):
        def keys(self) -> list[str]:  # type: ignore[override]
            names = list(super().keys())
            self.pop("GOES", None)
            return names

    monkeypatch.setattr(os, "environ", Leaky(GOES="1", STAYS="2"))
    assert environment() == {"STAYS": "2"}


def test_what_has_changed_between_two_environments() -> None:
    before = {"STAYS": "1", "GOES": "1", "PYTEST_CURRENT_TEST": "a", "CHANGES": "1"}
    now = {"STAYS": "1", "COMES": "", "PYTEST_CURRENT_TEST": "b", "INFSERVER_DEBUG": "on", "CHANGES": "2"}
    assert changes(before, now) == {"CHANGES": "2", "COMES": "", "GOES": None}


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert surroundings().folder == str(folder)
    folder.rmdir()
    assert surroundings().folder is None
