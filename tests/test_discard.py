"""Commands whose output nobody reads any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest
from descriptors import open_descriptors

from pytest_infserver.cli import main as cli
from pytest_infserver.cli.discard import discard
from pytest_infserver.cli.foreground import _Output

pytestmark = pytest.mark.usefixtures("hard_limit")


@pytest.fixture
def broken() -> Iterator[TextIO]:
    """A stream without a reader."""
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w", encoding="utf-8") as stream:
        yield stream
        # What is left of it is written when it is closed.
        discard(stream)


def test_what_is_written_gets_lost_and_nothing_stays_open(broken: TextIO) -> None:
    before = open_descriptors()
    for _ in range(3):
        discard(broken)
        print("nobody reads this", file=broken, flush=True)
    assert open_descriptors() <= before


def test_lines_of_servers_without_a_reader(broken: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    output = _Output()
    told: list[str] = []
    output.on_reader_gone = lambda: told.append("gone")
    before = open_descriptors()
    for _ in range(3):
        output.line("a | nobody reads this")
    assert told == ["gone"]
    assert open_descriptors() <= before


def test_a_command_without_a_reader(broken: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    asked = []
    monkeypatch.setattr(cli, "discard", lambda stream: (asked.append(stream), discard(stream)))
    before = open_descriptors()
    assert cli.main(["schema"]) == 0
    assert asked == [broken]
    assert open_descriptors() <= before
