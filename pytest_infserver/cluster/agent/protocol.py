"""How the process that is connected to Ray marks its answers; imports nothing, as both sides use it."""

from __future__ import annotations

ANSWERED = "answered"
FAILED = "failed"
"""It could not be done."""
DEAD = "dead"
"""The actor that was asked is gone."""
LATE = "late"
"""The actor has not answered in time."""
AWAY = "away"
"""The connection to the actor is broken, for a moment or for good."""
OTHER = "other"
"""Another cluster answers now."""
