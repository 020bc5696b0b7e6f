"""The cleaner: escape sequences, unprintable characters, secrets, and what is left of them where a text is cut."""

from __future__ import annotations

import os
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_infserver.system.secrets import MIN_LENGTH
from pytest_infserver.system.text import (
    clean,
    clean_part,
    cleaned,
    legible,
    margin,
    one_line,
    without_escapes,
    without_middle,
)

SECRET = "sk-0123456789-é-abcdef"
SECRETS = frozenset({SECRET})
RAW = SECRET.encode()
COLOUR = "\x1b[1;36m"
REPEATED = b"abc-abc-abcdef"


# Whole texts.


def test_a_text_that_is_too_long_has_its_beginning_and_end_and_says_what_is_left_out() -> None:
    lines = [f"line {number} {COLOUR}{SECRET}\x1b[0m" for number in range(1000)]
    text = "\n".join(lines)
    assert without_middle(text, SECRETS, len(text)) == clean(text, SECRETS)
    shown = without_middle(text, SECRETS, 3000)
    assert len(shown) < 3100
    first, note, last = re.split(r"\n(\[.*characters left out ...\])\n", shown)
    assert first.startswith("line 0 ********\nline 1")
    assert last.endswith("line 999 ********")
    assert len(text) - 3000 <= int(note.split()[1]) < len(text) - 2800
    assert without_middle(text, SECRETS, 0) == f"\n[... {len(text)} characters left out ...]\n"


@pytest.mark.parametrize("limit", range(30, 120))
def test_where_the_middle_is_left_out_no_part_of_a_secret_stays(limit: int) -> None:
    text = f"https://bob:url-pass-1@host/x {SECRET} " * 40
    assert not re.search(r"0123|abcd|url-p|pass", without_middle(text, SECRETS, limit))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"a {SECRET} b {SECRET}", "a ******** b ********"),
        (f"{SECRET}456", "********456"),
        ("nothing here", "nothing here"),
        ("line\r\nof\ra\tlog", "line\nof\na\tlog"),
        ("a\0b\x07c\u202ed\u00a0e\u202ff", "ab c d\u00a0e\u202ff"),
        (f"{COLOUR}red\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x1b]0;title\x07\x9b31mx\x1b(B", "red link x"),
        ("caf\udce9 \ud800", "caf\udce9  "),
        (b"caf\xe9 \xe2\x82", "caf\ufffd \ufffd\ufffd"),
        (f"title \x1b]0;{SECRET}\x07 end", "title  end"),
        (f"\x1b{SECRET}", " ********"),
        (f"{SECRET[:9]}\n{SECRET[9:]}", "********"),
    ],
)
def test_clean(text: str | bytes, shown: str) -> None:
    assert clean(text, SECRETS) == shown


@pytest.mark.parametrize(
    "inside",
    [COLOUR, "\x1b]0;title\x07", "\x00\x00\x00", "\x07", "\u202e", "\x9b1m", "\x1b(B", "\x1bP1;x\x1b\\", "\r\n"],
)
def test_a_secret_with_something_invisible_inside_is_masked(inside: str) -> None:
    for at in range(1, len(SECRET)):
        text = f"key {SECRET[:at]}{inside}{SECRET[at:]} end"
        assert clean(text, SECRETS) == clean_part(b"", text.encode(), SECRETS) == "key ******** end"


def test_secrets_that_overlap_are_masked_whole() -> None:
    assert clean("one-and-two-and-three", frozenset({"one-and-two", "two-and-three"})) == "********"
    assert clean("a" * 12, frozenset({"a" * 8})) == "********"
    assert clean(f"{SECRET}-and-more", frozenset({SECRET, f"{SECRET}-and-more"})) == "********"


@pytest.mark.parametrize(
    ("secret", "written"),
    [
        ("it's a 'key'", "'it'\"'\"'s a '\"'\"'key'\"'\"''"),
        ('a "quoted" key', '{"key": "a \\"quoted\\" key"}'),
        ("k\u00e9y-of-mine", '{"key": "k\\u00e9y-of-mine"}'),
        ("two\nlines-of-it", "'two\\nlines-of-it'"),
        ("p@ss/word", "http://host/?key=p%40ss%2Fword"),
        ("-----BEGIN\nfirst-line\nsecond-line", "| second-line"),
        ("caf\udce9-secret", "caf\udce9-secret"),
    ],
)
def test_a_secret_is_known_however_it_is_written(secret: str, written: str) -> None:
    shown = clean(f"x {written} y", frozenset({secret}))
    assert "********" in shown
    assert not any(word in shown for word in ("quoted", "mine", "lines", "word", "second", "secret", "it'"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("get http://bob:hunter2@host/x", "get http://bob:********@host/x"),
        (f"get http://bob:hun{COLOUR}ter2@host/x", "get http://bob:********@host/x"),
        ("get http://bob:p@ss@host/x", "get http://bob:********@host/x"),
        ("get http://:p'w\"x@host", "get http://:********@host"),
        ("http://proxy:3128/a@b:c", "http://proxy:3128/a@b:c"),
        ('{"a": "http://h:80","b":"x@y"}', '{"a": "http://h:********@y"}'),
        ("http://a:8000\nbob@host", "http://a:8000\nbob@host"),
    ],
)
def test_passwords_of_urls_are_masked(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_values_of_json_are_cleaned_and_numbers_stay() -> None:
    value = {"key": [SECRET, 1, None, True, {"x": f"{COLOUR}red"}], "pair": ("a", SECRET)}
    shown = {"key": ["********", 1, None, True, {"x": "red"}], "pair": ["a", "********"]}
    assert cleaned(value, SECRETS) == shown


def test_one_line_is_short_and_can_be_encoded() -> None:
    assert one_line(b"\t a\x0bb\x1b[2K \n") == "a b"
    assert one_line("a\nb\tc \udce9\ud800") == "a b c \ufffd"
    assert one_line(f"{'x' * 495} {SECRET}", SECRETS) == f"{'x' * 495} **** ..."
    assert one_line(b"key " + RAW[:12], SECRETS) == "key sk-012345678"
    assert one_line(b"key " + RAW[:12], SECRETS, cut=True) == "key ********"
    assert legible("caf\udce9").encode() == "caf\ufffd".encode()


def test_escape_sequences_are_no_part_of_what_is_searched() -> None:
    assert without_escapes(b"\x1b]0;title\x07\x1b[1mError\x1b[0m: x \x1b]2;other\x1b\\end") == b"Error: x end"


# Parts.


@pytest.mark.parametrize("cut", range(1, len(RAW)))
def test_a_secret_that_the_beginning_cuts_is_masked_whole(cut: int) -> None:
    assert clean_part(b"key " + RAW[:cut], RAW[cut:] + b" end", SECRETS) == "******** end"


@pytest.mark.parametrize("cut", range(1, len(REPEATED)))
@pytest.mark.parametrize("before", [b"", b"text ", REPEATED, REPEATED * 3])
def test_so_is_one_that_repeats_itself(cut: int, before: bytes) -> None:
    secrets = frozenset({REPEATED.decode()})
    known = (before + REPEATED[:cut])[-margin(secrets) :]
    assert clean_part(known, REPEATED[cut:] + b" end", secrets) == "******** end"


@pytest.mark.parametrize("cut", range(8, len(RAW)))
def test_a_secret_that_is_still_being_written_is_masked(cut: int) -> None:
    assert clean_part(b"", b"key " + RAW[:cut], SECRETS) == "key ********"
    assert clean_part(b"", b"key " + RAW[:cut] + b"\x1b[1;3", SECRETS) == "key ********"


def test_the_rest_of_a_secret_is_masked_also_if_nothing_is_known_of_its_beginning() -> None:
    assert clean_part(b"", RAW[-9:] + b" end", SECRETS) == "******** end"
    assert clean_part(b"", RAW[4:-4], SECRETS) == "********"


def test_what_only_looks_like_a_short_piece_of_a_secret_stays() -> None:
    assert clean_part(b"key other", b"abcdef end", SECRETS) == "abcdef end"
    assert clean_part(b"key " + RAW + b" ", b"end sk-0123", SECRETS) == "end sk-0123"


def test_whole_secrets_at_the_edges_are_masked_once() -> None:
    secrets = frozenset({REPEATED.decode()})
    assert clean_part(REPEATED, REPEATED + b" " + REPEATED, secrets) == "******** ********"
    assert clean_part(b"", b"", secrets) == ""
    assert clean_part(b"x", b"y", frozenset()) == "y"


def test_an_escape_sequence_that_the_beginning_cuts_is_gone() -> None:
    assert clean_part(b"red \x1b[1;3", b"6mtext", frozenset()) == "text"


def test_a_secret_as_a_shell_command_has_it_needs_a_wider_margin() -> None:
    secret = "it's a 'secret'"
    quoted = secret.replace("'", "'\"'\"'").encode()
    assert margin(frozenset({secret})) >= len(quoted)
    assert margin(frozenset()) == 0
    assert clean_part(b"x " + quoted[:20], quoted[20:] + b" end", frozenset({secret})) == "******** end"


def test_control_characters_are_gone_and_a_progress_bar_is_lines() -> None:
    data = b"\x1b[1;31mred\x1b[0m\tbell\x07 back\x08 \xc2\x9b31m del\x7f\r\n"
    text = clean_part(b"", data + b"\r 10%\r 20%\r 30%\nnul\0\0\0s \xe2\x80\xae bidi \x1bM \x1b", frozenset())
    lines = text.split("\n")
    assert lines[0] == "red\tbell  back   del "
    assert [line for line in lines if "%" in line] == [" 10%", " 20%", " 30%"]
    assert lines[-1].startswith("nuls   bidi")


@pytest.mark.parametrize("apart", [b"\0", b"\x1b[0m", b"\x1b]0;x\x07"])
def test_bytes_do_not_become_a_character_because_of_what_was_between_them(apart: bytes) -> None:
    assert clean_part(b"", b"a\xc2" + apart + b"\x9b31mb", frozenset()) in ("a\ufffd\ufffd31mb", "a\ufffdb")


def test_random_bytes_of_all_kinds_are_survived_quickly() -> None:
    secret = "s" * 4000
    begin = time.monotonic()
    for _ in range(5):
        data = os.urandom(8000) + b"\x1b" * 1000 + b"\x1b]" * 1000 + b"s" * 3999 + b"\x1b[" * 1000
        text = clean_part(os.urandom(4000), data, frozenset({secret}))
        assert all(char.isprintable() or char in "\n\t\u00a0\u202f" for char in text)
        assert len(text) < 40_000
    assert time.monotonic() - begin < 30


# Whatever the secret, whatever stands in it, wherever it is cut.

NOISE = st.one_of(
    st.builds("\x1b[{}m".format, st.sampled_from(["", "0", "1;36", "38;5;196", "38;2;1;2;3"])),
    st.sampled_from(["\x1b[K", "\x1b[2J", "\x1b]0;a title\x07", "\x1b]8;;http://x\x1b\\", "\x1b(B", "\x1bM", "\x9b1m"]),
    st.sampled_from(["\0", "\x07", "\x08", "\r", "\n", "\t", "\u202e", "\u200b", "\ufeff", "\x85"]),
)
VALUES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=MIN_LENGTH, max_size=60)
AROUND = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@st.composite
def noisy(draw: st.DrawFn) -> tuple[str, str]:
    """Return a secret, and a text that has it with noise inside."""
    secret = draw(VALUES.filter(lambda value: set(value) != {"*"}))
    places = draw(st.lists(st.integers(1, len(secret) - 1), max_size=6, unique=True))
    text = "".join(draw(NOISE) + char if place in places else char for place, char in enumerate(secret))
    # What ends with an escape character would take the secret's first one along.
    return secret, f"{draw(AROUND)} {text} {draw(AROUND)}"


def seen(text: str) -> str:
    """Return what can be read of a text."""
    return "".join(filter(str.isprintable, text))


@given(noisy())
def test_no_text_holds_a_secret_whatever_stands_in_it(drawn: tuple[str, str]) -> None:
    secret, text = drawn
    secrets = frozenset({secret})
    shown = [clean(text, secrets), clean(text.encode(), secrets), one_line(text, secrets, 10_000)]
    shown += cleaned({"a": [text]}, secrets)["a"]
    for one in shown:
        assert secret not in seen(one)
        assert "\x1b" not in one


@given(noisy(), st.data())
def test_no_part_of_a_text_holds_a_piece_of_a_secret_at_its_ends(drawn: tuple[str, str], data: st.DataObject) -> None:
    secret, text = drawn
    raw, secrets = text.encode(), frozenset({secret})
    begin = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(begin, len(raw)))
    for known in (margin(secrets), 0):
        # Without what stands before, an escape sequence that is cut at the beginning is text.
        if not known and b"\x1b" in raw[:begin]:
            continue
        part = clean_part(raw[max(0, begin - known) : begin], raw[begin:end], secrets)
        assert secret not in seen(part)
        for length in range(MIN_LENGTH, len(secret)):
            assert not seen(part).startswith(secret[-length:])
            assert not seen(part).endswith(secret[:length])
