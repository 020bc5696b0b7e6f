"""A configuration file, with defaults under it and overrides over it, becomes the servers it names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_infserver.config.matrix import KEY as MATRIX
from pytest_infserver.config.matrix import expanded
from pytest_infserver.config.merging import merge_server
from pytest_infserver.config.model import ServerConfig, hidden, keys
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
    return load_tree(read_yaml(path), path, base=base, overrides=overrides)


def load_tree(
    file: Tree, path: str | os.PathLike[str], *, base: Tree | None = None, overrides: Tree | None = None
) -> list[ServerConfig]:
    """Do the same for what stands in a file.

    Raises:
        ConfigError: A value is wrong, or it names no server.
    """
    folder = Path(path).absolute().parent
    lower, upper = base or Tree({}), overrides or Tree({})
    configs = []
    for server in _servers(file):
        config = build_config(merge_server(lower, Tree(resolve_paths(server.data, folder), server.origins), upper))
        if not config.backend:
            raise config.error("'backend' is missing: vllm, sglang, llamacpp, ..., or several under 'servers:'")
        configs.append(config)
    return configs


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
            message = f"{len(configs)} servers ({', '.join(names)}): say which one with name=..."
            raise ConfigError(hidden(message, configs), file=source)
        return configs[0]
    for config in configs:
        if config.name == name:
            return config
    raise ConfigError(hidden(f"no server is called '{name}'{nearest(name, names)}", configs), file=source)


def _servers(file: Tree) -> list[Tree]:
    several = any(key in file.data for key in _FORM_KEYS)
    for key in file.data:
        if key in keys(ServerConfig) and several:
            message = f"'{key}' beside 'servers:': move it under 'defaults:' or into one of the servers"
            raise file.origins.error(message, (key,))
        if key not in keys(ServerConfig) and key not in _FORM_KEYS and (several or key != MATRIX):
            hint = nearest(key, [*_FORM_KEYS, *(() if several else keys(ServerConfig))])
            raise file.origins.error(f"unknown key '{key}'{hint}", (key,))
    if not several:
        if file.data.get(MATRIX) is None:
            return [file]
        # Without a name the combinations are called after their backend.
        name = str(file.data.get("name") or file.data.get("backend") or "server")
        return [_named(server, one) for one, server in expanded(name, _unnamed(file))]
    defaults = file.below("defaults") if "defaults" in file.data else Tree({})
    if not file.data.get("servers"):
        raise file.origins.error("'servers:' names no server", ("servers",))
    servers = file.below("servers")
    found = [(name, merge_server(defaults, servers.below(name))) for name in servers.data]
    expansions = [one for name, server in found for one in expanded(name, server)]
    for index, (name, server) in enumerate(expansions):
        if any(name == other for other, _ in expansions[:index]):
            raise server.origins.error(f"the matrix makes two servers that are called '{name}'", ())
    return [_named(server, name) for name, server in expansions]


def _unnamed(server: Tree) -> Tree:
    return Tree({key: value for key, value in server.data.items() if key != "name"}, server.origins)


def _named(server: Tree, name: str) -> Tree:
    if server.data.get("name") not in (None, name):
        raise server.origins.error(f"the server is called '{name}': leave 'name' out", ("name",))
    place = server.origins.find(())
    places = dict(server.origins.places)
    if place is not None:
        places[("name",)] = place
    return Tree({**server.data, "name": name}, Origins(places))
