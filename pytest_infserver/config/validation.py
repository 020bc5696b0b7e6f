"""A tree of plain data becomes a frozen ServerConfig, or an error that points at the mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pytest_infserver.config.kinds import Kind, KindError, shown
from pytest_infserver.config.model import PROFILE, ProfileConfig, ServerConfig, keys
from pytest_infserver.config.tree import Path, Tree
from pytest_infserver.config.variables import hide_value

Model = TypeVar("Model", ServerConfig, ProfileConfig)


def nearest(word: object, valid: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` with the valid spelling nearest to ``word``, else the list of all."""
    names = sorted(valid)
    text = str(word).lower()
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.6)
    # As env for env_vars.
    close = close or [name for name in names if len(text) > 2 and name.startswith(text)]
    return f"; did you mean '{close[0]}'?" if close else f"; known are: {', '.join(names)}"


def build_config(tree: Tree) -> ServerConfig:
    """Check one server's settings.

    Args:
        tree: The merged settings of one server; a value of None counts as not given.

    Raises:
        ConfigError: An unknown key or a value of the wrong kind.
    """
    label = f"server '{tree.data['name']}': " if tree.data.get("name") else ""
    return _build(ServerConfig, tree, (), label, origins=tree.origins)


def _build(model: type[Model], tree: Tree, prefix: Path, label: str, **extra: Any) -> Model:
    definitions = keys(model)
    values: dict[str, Any] = dict(extra)
    for key, value in tree.data.items():
        path: Path = (*prefix, key)
        if key not in definitions:
            block = f" in '{prefix[-1]}'" if prefix else ""
            raise tree.origins.error(f"{label}unknown key '{key}'{block}{nearest(key, definitions)}", path)
        if value is None:
            continue
        kind: Kind = definitions[key].metadata["kind"]
        if kind is PROFILE:
            values[key] = _profile(tree, value, path, label)
            continue
        try:
            values[key] = kind.convert(value)
        except KindError as problem:
            path += problem.path
            # A wrong name is not fit to be shown as one.
            who = "" if path == ("name",) else label
            text = f"{who}'{'.'.join(map(str, path))}': {_without_value(problem, value, tree, path)}"
            raise tree.origins.error(text, path) from None
    return model(**values)


def _without_value(problem: KindError, value: Any, tree: Tree, path: Path) -> str:
    """Return what is wrong, without a value that a variable holds: the text in the file instead."""
    written = tree.origins.written(path)
    if written is None:
        return str(problem)
    for key in problem.path:
        value = value[key]
    return hide_value(str(problem), shown(value), written)


def _profile(tree: Tree, value: Any, path: Path, label: str) -> ProfileConfig:
    if isinstance(value, ProfileConfig):
        return value
    if not isinstance(value, Mapping):
        raise tree.origins.error(f"{label}'profile' must be a mapping such as {{enabled: true, tool: nsys}}", path)
    return _build(ProfileConfig, Tree(value, tree.origins), path, label)
