"""A part of a server's log in a report: bounded, and clean also where it is cut."""

from __future__ import annotations

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
    made.launches = 1
    return made


def test_long_lines_and_many_lines_are_bounded() -> None:
    long = bounded("x" * 16_000)
    assert len(long) < 2100
    assert long.endswith("[... 14000 characters left out]")
    many = bounded("a\nb\n" * 4000).split("\n")
    assert many[0] == "[... 7600 lines left out]"
    assert len(many) == 401
    assert len(bounded("first\n" + "\n" * 16_000 + "last\n").split("\n")) < 10


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
