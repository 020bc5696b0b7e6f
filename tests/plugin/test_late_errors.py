"""Errors that turn up after a test, of tests that nobody could know of when the run was planned."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ENGINE = str(Path(__file__).parents[1] / "fake_engine.py")
FACTORY = f"""
import pytest

COMMAND = [{sys.executable!r}, "-S", {ENGINE!r}, "--port", "{{port}}", "--leak-file", "left"]

def start(request, **more):
    factory = request.getfixturevalue("inference_server_factory")
    return factory(backend="command", launch_command=COMMAND, debug_mode=True, **more)
"""


@pytest.fixture
def lazily(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> Callable[..., Any]:
    """Run tests that start servers which leave something behind; return where pytest showed which errors."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(helpers=FACTORY)

    def run(*words: str, plugins: tuple[str, ...] = ()) -> list[str]:
        chosen = [word for name in ("pytest_infserver.plugin", *plugins) for word in ("-p", name)]
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *chosen, *words)
        assert "INTERNALERROR" not in result.stdout.str()
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        text = result.stdout.str()
        heads = [line.strip("_ ") for line in text.splitlines() if line.startswith("_")]
        assert text.count(" left behind ") >= len(heads), text
        return heads

    return run


def test_of_the_first_test_that_asks_for_a_server_at_run_time(pytester, lazily) -> None:
    pytester.makepyfile(
        test_1="""
        from helpers import start
        def test_0(): pass
        def test_1(request): start(request)
        def test_2(): pass
        def test_3(request): start(request)
        def test_4(): pass
        """
    )
    assert lazily() == ["ERROR at teardown of test_1", "ERROR at teardown of test_3"]


def test_of_the_last_test(pytester, lazily) -> None:
    pytester.makepyfile(test_1="from helpers import start\ndef test_1(request): start(request)\n")
    assert lazily() == ["ERROR at teardown of test_1"]


def test_of_wider_scopes_it_is_the_last_test_in_it(pytester, lazily) -> None:
    pytester.makepyfile(
        test_1="""
        from helpers import pytest, start
        @pytest.fixture(scope="module")
        def shared(request): return start(request, scope="module")
        class TestClass:
            def test_1(self, request): start(request, scope="class")
            def test_2(self): pass
        def test_3(request): request.getfixturevalue("shared")
        def test_4(): pass
        """,
        test_2="def test_5(): pass",
    )
    assert lazily() == ["ERROR at teardown of TestClass.test_2", "ERROR at teardown of test_4"]


def test_of_a_test_that_is_repeated(pytester, lazily) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        test_1="""
        from helpers import start
        runs = []
        def test_1(request):
            start(request, name=f"run-{len(runs)}")
            runs.append(1)
            assert len(runs) == 2
        def test_2(): pass
        """
    )
    heads = lazily("--reruns=1", plugins=("pytest_rerunfailures",))
    assert set(heads) == {"ERROR at teardown of test_1"}


def test_of_a_test_with_subtests(pytester, lazily) -> None:
    if not hasattr(pytest, "Subtests"):
        pytest.skip("needs pytest 9, whose subtests these are")
    pytester.makepyfile(
        test_1="""
        from helpers import start
        def test_1(request, subtests):
            with subtests.test("one"): start(request)
            with subtests.test("two"): pass
        def test_2(): pass
        """
    )
    assert lazily() == ["ERROR at teardown of test_1"]


def test_of_items_of_other_plugins(pytester, lazily) -> None:
    pytester.makeconftest(
        """
        import pytest
        class Item(pytest.Item):
            def runtest(self): pass
            def reportinfo(self): return self.path, 0, self.name
        class File(pytest.File):
            def collect(self): yield Item.from_parent(self, name="item")
        def pytest_collect_file(file_path, parent):
            if file_path.suffix == ".special": return File.from_parent(parent, path=file_path)
        """
    )
    pytester.makefile(".special", test_2="")
    pytester.makepyfile(
        test_1='''
        import helpers
        def test_1(request): helpers.start(request, scope="session")
        def documented():
            """
            >>> factory = getfixture("inference_server_factory")
            >>> server = factory(backend="command", launch_command=helpers.COMMAND, debug_mode=True)
            """
        def test_2(): pass
        '''
    )
    heads = lazily("--doctest-modules", "test_1.py", "test_2.special")
    assert heads == ["ERROR at teardown of [doctest] test_1.documented", "ERROR at teardown of item"]


def test_in_workers_of_xdist(project) -> None:
    pytest.importorskip("xdist")
    project.files(
        factory=FACTORY,
        test_1="""
        from factory import start
        def test_1(request): start(request)
        def test_2(): pass
        def test_3(): pass
        """,
    )
    result = project.bare("-n2", plugins=("xdist",))
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_1*", "command*left behind*"])
    assert "INTERNALERROR" not in result.stdout.str()
