"""No two modules import each other, by whatever way and for whatever purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


def circles(modules: Iterable[str], imported_by: Callable[[str], Iterable[str]]) -> Iterator[set[str]]:
    """Yield the groups of modules each of which imports all others of its group, at least by way of others."""
    reached: dict[str, set[str]] = {}
    for module in modules:
        found, waiting = set[str](), [*imported_by(module)]
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += imported_by(one)
        reached[module] = found
    told: set[str] = set()
    for module, found in reached.items():
        if module in found and module not in told:
            group = {one for one in found if module in reached[one]}
            told |= group
            yield group


def test_a_circle_is_found() -> None:
    graph = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": ["e"], "e": [], "f": ["f"]}
    assert [sorted(group) for group in circles(graph, graph.__getitem__)] == [["a", "b", "c"], ["f"]]


def test_there_is_none() -> None:
    import grimp

    graph = grimp.build_graph("pytest_infserver", exclude_type_checking_imports=False, cache_dir=None)
    assert len(graph.modules) > 300
    assert [sorted(group) for group in circles(sorted(graph.modules), graph.find_modules_directly_imported_by)] == []
