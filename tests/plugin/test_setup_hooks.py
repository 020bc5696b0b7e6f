"""What happens between the hooks of a test's setup and its fixtures: the wait for a server."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pytest_infserver.pool.collection.setup_phase import setup_may_skip

IN_HOOK = """
import pytest
def pytest_runtest_setup(item):
    if item.get_closest_marker("slow"): pytest.skip("slow")
"""
IN_WRAPPER = """
import pytest
@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    pytest.skip("not here")
    return (yield)
"""
IN_HELPER = """
import pytest
class Check:
    def needs(self, item): raise pytest.skip.Exception("not here")
def demand(item): Check().needs(item)
def pytest_runtest_setup(item): demand(item)
"""
TESTS = """
import pytest
@pytest.mark.slow
def test_slow(inference_server): pass
@pytest.mark.slow
@pytest.mark.infserver_needs("a", "b")
def test_together(inference_servers): pass
"""


def prepare(project: Any, hook: str) -> Any:
    project.servers(a=[], b=[])
    project.conftest(hook)
    project.files(test_slow=TESTS)
    return project


@pytest.mark.parametrize("hook", [IN_HOOK, IN_WRAPPER, IN_HELPER], ids=["hook", "wrapper", "helper"])
def test_no_server_is_started_for_tests_that_a_hook_skips(twin_project: Any, hook: str) -> None:
    project = prepare(twin_project, hook)
    project.run().assert_outcomes(skipped=3)
    assert project.events("started") == []


def test_only_what_is_not_skipped_starts_a_server(twin_project: Any) -> None:
    project = prepare(twin_project, IN_HOOK)
    project.files(
        test_quick="""
        import pytest
        @pytest.mark.infserver("b")
        def test_quick(inference_server): pass
        """
    )
    project.run().assert_outcomes(skipped=3, passed=1)
    assert project.events("started") == ["started b"]


def test_a_hook_that_fails_starts_none_either(inline_project: Any) -> None:
    project = prepare(inline_project, "def pytest_runtest_setup(item): raise ValueError('skip')")
    project.run("--no-infserver-prelaunch").assert_outcomes(errors=3)
    assert project.events("started") == []


class Hooks:
    """A stand-in for pytest's configuration with one hook."""

    def __init__(self, hook: Any) -> None:
        self.hook = self.pytest_runtest_setup = self
        self.function = hook

    def get_hookimpls(self) -> list[Any]:
        return [self]


def test_which_hooks_may_skip() -> None:
    def asks(item: Any) -> None:
        def inside() -> None:
            pytest.importorskip("gpu")

        inside()

    def harmless(item: Any) -> None:
        print(item.name, sys.argv)
        harmless(item)

    found: list[bool] = []
    for hook in (asks, harmless, print, Hooks.get_hookimpls):
        config: Any = Hooks(hook)
        if hasattr(hook, "__module__"):
            found.append(setup_may_skip(config))
    assert found == [True, False, False, False]


def test_the_wait_is_no_part_of_the_time_of_a_test(inline_project: Any) -> None:
    project = inline_project
    project.servers(a=["--delay", "1.5"])
    project.conftest(
        """
def pytest_runtest_logreport(report):
    if report.when == "setup": note("took", round(report.duration, 1))
"""
    )
    project.files(test_it="def test_it(inference_server): pass")
    project.run("--no-infserver-prelaunch").assert_outcomes(passed=1)
    (took,) = project.events("took")
    assert float(took.split()[1]) < 1


@pytest.mark.parametrize("boots", [True, False])
def test_the_wait_is_none_of_faulthandlers_time(project: Any, boots: bool) -> None:
    project.servers(a=["--delay", "2"] if boots else [])
    project.files(test_it=f"import time\ndef test_it(inference_server): time.sleep({0 if boots else 2})")
    result = project.run("--no-infserver-prelaunch", "-o", "faulthandler_timeout=1")
    result.assert_outcomes(passed=1)
    assert ("Timeout (0:00:01)!" in result.stderr.str()) is not boots
