"""What stays together when tests are put together by server: real modules and classes, with servers by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_infserver.pool.collection.grouping import grouped, units_of
from pytest_infserver.pool.collection.order import Group

Arrange = Callable[..., list[str]]


def servers_of(item: pytest.Item) -> Group:
    """Return the server that a test has as its parameter, or in the mark ``on``."""
    callspec = getattr(item, "callspec", None)
    named = item.get_closest_marker("on")
    if callspec is not None and "server" in callspec.params:
        return (callspec.params["server"],)
    return () if named is None else named.args


@pytest.fixture
def arrange(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Arrange:
    """Collect modules; return their tests as they are put together, without their modules."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def arrange(*modules: str, others_first: bool = False) -> list[str]:
        both = 'import pytest\nboth = pytest.mark.parametrize("server", ["a", "b"])\non = pytest.mark.on\n'
        paths = [
            pytester.makepyfile(**{f"test_{number}": f"{both}{module}"}) for number, module in enumerate(modules, 1)
        ]
        items, _ = pytester.inline_genitems(*paths)
        assert len(items) > 1
        units = grouped(units_of(items, servers_of), others_first=others_first)
        return [item.nodeid.partition("::")[2] for unit in units for item in unit.tests]

    return arrange


A, B, PLAIN = '@on("a")\ndef test_a{}(): pass', '@on("b")\ndef test_b{}(): pass', "def test_plain{}(): pass"


def test_modules_of_a_server_come_together_where_the_first_of_them_stood(arrange: Arrange) -> None:
    modules = [text.format(number) for number, text in enumerate((A, PLAIN, B, A, PLAIN, B), 1)]
    assert arrange(*modules) == ["test_a1", "test_a4", "test_plain2", "test_b3", "test_b6", "test_plain5"]
    first = arrange(*modules, others_first=True)
    assert first == ["test_plain2", "test_plain5", "test_a1", "test_a4", "test_b3", "test_b6"]


def test_a_module_stays_whole_whatever_its_tests_name(arrange: Arrange) -> None:
    mixed = "\n".join(text.format(number) for number, text in enumerate((PLAIN, B, A, PLAIN, B), 1))
    in_order = ["test_plain1", "test_b2", "test_a3", "test_plain4", "test_b5"]
    assert arrange(mixed) == in_order
    # It stands with the first server that it names.
    found = arrange(A.format(8), mixed, B.format(9), others_first=True)
    assert found == ["test_a8", *in_order, "test_b9"]


def test_a_module_that_is_parametrised_has_a_part_for_each_server(arrange: Arrange) -> None:
    module = """
@both
def test_1(server): pass
def test_2(): pass
@both
def test_3(server): pass
@on("b")
def test_4(): pass
"""
    found = arrange(module, others_first=True)
    assert found == ["test_1[a]", "test_2", "test_3[a]", "test_1[b]", "test_3[b]", "test_4"]


def test_a_class_that_is_not_parametrised_stays_whole_in_a_module_that_is(arrange: Arrange) -> None:
    module = """
@both
def test_1(server): pass
class TestSteps:
    def test_plain(self): pass
    @on("b")
    def test_b(self): pass
    @on("a")
    def test_a(self): pass
class TestInner:
    class TestBoth:
        @both
        def test_1(self, server): pass
        def test_2(self): pass
    def test_3(self): pass
"""
    assert arrange(module) == [
        "test_1[a]",
        "TestInner::TestBoth::test_1[a]",
        "TestInner::TestBoth::test_2",
        "TestInner::test_3",
        "test_1[b]",
        "TestSteps::test_plain",
        "TestSteps::test_b",
        "TestSteps::test_a",
        "TestInner::TestBoth::test_1[b]",
    ]


def test_other_parameters_do_not_spread_a_class(arrange: Arrange) -> None:
    module = """
@on("a")
class TestSteps:
    @pytest.mark.parametrize("n", [1, 2])
    def test_1(self, n): pass
    def test_2(self): pass
"""
    assert arrange(module) == ["TestSteps::test_1[1]", "TestSteps::test_1[2]", "TestSteps::test_2"]
