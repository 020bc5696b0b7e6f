"""Which of pytest's other plugins are installed."""

from __future__ import annotations

from importlib.util import find_spec


def installed(*plugins: str) -> tuple[str, ...]:
    """Return those of these plugins, named by their modules, that are installed."""
    return tuple(name for name in plugins if find_spec(name.partition(".")[0]))
