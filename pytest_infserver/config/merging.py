"""How settings of one server from several places become one: in files, by a matrix, on marks and by the factory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_infserver.config.flags import ARGUMENT_KEYS, to_flag
from pytest_infserver.config.model import ProfileConfig
from pytest_infserver.config.tree import Origins, Tree


def merge_server(*layers: Tree) -> Tree:
    """Return the settings of one server from several layers; a later one counts more."""
    merged = Tree({})
    for layer in layers:
        lower = _without_ready(layer, _spelled_like(layer, _retooled(layer, merged)))
        merged = lower.merged_under(layer)
    return merged


def _spelled_like(upper: Tree, lower: Tree) -> Tree:
    """Return ``lower`` with the engine's arguments called as in ``upper``, so that they meet when merged."""
    below, above = lower.data.get("config"), upper.data.get("config")
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return lower
    for name, other in (ARGUMENT_KEYS, ARGUMENT_KEYS[::-1]):
        if other in below and name not in below and name in above and other not in above:
            lower = _renamed(lower, ("config",), {other: name})
    for block in ARGUMENT_KEYS:
        arguments, old = above.get(block), lower.data["config"].get(block)
        if isinstance(arguments, Mapping) and isinstance(old, Mapping):
            spelling = {to_flag(str(key)): str(key) for key in arguments}
            names = {key: spelling[to_flag(key)] for key in map(str, old) if to_flag(key) in spelling}
            lower = _renamed(lower, ("config", block), names)
    return lower


def _retooled(upper: Tree, lower: Tree) -> Tree:
    """Return ``lower`` without what is about another profiler than the one that ``upper`` names."""
    below, above = lower.data.get("profile"), upper.data.get("profile")
    if not isinstance(below, Mapping) or not isinstance(above, Mapping) or "tool" not in above:
        return lower
    # null takes it back.
    if (above["tool"] or ProfileConfig.tool) == (below.get("tool") or ProfileConfig.tool):
        return lower
    kept = {key: value for key, value in below.items() if key not in ("args", "binary_path")}
    return Tree({**lower.data, "profile": kept}, lower.origins)


def _without_ready(upper: Tree, lower: Tree) -> Tree:
    """Return ``lower`` without its ``ready`` if ``upper`` has one: probes are replaced, not merged."""
    if upper.data.get("ready") is None or "ready" not in lower.data:
        return lower
    places = {path: place for path, place in lower.origins.places.items() if path[:1] != ("ready",)}
    return Tree({key: value for key, value in lower.data.items() if key != "ready"}, Origins(places))


def _renamed(tree: Tree, block: tuple[str, ...], names: Mapping[str, str]) -> Tree:
    """Return the tree with some keys of the mapping at ``block`` called otherwise, their places too."""
    size = len(block)
    places = {}
    for path, place in tree.origins.places.items():
        if path[:size] == block and len(path) > size:
            key = path[size]
            path = (*block, names.get(str(key), key), *path[size + 1 :])
        places[path] = place
    return Tree(_with_names(tree.data, block, names), Origins(places))


def _with_names(data: Mapping[str, Any], block: tuple[str, ...], names: Mapping[str, str]) -> dict[str, Any]:
    if not block:
        return {names.get(key, key): value for key, value in data.items()}
    return {**data, block[0]: _with_names(data[block[0]], block[1:], names)}
