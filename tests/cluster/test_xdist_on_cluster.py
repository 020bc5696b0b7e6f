"""One pool for all workers of xdist, on a cluster too: the tests of `tests/plugin/test_xdist.py` once more."""

from __future__ import annotations

import pytest
from plugin import test_xdist as tests
from plugin.test_xdist import *  # noqa: F403
from plugin.test_xdist import run as run

pytestmark = pytest.mark.usefixtures("on_cluster", "hard_limit")

EVERY_DAY = {
    tests.test_a_server_starts_once_for_all_workers_and_ends_after_its_last_test: ("True", "loadscope", "each"),
    tests.test_a_crash_of_a_worker_costs_one_test: (),
    tests.test_ctrl_c_ends_all: ("controller", "test-group"),
}
"""See `conftest`."""
