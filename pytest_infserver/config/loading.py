"""A configuration file, with defaults under it and overrides over it, becomes the servers it names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_infserver.config.flags import ARGUMENT_KEYS, to_flag
from pytest_infserver.config.model import ProfileConfig, ServerConfig, keys
from pytest_infserver.config.paths import resolve_paths
from pytest_infserver.config.tree import Origins, Tree, labelled
from pytest_infserver.config.validation import build_config, nearest
from pytest_infserver.config.yaml_source import read_yaml
from pytest_infserver.errors import ConfigError

_FORM_KEYS = ("servers", "defaults")


def load_file(
    path: str | os.PathLike[str], *, base: Tree | None = None, overrides: Tree | None = None
) -> list[ServerConfig]:
    """Read all servers of a file.

    Args:
        path: The YAML file.
        base: Settings that count less than anything in the file.
        overrides: Settings that count more than anything in the file.

    Raises:
        ConfigError: The file or a value in it is wrong, or it names no server.
    """
    file = read_yaml(path)
    folder = Path(path).absolute().parent
    lower, upper = base or Tree({}), overrides or Tree({})
    configs = []
    for server in _servers(file):
        config = build_config(merge_server(lower, Tree(resolve_paths(server.data, folder), server.origins), upper))
        if not config.backend:
            raise config.error("'backend' is missing: vllm, sglang, llamacpp, ..., or several under 'servers:'")
        configs.append(config)
    return configs


def merge_server(*layers: Tree) -> Tree:
    """Return the settings of one server from several layers; a later one counts more."""
    merged = Tree({})
    for layer in layers:
        merged = _spelled_like(layer, _retooled(layer, merged)).merged_under(layer)
    return merged


def build_server(settings: Mapping[str, Any], label: str) -> ServerConfig:
    """Check the settings of one server that did not come from a file.

    Args:
        settings: Keys and values as in the YAML file.
        label: What the user knows the source as; it stands in errors.
    """
    return build_config(keyword_tree(settings, label))


def keyword_tree(settings: Mapping[str, Any], label: str) -> Tree:
    """Return settings from Python as a tree; relative paths are relative to the working directory."""
    try:
        folder = Path.cwd()
    except FileNotFoundError:
        folder = Path()
    return labelled(resolve_paths(settings, folder), label)


def choose(configs: list[ServerConfig], name: str | None, source: str) -> ServerConfig:
    """Return the server called ``name``; without a name the only one.

    Raises:
        ConfigError: There is no such server, or several and no name.
    """
    names = [config.name for config in configs]
    if name is None:
        if len(configs) > 1:
            raise ConfigError(f"{len(configs)} servers ({', '.join(names)}): say which one with name=...", file=source)
        return configs[0]
    for config in configs:
        if config.name == name:
            return config
    raise ConfigError(f"no server is called '{name}'{nearest(name, names)}", file=source)


def _servers(file: Tree) -> list[Tree]:
    several = any(key in file.data for key in _FORM_KEYS)
    for key in file.data:
        if key in keys(ServerConfig) and several:
            message = f"'{key}' beside 'servers:': move it under 'defaults:' or into one of the servers"
            raise file.origins.error(message, (key,))
        if key not in keys(ServerConfig) and key not in _FORM_KEYS:
            hint = nearest(key, [*_FORM_KEYS, *(() if several else keys(ServerConfig))])
            raise file.origins.error(f"unknown key '{key}'{hint}", (key,))
    if not several:
        return [file]
    defaults = file.below("defaults") if "defaults" in file.data else Tree({})
    if not file.data.get("servers"):
        raise file.origins.error("'servers:' names no server", ("servers",))
    servers = file.below("servers")
    return [_named(merge_server(defaults, servers.below(name)), name) for name in servers.data]


def _named(server: Tree, name: str) -> Tree:
    if server.data.get("name") not in (None, name):
        raise server.origins.error(f"the server is called '{name}': leave 'name' out", ("name",))
    place = server.origins.find(())
    places = dict(server.origins.places)
    if place is not None:
        places[("name",)] = place
    return Tree({**server.data, "name": name}, Origins(places))


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
