"""All mistakes of configuration files at once: what is wrong is taken out, and the rest is checked again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_infserver.config.loading import load_tree
from pytest_infserver.config.model import ServerConfig
from pytest_infserver.config.tree import Path, Tree
from pytest_infserver.config.yaml_source import read_yaml
from pytest_infserver.errors import ConfigError
from pytest_infserver.launcher.factory import add_servers


def find_mistakes(config_files: Iterable[str]) -> tuple[dict[str, ServerConfig], list[ConfigError]]:
    """Return the servers of some YAML files that can be used, and what is wrong, in the order of the files.

    Args:
        config_files: The files.
    """
    servers: dict[str, ServerConfig] = {}
    mistakes: list[ConfigError] = []
    for file in config_files:
        found: list[ConfigError] = []
        servers |= _servers_of(file, servers, found)
        mistakes += sorted(found, key=lambda error: (error.line or 0, error.column or 0))
    return servers, mistakes


def _servers_of(file: str, others: Mapping[str, ServerConfig], found: list[ConfigError]) -> dict[str, ServerConfig]:
    wrong: list[Path] = []

    def note(path: Path, error: ConfigError, *aliases: Path) -> None:
        # What a block lacks only because its mistakes have been taken out is none.
        if not any(other[: len(path)] == path for other in wrong):
            found.append(error)
        wrong.extend((path, *aliases))

    try:
        tree: Tree | None = read_yaml(file, on_mistake=note)
    except ConfigError as error:
        found.append(error)
        return {}
    while tree is not None:
        servers = dict(others)
        try:
            add_servers(servers, load_tree(tree, file))
            return servers
        except ConfigError as error:
            paths = _paths(tree, error)
            note(paths[0], error, *paths[1:])
            tree = _without(tree, paths)
    return {}


def _paths(tree: Tree, error: ConfigError) -> list[Path]:
    """Return what stands where a mistake is: one key, or several by way of an alias; the whole file if none does."""
    at = (error.file, error.line, error.column)
    here = [path for path, place in tree.origins.places.items() if (place.file, place.line, place.column) == at]
    # A block begins where its first key does.
    here = here if error.of_block else [path for path in here if path]
    return [path for path in here if not any(path[:size] in here for size in range(len(path)))] or [()]


def _without(tree: Tree, paths: Iterable[Path]) -> Tree | None:
    """Return a tree without some of its keys, or None if nothing would be left to check."""
    left: Any = tree.data
    for path in paths:
        left = _cut(left, path)
    smaller = left != tree.data and left.get("servers", left)
    return Tree(left, tree.origins) if smaller else None


def _cut(data: Any, path: Path) -> Any:
    key, *deeper = path or ("",)
    if not isinstance(data, Mapping) or key not in data:
        return data
    if deeper:
        return {**data, key: _cut(data[key], tuple(deeper))}
    return {name: value for name, value in data.items() if name != key}
