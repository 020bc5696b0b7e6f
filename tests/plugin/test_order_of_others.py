"""Whoever orders tests beside this plugin has the last word; and classes and modules stay whole."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from installed import installed

# The plugin itself would run them as 2, 1, 4, 3: the tests without a server first, those of each server together.
SUITE = {
    "test_1": """
        import pytest
        @pytest.mark.order(4)
        @pytest.mark.infserver("a")
        def test_1(inference_server): pass
        """,
    "test_2": """
        import pytest
        @pytest.mark.order(1)
        def test_2(): pass
        """,
    "test_3": """
        import pytest
        @pytest.mark.order(3)
        @pytest.mark.infserver("b")
        def test_3(inference_server): pass
        """,
    "test_4": """
        import pathlib
        import pytest
        @pytest.mark.order(2)
        @pytest.mark.infserver("a")
        def test_4(inference_server): assert not pathlib.Path("fails").exists()
        """,
}
OURS = ["2", "1", "4", "3"]
BY_SOURCE = ["1", "2", "3", "4"]
BACKWARDS = ["4", "3", "2", "1"]
NOTE = """
import os
def pytest_configure(config):
    config.addinivalue_line("markers", "order(number): -")
def pytest_runtest_logreport(report):
    if report.when == "call" and not hasattr(report, "node"):
        note("ran", report.nodeid.partition(".")[0].removeprefix("test_"), os.environ.get("PYTEST_XDIST_WORKER", "-"))
"""
IN_A_HOOK = """
import pytest
@pytest.hookimpl({when}=True)
def pytest_collection_modifyitems(items): items.sort(key=lambda item: item.name, reverse=True)
"""
AT_THE_END = """
import pytest
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items): note("ordered", *(item.name[5] for item in items))
"""
PRELAUNCH = pytest.mark.parametrize("prelaunch", ["--infserver-prelaunch", "--no-infserver-prelaunch"])


@pytest.fixture
def suite(inline_project: Any) -> Any:
    return prepare(inline_project)


def prepare(project: Any) -> Any:
    project.servers(a=[], b=[])
    project.files(**SUITE)
    project.conftest(NOTE)
    return project


def ran(project: Any) -> list[str]:
    """Return the tests that have run since the last call, in order."""
    found = [line.split()[1] for line in project.events("ran")]
    (project.path / "events.txt").unlink()
    return found


def test_the_suite_would_be_moved(suite) -> None:
    suite.run().assert_outcomes(passed=4)
    assert ran(suite) == OURS


@PRELAUNCH
def test_by_source_no_test_is_moved_also_not_by_pytest(suite, prelaunch) -> None:
    suite.files(
        test_5="""
        import pytest
        @pytest.fixture(scope="session", params=[1, 2])
        def other(request): pass
        def test_5(other): pass
        def test_6(): pass
        def test_7(inference_server, other): pass
        """
    )
    result = suite.run("--infserver-order=source", "-v", prelaunch)
    result.assert_outcomes(passed=11)
    ids = [line.partition(" ")[0].partition("::")[2] for line in result.outlines if " PASSED " in line]
    assert ids == [
        "test_1[a]",
        "test_2",
        "test_3[b]",
        "test_4[a]",
        "test_5[1]",
        "test_5[2]",
        "test_6",
        *(f"test_7[{number}-{server}]" for number, server in itertools.product((1, 2), "ab")),
    ]


@pytest.mark.parametrize("order", ["sources", "", "3"])
def test_an_order_that_there_is_not(suite, order) -> None:
    result = suite.run(f"--infserver-order={order}")
    assert result.ret == (pytest.ExitCode.USAGE_ERROR if order else 0)
    if order:
        assert f"--infserver-order: expected servers or source, not '{order}'" in result.stderr.str()


@PRELAUNCH
@pytest.mark.parametrize("when", ["tryfirst", "trylast"])
def test_a_hook_in_a_conftest(suite, when, prelaunch) -> None:
    suite.conftest(NOTE + IN_A_HOOK.format(when=when))
    suite.run(prelaunch).assert_outcomes(passed=4)
    assert ran(suite) == BACKWARDS


@PRELAUNCH
def test_pytest_order(suite, prelaunch) -> None:
    suite.run(prelaunch, plugins=needed("pytest_order.plugin")).assert_outcomes(passed=4)
    assert ran(suite) == ["2", "4", "3", "1"]


DEPENDENT = """
import pytest
@pytest.mark.dependency(depends=["test_3.py::test_3[b]"], scope="session")
@pytest.mark.infserver("a")
def test_4(inference_server): pass
"""
INDEPENDENT = """
import pytest
@pytest.mark.dependency()
@pytest.mark.infserver("b")
def test_3(inference_server): pass
"""


@PRELAUNCH
def test_pytest_dependency(suite, prelaunch) -> None:
    suite.files(test_3=INDEPENDENT, test_4=DEPENDENT)
    suite.run(prelaunch, plugins=needed("pytest_dependency")).assert_outcomes(passed=4)
    assert ran(suite) == BY_SOURCE


def test_a_plugin_that_is_there_and_not_used_changes_nothing(suite) -> None:
    plugins = needed("pytest_dependency", "random_order.plugin", "pytest_split.plugin", "pytest_django.plugin")
    suite.run(plugins=plugins).assert_outcomes(passed=4)
    assert ran(suite) == OURS


@PRELAUNCH
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("pytest_randomly", ()),
        ("random_order.plugin", ("--random-order-seed=3",)),
        ("pytest_split.plugin", ("--splits=1", "--group=1")),
    ],
)
def test_what_a_plugin_has_ordered_is_what_runs(suite, module, arguments, prelaunch) -> None:
    suite.conftest(NOTE + AT_THE_END)
    suite.run(prelaunch, *arguments, plugins=needed(module)).assert_outcomes(passed=4)
    (ordered,) = suite.events("ordered")
    assert ran(suite) == ordered.split()[1:]


DJANGO = """
import django.test, unittest, pytest
class TestPlain(unittest.TestCase):
    def test_plain(self): pass
@pytest.mark.infserver("a")
@pytest.mark.usefixtures("inference_server")
class TestFlushes(django.test.TransactionTestCase):
    def test_flushes(self): pass
@pytest.mark.infserver("a")
@pytest.mark.usefixtures("inference_server")
class TestKeeps(django.test.TestCase):
    def test_keeps(self): pass
"""
SETTINGS = """
SECRET_KEY = "x" * 50
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = []
"""


@PRELAUNCH
def test_djangos_order(project, prelaunch) -> None:
    project.servers(a=[])
    project.files(test_django=DJANGO, settings_of_project=SETTINGS)
    result = project.run(prelaunch, "--ds=settings_of_project", plugins=needed("pytest_django.plugin"))
    result.assert_outcomes(passed=3)
    # What flushes the database comes last of all that use one.
    order = [event.split()[1] for event in project.events("test")]
    assert order.index("test_keeps") < order.index("test_flushes")


@PRELAUNCH
def test_pytests_own_options(suite, prelaunch) -> None:
    cached = ("-p", "cacheprovider", "-o", "cache_dir=cache", prelaunch)
    (suite.path / "fails").touch()
    suite.run(*cached).assert_outcomes(passed=3, failed=1)
    assert sorted(ran(suite)) == BY_SOURCE
    suite.run("--ff", *cached).assert_outcomes(passed=3, failed=1)
    assert ran(suite)[0] == "4"
    suite.run("--lf", *cached).assert_outcomes(failed=1)
    assert ran(suite) == ["4"]
    suite.files(test_9="def test_9(): pass\n")
    suite.run("--nf", *cached).assert_outcomes(passed=4, failed=1)
    assert ran(suite)[0] == "9"


STEPS = """
import pathlib
def test_1(): pass
def test_2(inference_server): pass
def test_3(): assert not pathlib.Path("fails").exists()
def test_4(inference_server): pass
def test_5(): pass
"""


@PRELAUNCH
def test_stepwise_leaves_no_test_out(inline_project, prelaunch) -> None:
    inline_project.servers(a=[])
    inline_project.files(test_0="def test_0(inference_server): pass\n", test_1=STEPS, test_2="def test_6(): pass\n")
    arguments = ("-p", "cacheprovider", "-p", "stepwise", "-o", "cache_dir=cache", "--sw", prelaunch)
    (inline_project.path / "fails").touch()
    inline_project.run(*arguments)
    (inline_project.path / "fails").unlink()
    inline_project.run(*arguments)
    names = {event.split()[1].partition("[")[0] for event in inline_project.events("test")}
    assert names == {f"test_{number}" for number in range(7)}


FLOW = """
import pytest
from helpers import note
@pytest.fixture(scope="module")
def database(): note("made", "database")
def test_before(database): pass
class TestFlow:
    @classmethod
    def setup_class(cls):
        note("made", "class")
        cls.steps = []
    def test_1_submit(self, inference_server, database): self.steps.append(1)
    def test_2_is_known(self, database): assert self.steps == [1]; self.steps.append(2)
    def test_3_cancel(self, inference_server): assert self.steps == [1, 2]; self.steps.append(3)
    def test_4_is_gone(self): assert self.steps == [1, 2, 3]
def test_after(inference_server, database): pass
"""


@PRELAUNCH
@pytest.mark.parametrize("arguments", [(), ("--infserver-max-servers=1",), ("--infserver-order=source",)], ids=" ".join)
def test_a_class_with_steps_and_a_modules_fixture_are_made_once(inline_project, prelaunch, arguments) -> None:
    inline_project.servers(a=["--delay", "0.3"])
    inline_project.files(test_1=FLOW, test_2=FLOW, test_0="def test_plain(): pass\n")
    inline_project.run(prelaunch, *arguments).assert_outcomes(passed=13)
    assert inline_project.events("made") == ["made database", "made class"] * 2


def test_a_class_on_two_servers_has_its_steps_in_order_on_each(inline_project) -> None:
    inline_project.servers(a=[], b=[])
    inline_project.files(
        test_1=FLOW.replace("class TestFlow", "@pytest.mark.usefixtures('inference_server')\nclass TestFlow")
    )
    inline_project.run("--infserver-max-servers=1").assert_outcomes(passed=11)
    assert inline_project.events("started") == ["started a", "started b"]
    assert inline_project.events("made").count("made class") == 2


@pytest.fixture(params=["load", "worksteal", "loadscope", "loadfile", "loadgroup", "each"])
def on_workers(request: pytest.FixtureRequest, project: Any) -> Any:
    pytest.importorskip("xdist")
    prepare(project)
    return lambda *arguments, plugins=(): project.run(
        "-n2", f"--dist={request.param}", *arguments, plugins=("xdist", *plugins)
    )


def by_worker(project: Any) -> list[Sequence[str]]:
    """Return the tests that each worker has run, in order."""
    found: dict[str, list[str]] = {}
    for line in project.events("ran"):
        _, test, worker = line.split()
        found.setdefault(worker, []).append(test)
    return list(found.values())


def is_part_of(some: Sequence[str], order: Sequence[str]) -> bool:
    return [test for test in order if test in some] == list(some)


def test_on_workers_each_keeps_the_order_of_others(on_workers, project) -> None:
    project.conftest(NOTE + IN_A_HOOK.format(when="trylast"))
    result = on_workers()
    assert result.ret == 0
    parts = by_worker(project)
    assert parts
    assert all(is_part_of(part, BACKWARDS) for part in parts), parts


def test_on_one_worker_the_failed_test_comes_first(project) -> None:
    pytest.importorskip("xdist")
    prepare(project)
    cached = ("-n1", "-p", "cacheprovider", "-o", "cache_dir=cache")
    (project.path / "fails").touch()
    project.run(*cached, plugins=("xdist",)).assert_outcomes(passed=3, failed=1)
    (project.path / "events.txt").unlink()
    project.run(*cached, "--ff", plugins=("xdist",)).assert_outcomes(passed=3, failed=1)
    assert by_worker(project)[0][0] == "4"


def needed(*modules: str) -> tuple[str, ...]:
    """Return plugins as ``-p`` takes them; skip the test where one is not installed."""
    found = installed(*modules)
    if len(found) < len(modules):
        pytest.skip(f"needs {', '.join(modules)}")
    return tuple(found)
