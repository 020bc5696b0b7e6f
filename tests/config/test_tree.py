from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver.config.tree import Origin, Origins, Tree, labelled
from pytest_infserver.errors import ConfigError


def merge(*layers: dict[str, Any]) -> Tree:
    tree = Tree({})
    for number, layer in enumerate(layers):
        tree = tree.merged_under(labelled(layer, f"layer {number}"))
    return tree


@pytest.mark.parametrize(
    ("lower", "upper", "merged"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": {"b": 1, "c": 1}}, {"a": {"b": 2, "d": 2}}, {"a": {"b": 2, "c": 1, "d": 2}}),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}, {"a": {"b": {"c": 1, "d": 2}}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_mappings_merge_deeply_and_anything_else_is_replaced(
    lower: dict[str, Any], upper: dict[str, Any], merged: dict[str, Any]
) -> None:
    tree = merge(lower, upper)
    assert tree.data == merged
    assert list(tree.data) == list(merged)


def test_the_layers_stay_as_they_were() -> None:
    lower = {"a": {"b": 1}}
    merge(lower, {"a": {"b": 2}})
    assert lower == {"a": {"b": 1}}


@pytest.mark.parametrize(("lower", "upper"), [({}, []), ([], {}), ({"x": 1}, ("y",))])
def test_a_list_does_not_merge_with_a_mapping(lower: Any, upper: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"'a\.b' is a mapping in one place and a list in another: write both the same"
    ):
        merge({"a": {"b": lower}}, {"a": {"b": upper}})


def test_each_value_remembers_its_layer() -> None:
    origins = merge({"a": {"b": 1, "c": 1}, "d": [1, 2]}, {"a": {"c": 2}, "d": [3]}).origins
    assert origins.find(("a", "b")) == Origin("layer 0")
    assert origins.find(("a", "c")) == Origin("layer 1")
    assert origins.find(("d", 1)) == Origin("layer 1")


def test_the_place_of_what_was_not_written_is_the_block_around_it() -> None:
    origins = Origins({(): Origin("f", 1, 1), ("a",): Origin("f", 2, 3)})
    assert str(origins.find(("a", "x", "y"))) == "f:2:3"
    assert str(origins.find(("b",))) == "f:1:1"
    assert Origins().find(("b",)) is None


def test_an_error_has_the_place_in_its_text_and_in_its_fields() -> None:
    error = Origins({("a",): Origin("f.yaml", 2, 3)}).error("wrong", ("a", 0))
    assert str(error) == "f.yaml:2:3: wrong"
    assert (error.file, error.line, error.column) == ("f.yaml", 2, 3)
    assert str(labelled({"a": 1}, "--option").origins.error("wrong", ("a",))) == "--option: wrong"
    assert str(Origins().error("wrong", ())) == "wrong"


def test_below_gives_a_block_with_its_own_paths() -> None:
    tree = Tree({"s": {"a": {"p": 1}}, "n": None}, Origins({("s", "a", "p"): Origin("f", 3, 4)}))
    block = tree.below("s", "a")
    assert block.data == {"p": 1}
    assert block.origins.find(("p",)) == Origin("f", 3, 4)
    assert tree.below("n").data == {}
    with pytest.raises(ConfigError, match="f:3:4: 'p' must be a mapping"):
        tree.below("s", "a", "p")
