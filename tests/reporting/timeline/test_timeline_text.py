"""Foreign text, numbers and links in a form that no reader stumbles over."""

from __future__ import annotations

import json
import time
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_infserver.reporting.timeline.links import link
from pytest_infserver.reporting.timeline.text import plain


@given(st.text(st.characters(), max_size=300), st.integers(1, 100))
def test_any_text_can_be_written_and_is_bounded(text: str, limit: int) -> None:
    shown = plain(text, limit)
    assert json.loads(json.dumps(shown, ensure_ascii=False).encode()) == shown
    assert len(shown) <= limit + 40
    assert not any(letter < " " and letter not in "\t\n" for letter in shown)


def test_control_characters_are_gone_and_the_direction_of_writing_is_kept() -> None:
    assert plain("a\0b\x1b[31m\x7f\u202ec\ud800\udc80\td\n", 100) == "ab  c \ufffd\td\n"
    assert plain(None, 10) == ""
    assert plain(17, 10) == "17"


def test_a_megabyte_is_cut_in_the_middle() -> None:
    shown = plain("tests/test_a.py::" + "x" * 1_000_000 + "[gguf]", 90)
    assert shown.startswith("tests/test_a.py::x")
    assert shown.endswith("x[gguf]")
    assert "999933 characters" in shown


@pytest.mark.parametrize("text", ["a" * 1_000_000, "\x1b[" * 300_000, "\r" * 1_000_000, "\x1b]" * 300_000])
def test_a_hostile_text_costs_no_more_than_another(text: str) -> None:
    begin = time.monotonic()
    plain(text, 1000)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("llama/server.log", "./llama/server.log"),
        ("../profiles/a b#1?.svg", "../profiles/a%20b%231%3F.svg"),
        ("/var/log/x.log", "file:///var/log/x.log"),
        ("//evil.example/x", "file:///evil.example/x"),
        ("\\\\evil\\x", "./%5C%5Cevil%5Cx"),
        ("https://ci.example/a?b=c#d", "https://ci.example/a?b=c#d"),
        ('http://a/"><script>', "http://a/%22%3E%3Cscript%3E"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        (" javascript:alert(1)", "./%20javascript%3Aalert%281%29"),
        ("java\nscript:alert(1)", "./java%0Ascript%3Aalert%281%29"),
        ("data:text/html,x", "./data%3Atext/html%2Cx"),
        ("file:///etc/passwd", "./file%3A///etc/passwd"),
        ("caf\udce9.log", "./caf%E9.log"),
        ("\ud800.log", "./%3F.log"),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_links_lead_to_files_and_web_pages_only(target: object, address: str | None) -> None:
    assert link(target) == address


@given(st.text(st.characters(), min_size=1, max_size=60))
def test_no_text_becomes_a_script_or_another_host(text: str) -> None:
    address = link(text)
    assert address is not None
    parts = urlsplit(address)
    assert parts.scheme in ("", "file", "http", "https")
    if parts.scheme in ("", "file"):
        assert parts.netloc == ""
    assert not set(address) & set("\"'<>\\ \n\t\r\0") - set("'")
    assert unquote(address)
