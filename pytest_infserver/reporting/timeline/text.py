"""Foreign text and numbers (ids, logs, messages) in a form that every reader of our files can take."""

from __future__ import annotations

import re

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_ODD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters but tab and newline, what turns the direction of writing, and halves of surrogate pairs."""


def plain(value: object, limit: int) -> str:
    """Return a value as text of at most about ``limit`` characters; control characters are shown, not obeyed."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    if len(text) > limit:
        # Both ends of an id tell something: the file, and the parameters.
        head, tail = limit * 2 // 3, limit - limit * 2 // 3
        text = f"{text[:head]}[... {len(text) - limit} characters ...]{text[-tail:]}"
    return _ODD.sub(_visible, text)


def terminal_text(text: str) -> str:
    """Return what a log would show on a terminal: without colours, and of a progress bar the last state."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return _ANSI.sub("", "\n".join(lines))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Unicode's pictures of control characters.
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
