"""One pool for all workers of xdist, on a cluster too: the tests of `tests/plugin/test_xdist.py` once more."""

from __future__ import annotations

import pytest
from plugin.test_xdist import *  # noqa: F403
from plugin.test_xdist import run as run

pytestmark = pytest.mark.usefixtures("on_cluster", "hard_limit")
