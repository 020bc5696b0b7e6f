"""What works on one machine works on a cluster: tests of `tests/plugin` once more, their servers on three nodes."""

from __future__ import annotations

import pytest
from plugin import test_factory as factory
from plugin import test_fixtures as fixtures
from plugin import test_needs_and_exclusive as needs_and_exclusive
from plugin.test_factory import *  # noqa: F403
from plugin.test_fixtures import (
    test_dependent_fixtures_are_finished_while_the_server_runs as test_dependent_fixtures,  # noqa: F401
)
from plugin.test_needs_and_exclusive import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("on_cluster", "hard_limit")

EVERY_DAY = {
    factory.test_logs_deaths_and_leaks_of_these_servers_are_reported_at_the_test: (),
    fixtures.test_dependent_fixtures_are_finished_while_the_server_runs: (),
    needs_and_exclusive.test_servers_come_together_or_not_at_all: ("alone",),
    needs_and_exclusive.test_alone_a_test_may_stop_kill_and_start_its_server: ("n2",),
}
"""See `conftest`."""
