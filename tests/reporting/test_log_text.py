"""A part of a server's log in a report: bounded, and clean also where it is cut."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

from pytest_infserver import CommandServer
from pytest_infserver.reporting.log_text import bounded, excerpt

SECRET = "sk-0123456789-\u00e9-abcdef"


@pytest.fixture
def server(tmp_path: Path) -> CommandServer:
    made = CommandServer(
        launch_command=["run", "{port}"], health_endpoint="/", output_dir=str(tmp_path), env_vars={"MY_TOKEN": SECRET}
    )
    made.log_path.parent.mkdir(parents=True)
    made.runtime.change(launches=1)
    return made


def test_long_lines_and_many_lines_are_bounded() -> None:
    long = bounded("x" * 16_000)
    assert len(long) < 2100
    assert long.endswith("[... 14000 characters left out]")
    words = [f"{first}{second}" for first in string.ascii_letters for second in string.ascii_letters]
    many = bounded("\n".join(words)).split("\n")
    assert many == [f"[... {len(words) - 400} lines left out]", *words[-400:]]
    assert bounded("\n".join(words), 20).split("\n") == [f"[... {len(words) - 20} lines left out]", *words[-20:]]
    assert len(bounded("first\n" + "\n" * 16_000 + "last\n").split("\n")) < 10


ASKED = ["code {}, message Service Unavailable", '"GET /health HTTP/1.1" 503 - id={:08x}', "  (see {})", "done"]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_what_says_the_same_again_and_again_is_shown_twice(size: int) -> None:
    def lines(*times: int) -> list[str]:
        return [line.format(time * 977) for time in times for line in ASKED[:size]]

    shown = bounded("\n".join(["loading", *lines(*range(1, 60)), "ready", *lines(*range(60, 65))])).split("\n")
    # Five times are few enough to be shown.
    some = [f"[... {57 * size} similar lines left out]"]
    assert shown == ["loading", *lines(1), *some, *lines(59), "ready", *lines(*range(60, 65))]


def test_other_lines_stay_as_they_are() -> None:
    text = "\n".join(f"{word} {number}" for number, word in enumerate("the quick brown fox jumps over it".split() * 9))
    assert bounded(text) == text


def test_an_excerpt_begins_with_a_whole_line(server: CommandServer) -> None:
    server.log_path.write_text("first line\nsecond line\nthird line\n")
    assert excerpt(server, 0, None, 20) == ("third line", 23)
    assert excerpt(server, 0, None, 11) == ("third line", 23)
    # Rather a part than nothing.
    assert excerpt(server, 0, None, 5) == ("line", 29)


@pytest.mark.parametrize("colour", ["", "\x1b[1;36m"])
def test_no_piece_of_a_secret_is_left_wherever_an_excerpt_is_cut(server: CommandServer, colour: str) -> None:
    data = f"log: {colour.join(SECRET)} on\n".encode()
    server.log_path.write_bytes(data)
    for limit in range(1, len(data) + 1):
        text, left_out = excerpt(server, 0, None, limit)
        assert left_out == len(data) - limit
        assert not any(SECRET[-length:] in text for length in range(2, len(SECRET)))
    for end in range(len(data)):
        for text in (excerpt(server, 0, end, 1000)[0], excerpt(server, end, len(data), 1000)[0]):
            assert not any(piece in text for piece in (SECRET[:8], SECRET[-8:], SECRET[4:12]))


def test_a_log_that_was_truncated_is_shown_from_its_beginning(server: CommandServer) -> None:
    server.log_path.write_text("new\n")
    assert excerpt(server, 1000, None, 100) == ("new", 0)
    assert excerpt(server, 4, None, 100) == ("", 0)
