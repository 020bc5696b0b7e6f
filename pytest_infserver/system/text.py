"""The one cleaner of every text that leaves us: it takes away escape sequences, unprintable characters and secrets.

A secret is looked for among the characters that can be seen, so that no colour in the middle of it hides it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_infserver.system.secrets import MIN_LENGTH, forms, url_passwords

MASK = "********"
MAX_LINE = 500
"""Characters that a line in a message may have."""

_SEVEN_BITS = (
    # Colours and cursor movements, window titles and links, other strings, all else; the end may cut each of them.
    r"\x1b\[[0-?]*[ -/]*(?:[@-~]|\Z)"
    r"|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)?"
    r"|\x1b[PX^_][^\x1b\n]*(?:\x1b\\)?"
    r"|\x1b[ -/]*(?:[0-~]|\Z)"
)
_ESCAPE = re.compile(rf"{_SEVEN_BITS}|\x9b[0-?]*[ -/]*(?:[@-~]|\Z)|[\x90\x98\x9d-\x9f][^\x07\x1b\x9c\n]*(?:\x07|\x9c)")
_ESCAPE_IN_BYTES = re.compile(_SEVEN_BITS.encode())
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LONE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
_HIDDEN = "\ufdd0"
"""Stands for a secret while escape sequences are removed: it is no character, so that no text has it."""
_SPACES = "\r\n\t"
_LAST_WORD, _FIRST_WORD = re.compile(r"\S{1,500}\Z"), re.compile(r"\A\S{1,500}")
_KEPT = frozenset(f"\n\t\u00a0\u202f{_HIDDEN}")
"""What is no printable character for Python, and stays."""
_MARGIN = 24
"""How many bytes of a log a character of a secret may take, with a colour of its own."""
_MAX_MARGIN = 64 * 1024
"""Bytes that are read for the sake of colours in a long secret."""

Span = tuple[int, int]


def clean(text: str | bytes, secrets: frozenset[str] = frozenset()) -> str:
    """Return a text as it may leave us. Its lines and tabs stay, and a carriage return ends a line.

    Args:
        text: The text; what cannot be decoded is replaced in bytes, and left alone in a `str`, which is a path then.
        secrets: Values to hide; passwords of URLs are hidden, too.
    """
    if isinstance(text, bytes):
        return legible(clean(text.decode("utf-8", "surrogateescape"), secrets))
    if text.isprintable() and "://" not in text and not any(form in text for form in forms(secrets)):
        return text
    return _without(text, _secret_spans(text, secrets, _views(text)))


def clean_part(before: bytes, data: bytes, secrets: frozenset[str] = frozenset()) -> str:
    """Return a part of a longer text as it may leave us: also secrets that one of its ends cuts are masked.

    Args:
        before: What stands before the part, as far as `margin` says, if that is known.
        data: The part.
        secrets: Values to hide.
    """
    while before and data and 0x80 <= data[0] < 0xC0:
        # The rest of a character.
        before, data = before + data[:1], data[1:]
    start = len(before.decode("utf-8", "surrogateescape"))
    text = (before + data).decode("utf-8", "surrogateescape")
    for match in _ESCAPE.finditer(text):
        if match.start() >= start:
            break
        start = max(start, match.end())
    views = _views(text)
    spans = [*_secret_spans(text, secrets, views), *_cut_spans(text, start, secrets, views)]
    return legible(_without(text, spans, start))


def one_line(
    text: str | bytes, secrets: frozenset[str] = frozenset(), limit: int = MAX_LINE, *, cut: bool = False
) -> str:
    """Return a text as one line for a message or a terminal, shortened.

    Args:
        text: The text.
        secrets: Values to hide.
        limit: Characters that it may have.
        cut: Whether its ends may have cut something.
    """
    whole = clean_part(b"", _encoded(text), secrets) if cut else legible(clean(text, secrets))
    # Shortened last: half a secret would not be found any more.
    return shortened(whole.replace("\n", " ").replace("\t", " ").strip(), limit)


def shortened(text: str, limit: int) -> str:
    """Return the beginning of a text that is clean already, if it is too long."""
    return text if len(text) <= limit else f"{text[:limit]} ..."


def without_middle(text: str, secrets: frozenset[str], limit: int) -> str:
    """Return a clean text; of one that is too long its beginning and its end, and how much is left out between them."""
    if len(text) <= limit:
        return legible(clean(text, secrets))
    # Words stay whole, so that no half of a URL's password is left.
    begin = _LAST_WORD.sub("", text[: limit // 3])
    end = _FIRST_WORD.sub("", text[len(text) - (limit - limit // 3) :])
    first, last = (clean_part(b"", _encoded(part), secrets) for part in (begin, end))
    return f"{first.rstrip()}\n[... {len(text) - len(begin) - len(end)} characters left out ...]\n{last.lstrip()}"


def cleaned(value: Any, secrets: frozenset[str]) -> Any:
    """Return JSON values with every text in them cleaned; names of fields are ours."""
    if isinstance(value, str):
        return clean(value, secrets)
    if isinstance(value, Mapping):
        # There may be some hundred thousand numbers.
        return {
            name: one if one is None or type(one) in (int, float, bool) else cleaned(one, secrets)
            for name, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [cleaned(one, secrets) for one in value]
    return value


def margin(secrets: frozenset[str]) -> int:
    """Return how many bytes before a part of a text `clean_part` has to know."""
    longest = max((len(form.encode("utf-8", "surrogateescape")) for form in forms(secrets)), default=0)
    return max(longest, min(_MARGIN * longest, _MAX_MARGIN))


def without_escapes(data: bytes) -> bytes:
    """Return bytes without escape sequences, for a search; secrets are in it."""
    return _ESCAPE_IN_BYTES.sub(b"", data) if b"\x1b" in data else data


# Where secrets are.


def _secret_spans(text: str, secrets: frozenset[str], views: Sequence[Sequence[int]]) -> list[Span]:
    found: list[Span] = []
    for places in views:
        found += _in_text(url_passwords(_seen(text, places)), places)
        places = _on_one_line(text, places)
        found += _in_text(_occurrences(_seen(text, places), forms(secrets)), places)
    return found


def _cut_spans(text: str, start: int, secrets: frozenset[str], views: Sequence[Sequence[int]]) -> list[Span]:
    """Return which ends of the part that begins at ``start`` are pieces of a secret."""
    found: list[Span] = []
    for places in (_on_one_line(text, places) for places in views):
        seen, own = _seen(text, places), bisect_left(places, start)
        part = seen[own:]
        for form in forms(secrets):
            if len(part) >= MIN_LENGTH and part in form:
                found.append((start, len(text)))
            head = next((length for length in _lengths(form, part) if part.startswith(form[-length:])), 0)
            if head:
                found.append((start, places[own + head - 1] + 1))
            tail = next((length for length in _lengths(form, seen) if seen.endswith(form[:length])), 0)
            if tail:
                found.append((places[-tail], len(text)))
    return found


def _lengths(form: str, text: str) -> range:
    return range(min(len(form) - 1, len(text)), MIN_LENGTH - 1, -1)


def _views(text: str) -> list[Sequence[int]]:
    """Return where the characters stand that can be seen, without escape sequences and as if there were none."""
    if text.isprintable():
        return [range(len(text))]
    whole = [place for place, char in enumerate(text) if char.isprintable() or char in _SPACES]
    hidden = {place for match in _ESCAPE.finditer(text) for place in range(*match.span())}
    return [whole, [place for place in whole if place not in hidden]] if hidden else [whole]


def _on_one_line(text: str, places: Sequence[int]) -> Sequence[int]:
    # A terminal's width may have cut a secret in two.
    return places if isinstance(places, range) else [place for place in places if text[place] not in _SPACES]


def _seen(text: str, places: Sequence[int]) -> str:
    return text if len(places) == len(text) else "".join(map(text.__getitem__, places))


def _occurrences(seen: str, sought: Iterable[str]) -> Iterator[Span]:
    for form in sought:
        at = seen.find(form)
        while at >= 0:
            yield at, at + len(form)
            # They may overlap.
            at = seen.find(form, at + 1)


def _in_text(spans: Iterable[Span], places: Sequence[int]) -> Iterator[Span]:
    return ((places[begin], places[end - 1] + 1) for begin, end in spans)


# What is left.


def _without(text: str, spans: Iterable[Span], start: int = 0) -> str:
    pieces, position = [], start
    for begin, end in _merged(spans):
        if end > start:
            pieces += [text[position : max(begin, start)].replace(_HIDDEN, " "), _HIDDEN]
            position = end
    pieces.append(text[position:].replace(_HIDDEN, " "))
    text = _ESCAPE.sub("", "".join(pieces)).replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    if not text.isprintable():
        text = "".join(map(_shown, text))
    return text.replace(_HIDDEN, MASK)


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def _shown(char: str) -> str:
    return char if char.isprintable() or char in _KEPT or "\udc80" <= char <= "\udcff" else " "


def legible(text: str) -> str:
    """Return a clean text with what could not be decoded replaced, so that it can be encoded."""
    # Each by itself: decoded together, bytes could become a character that were apart before something was removed.
    return text if text.isprintable() else _SURROGATE.sub("\ufffd", text)


def _encoded(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    # Other halves of surrogate pairs are no text either.
    return _LONE.sub("\ufffd", text).encode("utf-8", "surrogateescape")
