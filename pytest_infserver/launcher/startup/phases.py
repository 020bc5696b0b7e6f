"""What a starting engine is doing, as its log tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Phase(NamedTuple):
    """A phase of an engine's start.

    Attributes:
        pattern: The log line that tells of it.
        name: What users are told; ``{}`` stands for what the pattern's first group has matched.
    """

    pattern: re.Pattern[bytes]
    name: str


def without_percent(phase: str) -> str:
    """Return a phase's name without how far it has come: that alone makes no new phase."""
    return re.sub(r" ?\d+ ?%", "", phase)


def newest_phase(lines: Iterable[bytes], phases: Sequence[Phase]) -> str | None:
    """Return the phase of the last of some log lines that tells of one."""
    for line in reversed(list(lines)):
        for phase in phases:
            found = phase.pattern.search(line)
            if found:
                return phase.name.format(*((group or b"").decode("utf-8", "replace") for group in found.groups()))
    return None
