"""``matrix:`` under a server: one server for each combination of values, as in GitHub Actions."""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_infserver.config.merging import merge_server
from pytest_infserver.config.model import ServerConfig, keys
from pytest_infserver.config.tree import Origins, Tree
from pytest_infserver.config.validation import nearest
from pytest_infserver.system.secrets import is_secret_name

KEY = "matrix"
_EXCLUDE, _INCLUDE = "exclude", "include"
_MOST = 1000
"""A matrix with more servers is a mistake: nobody waits for them."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+=,]+")

Combination = Mapping[str, Any]


def expanded(name: str, server: Tree) -> list[tuple[str, Tree]]:
    """Return the servers that one with a matrix stands for, by name; one without a matrix alone.

    Args:
        name: The server's name.
        server: Its block.

    Raises:
        ConfigError: The matrix is wrong, or stands for no server, or for too many.
    """
    if server.data.get(KEY) is None:
        return [(name, _without_matrix(server))]
    matrix = server.below(KEY)
    axes = {key: _values(matrix, key) for key in matrix.data if key not in (_EXCLUDE, _INCLUDE)}
    _require_apart(matrix, axes)
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > _MOST:
        raise server.origins.error(f"'{KEY}' stands for {count} servers, and {_MOST} are the most", (KEY,))
    plain: list[Combination] = [dict(zip(axes, one, strict=True)) for one in itertools.product(*axes.values())]
    excluded, included = _combinations(matrix, _EXCLUDE), _combinations(matrix, _INCLUDE)
    for one in excluded:
        _require_known(matrix, _EXCLUDE, one, axes)
    kept = [one for one in plain if not any(_fits(one, other) for other in excluded)] if axes else []
    found = _with_included(kept, included, axes)
    if not found:
        raise server.origins.error(f"'{KEY}' stands for no server: give a key with values, or '{_INCLUDE}'", (KEY,))
    base = _without_matrix(server)
    names = [_name(name, one) for one in found]
    return [
        # Values that are called the same are told apart.
        (one if names.count(one) == 1 else f"{one}-{_word('', dict(values))}", _laid_over(base, values, server))
        for one, values in zip(names, found, strict=True)
    ]


def _without_matrix(server: Tree) -> Tree:
    return Tree({key: value for key, value in server.data.items() if key != KEY}, server.origins)


def _values(matrix: Tree, key: str) -> Sequence[Any]:
    top = key.partition(".")[0]
    if top not in keys(ServerConfig) or top == "name":
        raise matrix.origins.error(f"'{KEY}': unknown key '{key}'{nearest(top, keys(ServerConfig))}", (key,))
    values = matrix.data[key]
    if not isinstance(values, (list, tuple)) or not values:
        raise matrix.origins.error(f"'{KEY}.{key}': expected a list of values, such as [1, 2]", (key,))
    return values


def _combinations(matrix: Tree, key: str) -> list[Combination]:
    found = matrix.data.get(key) or []
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, Mapping) and one for one in found):
        raise matrix.origins.error(f"'{KEY}.{key}': expected a list of mappings, such as [{{port: 8000}}]", (key,))
    return list(found)


def _require_known(matrix: Tree, place: str, one: Combination, axes: Mapping[str, Any]) -> None:
    for key in one:
        if key not in axes:
            raise matrix.origins.error(
                f"'{KEY}.{place}': '{key}' is no key of the matrix{nearest(key, axes)}", (place,)
            )


def _fits(one: Combination, other: Combination) -> bool:
    """Return whether a combination has all values of another one."""
    return all(one.get(key) == value for key, value in other.items())


def _with_included(
    kept: Sequence[Combination], included: Sequence[Combination], axes: Mapping[str, Any]
) -> list[Combination]:
    """Return combinations with what is included: added to those whose values it does not change, else one more."""
    found = [dict(one) for one in kept]
    more: list[Combination] = []
    for extra in included:
        of_axes = {key: value for key, value in extra.items() if key in axes}
        fitting = [one for one in found if _fits(one, of_axes)]
        if fitting:
            for one in fitting:
                one.update(extra)
        else:
            more.append(extra)
    return [*found, *more]


def _name(name: str, one: Combination) -> str:
    words = [_word(key, value) for key, value in one.items()]
    return "-".join([name, *(word for word in words if word)])


def _word(key: str, value: Any) -> str:
    is_secret = is_secret_name(key.rpartition(".")[2])
    if is_secret or isinstance(value, (Mapping, list, tuple)):
        return hashlib.sha256(repr(value).encode()).hexdigest()[:6]
    return _NOT_IN_NAMES.sub("-", str(value).rpartition("/")[2]).strip("-.")


def _require_apart(matrix: Tree, axes: Mapping[str, Any]) -> None:
    """Make sure that no key lies in the block of another one."""
    for key in axes:
        for other in axes:
            if other.startswith(f"{key}."):
                raise matrix.origins.error(f"'{KEY}': '{other}' lies in '{key}': give one of them", (other,))


def _laid_over(base: Tree, one: Combination, server: Tree) -> Tree:
    upper: dict[str, Any] = {}
    for key, value in one.items():
        # Below config only one level is cut: flags may hold dots.
        *path, last = key.split(".", 2) if key.startswith("config.") else key.split(".", 1)
        block = upper
        for part in path:
            block = block.setdefault(part, {})
        block[last] = copy.deepcopy(value)
    place = server.origins.find((KEY,))
    over = Tree(upper)
    merged = merge_server(base, over)
    if place is not None:
        places = dict(merged.origins.places)
        places.update({(key.partition(".")[0],): place for key in one})
        merged = Tree(merged.data, Origins(places))
    return merged
