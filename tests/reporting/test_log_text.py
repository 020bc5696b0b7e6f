"""A part of a server's log as text: secrets that a limit cuts, control characters, floods."""

from __future__ import annotations

import os
import time

import pytest

from pytest_infserver.launcher.redaction import margin
from pytest_infserver.reporting.log_text import clean

SECRET = "sk-0123456789-é-abcdef"
SECRETS = frozenset({SECRET})
RAW = SECRET.encode()


@pytest.mark.parametrize("cut", range(1, len(RAW)))
def test_a_secret_that_the_beginning_cuts_is_masked_whole(cut: int) -> None:
    assert clean(b"key " + RAW[:cut], RAW[cut:] + b" end", SECRETS) == "******** end"


@pytest.mark.parametrize("cut", range(8, len(RAW)))
def test_a_secret_that_is_still_being_written_is_masked(cut: int) -> None:
    assert clean(b"", b"key " + RAW[:cut], SECRETS) == "key ********"


def test_what_only_looks_like_the_rest_of_a_secret_stays() -> None:
    assert clean(b"key other", RAW[10:] + b" end", SECRETS) == f"{RAW[10:].decode()} end"
    assert clean(b"key " + RAW + b" ", b"end sk-0123", SECRETS) == "end sk-0123"


@pytest.mark.parametrize(
    "text",
    ["sk-\x1b[31m0123456789-é-abcdef", "sk-0123\x1b]0;title\x07456789-é-abcdef", "sk-01\x00\x00\x0023456789-é-abcdef"],
)
def test_a_secret_with_something_invisible_inside_is_masked(text: str) -> None:
    assert clean(b"", f"key {text} end".encode(), SECRETS) == "key ******** end"


def test_a_secret_as_a_shell_command_has_it_needs_a_wider_margin() -> None:
    secret = "it's a 'secret'"
    quoted = secret.replace("'", "'\"'\"'").encode()
    assert margin(frozenset({secret})) == len(quoted)
    assert clean(b"x " + quoted[:20], quoted[20:] + b" end", frozenset({secret})) == "******** end"


def test_without_secrets_there_is_no_margin() -> None:
    assert margin(frozenset()) == 0
    assert clean(b"", b"text\n", frozenset()) == "text"


def test_control_characters_are_gone_and_a_progress_bar_is_lines() -> None:
    data = b"\x1b[1;31mred\x1b[0m\tbell\x07 back\x08 \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \xc2\x9b31m del\x7f\r\n"
    text = clean(b"", data + b"\r 10%\r 20%\r 30%\nnul\0\0\0s \xe2\x80\xae bidi \x1bM \x1b", frozenset())
    lines = text.split("\n")
    assert lines[0] == "red\tbell  back  link  31m del "
    assert [line for line in lines if "%" in line] == [" 10%", " 20%", " 30%"]
    assert lines[-1].startswith("nuls   bidi")
    assert all(char.isprintable() or char in "\n\t" for char in text)


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert clean(b"", b"a \xff\xfe b \xe2\x82", frozenset()) == "a \ufffd\ufffd b \ufffd"


def test_long_lines_and_many_lines_are_bounded() -> None:
    long = clean(b"", b"x" * 16_000, frozenset())
    assert len(long) < 2100
    assert long.endswith("[... 14000 characters left out]")
    many = clean(b"", b"a\nb\n" * 4000, frozenset()).split("\n")
    assert many[0] == "[... 7600 lines left out]"
    assert len(many) == 401
    blank = clean(b"", b"first\n" + b"\n" * 16_000 + b"last\n", frozenset())
    assert len(blank.split("\n")) < 10


def test_random_bytes_of_all_kinds_are_survived_quickly() -> None:
    secret = "s" * 4000
    begin = time.monotonic()
    for _ in range(20):
        data = os.urandom(8000) + b"\x1b" * 1000 + b"\x1b]" * 1000 + b"s" * 3999 + b"\x1b[" * 1000
        text = clean(os.urandom(4000), data, frozenset({secret}))
        assert all(char.isprintable() or char in "\n\t" for char in text)
        assert len(text) < 40_000
    assert time.monotonic() - begin < 30
