"""Seconds that the stages of a server's end take at most; imports nothing: the supervisor and its owner both use it."""

from __future__ import annotations

STARTUP_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL while the server is not ready: vLLM 0.32 ignores SIGTERM then."""
DRAIN_GRACE = 5.0
"""Seconds that descendants get after their root has ended: those of vLLM 0.32 need up to 2.6."""
SETTLE = 0.05
"""Seconds after the root's end at which descendants that are still there get a SIGTERM of their own."""
STUBBORN_GRACE = 0.5
"""Seconds that descendants get when all that are left ignore SIGTERM. Not zero: Python's resource tracker
ignores it, cleans shared memory up once the others are gone, and ends then."""
KILL_LIMIT = 10.0
"""Seconds after which processes that survive SIGKILL (uninterruptible sleep) are given up."""
ASKED_GRACE = 2.0
"""Debug mode: seconds that what outlived its root gets to end after a SIGTERM, so that it can clean up."""
OWNER_GONE_GRACE = 1.0
"""Seconds beyond stop_timeout at which all is killed when the owner is gone."""
