"""How an engine is told to sleep, and to wake."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SleepRequests:
    """The requests of an engine, all POST.

    Attributes:
        sleep: The path that puts it to sleep; ``{level}`` stands for how deep.
        wake: The path that wakes it.
        advice: What it has to be started with.
    """

    sleep: str
    wake: str
    advice: str
