"""Faults take longer than other tests: some are tried at each line of the launcher."""

from __future__ import annotations

import pytest

HARD_LIMIT = 900
"""Seconds after which a test counts as hung; the longest takes half a minute."""


@pytest.fixture
def hard_limit_seconds() -> int:
    """Give faults more time than other tests have."""
    return HARD_LIMIT
