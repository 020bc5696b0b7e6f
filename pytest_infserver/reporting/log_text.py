"""A part of a server's log as text that can be shown anywhere: bounded, without secrets and control characters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from pytest_infserver.launcher.redaction import mask_cut, redact

_MAX_RUN = 5
_MAX_LINES = 400
_MAX_LINE = 2000

_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[PX^_][^\x1b\n]*(?:\x1b\\)?|[ -/]*[0-~])"
)
"""Colours, cursor movements, window titles."""


def clean(before: bytes, data: bytes, secrets: frozenset[str]) -> str:
    """Return a part of a log as text.

    Args:
        before: What stands before it: a secret may begin there.
        data: The part.
        secrets: Values to hide.
    """
    text = mask_cut(before, data, secrets).decode("utf-8", "replace")
    # Once more without the escape sequences, which may stand in the middle of a secret.
    text = redact(_printable(redact(text, secrets)), secrets)
    return "\n".join(_bounded(text.strip("\n").rstrip().split("\n")))


def _printable(text: str) -> str:
    # A progress bar writes over its line again and again.
    lines = _ESCAPE.sub("", text).replace("\0", "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join("".join(char if char.isprintable() or char == "\t" else " " for char in line) for line in lines)


def _bounded(lines: list[str]) -> list[str]:
    shown = [line if len(line) <= _MAX_LINE else _shortened(line) for line in _collapsed(lines)]
    left_out = len(shown) - _MAX_LINES
    return [f"[... {left_out} lines left out]", *shown[left_out:]] if left_out > 0 else shown


def _shortened(line: str) -> str:
    return f"{line[:_MAX_LINE]} [... {len(line) - _MAX_LINE} characters left out]"


def _collapsed(lines: list[str]) -> Iterator[str]:
    """Return the lines with long runs of those that differ only in numbers cut short."""
    for _, group in itertools.groupby(lines, lambda line: re.sub(r"[0-9]+", "0", line)):
        run = list(group)
        if len(run) > _MAX_RUN:
            run = [run[0], f"[... {len(run) - 2} similar lines left out]", run[-1]]
        yield from run
