"""What works on one machine works on a cluster: tests of `tests/plugin` once more, their servers on three nodes."""

from __future__ import annotations

import pytest
from plugin import test_crash_policy as crash_policy
from plugin import test_factory as factory
from plugin import test_failure_sections as failure_sections
from plugin import test_fixtures as fixtures
from plugin import test_leaks as leaks
from plugin import test_needs_and_exclusive as needs_and_exclusive
from plugin import test_profile_marker as profile_marker
from plugin.test_crash_policy import *  # noqa: F403
from plugin.test_factory import *  # noqa: F403
from plugin.test_failure_sections import (
    test_a_server_that_died_and_runs_again_is_shown_as_it_was_when_it_died as test_death_and_restart,  # noqa: F401
)
from plugin.test_fixtures import (
    test_dependent_fixtures_are_finished_while_the_server_runs as test_dependent_fixtures,  # noqa: F401
)
from plugin.test_leaks import (
    test_server_of_the_factory as test_leaks_of_the_factory,  # noqa: F401
)
from plugin.test_leaks import (
    test_the_error_stands_at_the_test_that_ended_the_use_of_the_leaking_server as test_leaks,  # noqa: F401
)
from plugin.test_leaks import (
    test_what_a_dead_server_leaves_is_a_note_and_its_death_the_error as test_leaks_of_a_dead_server,  # noqa: F401
)
from plugin.test_needs_and_exclusive import *  # noqa: F403
from plugin.test_profile_marker import (
    test_a_test_that_stops_or_restarts_its_server_has_its_trace as test_trace_of_a_stop,  # noqa: F401
)
from plugin.test_profile_marker import (
    test_a_worker_that_is_killed_in_a_profile_stands_in_nobodys_way as test_worker_killed_in_a_profile,  # noqa: F401
)
from plugin.test_profile_marker import (
    test_blocks_of_two_workers_take_turns as test_turns,  # noqa: F401
)
from plugin.test_profile_marker import (
    test_the_trace_of_a_test_is_named_after_it_and_shown_wherever_one_looks as test_names_of_traces,  # noqa: F401
)
from plugin.test_profile_marker import (
    test_the_whole_life_gives_way_to_a_test_and_is_shown_as_the_servers as test_whole_life,  # noqa: F401
)

pytestmark = pytest.mark.usefixtures("on_cluster", "hard_limit")

EVERY_DAY = {
    crash_policy.test_restart_gives_the_same_port_and_three_of_them_at_most: ("alone",),
    crash_policy.test_all_who_use_it_fail_with_its_reason_and_later_ones_pass: (),
    factory.test_logs_deaths_and_leaks_of_these_servers_are_reported_at_the_test: (),
    failure_sections.test_a_server_that_died_and_runs_again_is_shown_as_it_was_when_it_died: ("n2",),
    fixtures.test_dependent_fixtures_are_finished_while_the_server_runs: (),
    leaks.test_the_error_stands_at_the_test_that_ended_the_use_of_the_leaking_server: (),
    needs_and_exclusive.test_servers_come_together_or_not_at_all: ("alone",),
    needs_and_exclusive.test_alone_a_test_may_stop_kill_and_start_its_server: ("n2",),
    profile_marker.test_blocks_of_two_workers_take_turns: (),
    profile_marker.test_the_trace_of_a_test_is_named_after_it_and_shown_wherever_one_looks: ("n2",),
}
"""See `conftest`."""
