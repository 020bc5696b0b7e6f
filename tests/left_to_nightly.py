"""What .ci/run leaves to .ci/nightly: tests of whose kind it runs another one.

File to its tests; a test has the words by one of which a case of it is left out, none for all of its cases. Those that
bear the mark `promise` are never left out. Tables of cases say it beside them, see sampling.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from tiers import TESTS

ALL: Collection[str] = ()
WORKERS = ("n2",)
LEFT_OUT: Mapping[str, Mapping[str, Collection[str]]] = {
    "cluster/test_as_on_one_machine.py": {
        "test_alone_a_test_may_stop_kill_and_start_its_server": ALL,
        "test_dependent_fixtures": ALL,
    },
    "cluster/test_cluster_faults.py": {
        "test_a_cluster_that_stays_busy_fails_the_tests_and_says_what_is_free": ALL,
        "test_the_test_in_whose_midst_it_breaks_fails_with_the_reason_and_the_next_one_has_it_again": (
            "supervisor",
            "actor",
        ),
        "test_what_the_test_before_has_said_is_not_shown_with_a_death": ALL,
    },
    "cluster/test_crash_policy_on_cluster.py": {
        "test_all_who_use_it_fail_with_its_reason_and_later_ones_pass": ALL,
    },
    "cluster/test_local_cluster.py": {"test_auto_finds_the_cluster_of_this_machine": ALL},
    "cluster/test_profile_marker_on_cluster.py": {"test_blocks_of_two_workers_take_turns": ALL},
    # That the installed engines take them is also seen by their --help, in test_known_options.py.
    "engines/test_arguments.py": {
        "test_documented_options": ALL,
        "test_documented_options_of_transformers": ALL,
        "test_what_is_said_of_options_that_are_gone": ALL,
    },
    "engines/test_clients.py": {"test_witness": ("litellm", "llama_index", "langchain")},
    "engines/test_profiling.py": {
        "test_nsys_on_vllm_whole_life_and_block": ALL,
        "test_tests_that_are_marked_for_pytorch_and_one_that_kills_the_engine": ALL,
    },
    "engines/test_several_nodes_vllm.py": {"test_its_workers_are_on_both_nodes_and_end_with_it": ALL},
    "engines/test_sglang_with_stubbed_kernels.py": {"test_sigterm_during_the_start": ALL},
    "launcher/test_devices.py": {"test_interrupt_at_any_line_of_a_claim": ALL},
    "launcher/test_fingerprint.py": {"test_ten_thousand_sources_are_looked_at_quickly": ALL},
    "plugin/test_ahead_of_collection.py": {
        "test_the_second_run_starts_them_while_it_collects_and_once": WORKERS,
        "test_they_are_stopped_where_nothing_runs": ("no tests", "collection error"),
    },
    "plugin/test_ci_jobs.py": {
        "test_a_job_that_is_left_without_a_test_is_no_failure": WORKERS,
        "test_bad_input": WORKERS,
        "test_durations_that_cannot_be_saved_fail_the_run": WORKERS,
        "test_what_was_measured_balances_the_jobs": WORKERS,
    },
    "plugin/test_clients.py": {
        "test_a_line_of_a_shared_servers_log_is_waited_for": WORKERS,
        "test_a_reset_comes_before_each_test_and_its_refusal_fails_one": WORKERS,
        "test_both_clients_talk_to_each_server": WORKERS,
    },
    "plugin/test_crash_policy.py": {
        "test_fail_fails_the_later_tests_at_once": WORKERS,
    },
    "plugin/test_factory.py": {
        "test_a_block_gives_back_what_it_asked_for_and_stops_nothing_that_others_use": WORKERS,
        "test_each_fresh_one_has_a_log_of_its_own_that_is_called_the_same_in_each_run": WORKERS,
        "test_it_takes_environment_and_directory_at_its_call": WORKERS,
    },
    "plugin/test_fresh_on_rerun.py": {"test_each_repetition_has_a_new_server_if_that_is_wanted": ("n2-same",)},
    "plugin/test_gpu_slots.py": {"test_more_than_there_are_ends_the_collection": WORKERS},
    "plugin/test_keep.py": {
        "test_a_kept_server_gives_way": ("workers1",),
        "test_debug_mode_is_not_kept": WORKERS,
    },
    "plugin/test_killed_children.py": {
        "test_it_is_told_and_fails_nothing": WORKERS,
        "test_it_may_be_the_server_s_end": WORKERS,
    },
    "plugin/test_live_log.py": {
        "test_the_lines_of_all_servers_come_with_their_names": ("n2-s",),
        "test_the_state_of_a_failed_tests_server_names_its_command": WORKERS,
    },
    "plugin/test_measures.py": {
        "test_what_a_test_measures_while_it_runs_and_in_numbers_of_a_library_is_told": WORKERS,
    },
    "plugin/test_needs_and_exclusive.py": {
        "test_a_server_that_its_test_kills_is_dead_at_once": WORKERS,
        "test_alone_a_test_may_stop_kill_and_start_its_server": WORKERS,
        "test_factory": WORKERS,
        "test_more_than_there_is_room_for_ends_the_collection": WORKERS,
    },
    "plugin/test_order.py": {
        "test_a_boot_is_no_business_of_pytest_timeout": WORKERS,
        "test_session_fixtures_are_finished_while_their_server_runs": WORKERS,
        "test_without_prelaunch_nothing_starts_before_a_test_asks": WORKERS,
    },
    "plugin/test_order_of_others.py": {
        "test_a_class_with_steps_and_a_modules_fixture_are_made_once": ("--no-infserver-prelaunch",),
        "test_a_hook_in_a_conftest": ("--no-infserver-prelaunch",),
        "test_djangos_order": ("--no-infserver-prelaunch",),
        "test_on_workers_each_keeps_the_order_of_others": ("each", "loadfile", "loadgroup", "worksteal"),
        "test_pytests_own_options": ("--no-infserver-prelaunch",),
        "test_what_a_plugin_has_ordered_is_what_runs": ("--no-infserver-prelaunch",),
    },
    "plugin/test_other_plugins.py": {
        "test_however_often_it_is_loaded_it_is_one_plugin": (
            "[-p infserver-",
            "[-p pytest_infserver-",
            "its package",
            "variable",
        ),
        "test_xdist": ("arguments0", "arguments2"),
    },
    "plugin/test_pool_process.py": {
        "test_a_backend_that_starts_its_servers_itself_is_run_by_pytest": WORKERS,
        "test_a_command_that_reads_what_a_test_has_changed_is_made_between_tests": WORKERS,
        "test_an_environment_that_a_conftest_sets_is_the_servers": WORKERS,
        "test_paths_that_are_no_text_are_left_out": WORKERS,
        "test_pytest_that_is_killed_takes_the_process_and_its_servers_along": WORKERS,
        "test_when_the_process_is_killed_its_servers_end_and_the_tests_say_so": ("n2-start", "n2-test"),
    },
    "plugin/test_profile_marker.py": {"test_the_first_failure_of_x_in_a_profile_leaves_nothing": WORKERS},
    "plugin/test_run_report.py": {
        "test_a_kept_server_has_neither_start_nor_stop_in_the_second_run": WORKERS,
        "test_a_key_that_a_backend_draws_is_that_of_the_server": WORKERS,
    },
    "plugin/test_servers_that_need_others.py": {"test_also_one_that_nobody_could_know_of": WORKERS},
    "plugin/test_setup_hooks.py": {"test_no_server_is_started_for_tests_that_a_hook_skips": WORKERS},
    "plugin/test_shutdown.py": {
        "test_signals_to_pytest_leave_nothing": ("SIGHUP-stop", "SIGHUP-test", "SIGINT-stop", "SIGTERM-start"),
        "test_what_ends_the_run_in_a_thread_of_the_pool_ends_it_soon": WORKERS,
    },
    "plugin/test_started_hook.py": {"test_tests_wait_for_it": WORKERS},
    "plugin/test_user_code_that_raises.py": {"test_pytest_exit_in_a_hook_ends_the_run_in_order": WORKERS},
    "plugin/test_variants.py": {"test_a_mark_describes_a_server_where_none_is_configured": WORKERS},
    "plugin/test_xdist.py": {
        "test_a_server_starts_once_for_all_workers_and_ends_after_its_last_test": ("each", "loadfile"),
        "test_ctrl_c_ends_all": ("controller-boot", "group-test"),
        "test_the_first_failure_ends_the_run_while_servers_boot": ("arguments1", "arguments2"),
    },
    "reporting/test_waiting_on_a_terminal.py": {
        "test_a_resized_terminal_is_left_clean": WORKERS,
        "test_an_interrupt_leaves_the_screen_clean": ("-n2 -v", "[-v]"),
        "test_it_is_as_if_the_lines_had_never_been_there": ("[-v", "[--color=yes", "[-s --infserver-log=failed-"),
    },
    # The first command of README.md runs it.
    "test_examples.py": {"test_quickstart": ALL},
}


def is_left_out(item: pytest.Item) -> bool:
    """Return whether .ci/run leaves a test out."""
    if item.get_closest_marker("promise") is not None or TESTS not in item.path.parents:
        return False
    name, _, case = item.name.partition("[")
    words = LEFT_OUT.get(item.path.relative_to(TESTS).as_posix(), {}).get(name)
    return words is not None and (not words or any(word in f"[{case}" for word in words))
