"""Foreign text and numbers (ids, logs, messages) in a form that every reader of our files can take."""

from __future__ import annotations

from pytest_infserver.system.text import clean, legible


def plain(value: object, limit: int) -> str:
    """Return a value as clean text of at most about ``limit`` characters."""
    text = legible(clean(value if isinstance(value, str) else "" if value is None else str(value)))
    if len(text) > limit:
        # Both ends of an id tell something: the file, and the parameters.
        head, tail = limit * 2 // 3, limit - limit * 2 // 3
        text = f"{text[:head]}[... {len(text) - limit} characters ...]{text[-tail:]}"
    return text
