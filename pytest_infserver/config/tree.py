"""Plain configuration data together with the places that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pytest_infserver.config.variables import Variables, hide
from pytest_infserver.errors import ConfigError

Path: TypeAlias = "tuple[str | int, ...]"


@dataclass(frozen=True)
class Origin:
    """A place in a file (1-based line and column), or the name of an option.

    Attributes:
        file: The file, or the option.
        line: The line.
        column: The column.
        written: The text that stands there, if variables were filled into it.
        variables: What the variables of the whole file hold, which no error shows.
    """

    file: str
    line: int | None = None
    column: int | None = None
    written: str | None = field(default=None, compare=False)
    variables: Variables = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


@dataclass(frozen=True)
class Origins:
    """Where each value came from, by its path of keys."""

    places: Mapping[Path, Origin] = field(default_factory=dict)

    def find(self, path: Path) -> Origin | None:
        """Return the place of ``path``, or of the nearest block around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return None

    def error(self, message: str, path: Path) -> ConfigError:
        """Return a ConfigError that points at ``path``."""
        place = self.find(path)
        message = self.hide(message)
        if place is None:
            return ConfigError(message)
        return ConfigError(message, file=place.file, line=place.line, column=place.column, of_block=not path)

    def hide(self, message: str) -> str:
        """Return a message without what came from a ``${VAR}``: with the name of the variable instead."""
        # Those of one file are one mapping.
        for variables in {id(place.variables): place.variables for place in self.places.values()}.values():
            message = hide(message, variables)
        return message

    def written(self, path: Path) -> str | None:
        """Return the text that stands at ``path`` in the file, if variables were filled into it."""
        place = self.places.get(path)
        return None if place is None else place.written

    def below(self, prefix: Path) -> Origins:
        """Return the places under ``prefix``, with paths relative to it."""
        size = len(prefix)
        return Origins({path[size:]: place for path, place in self.places.items() if path[:size] == prefix})


@dataclass(frozen=True)
class Tree:
    """A mapping and the origins of its values."""

    data: Mapping[str, Any]
    origins: Origins = field(default_factory=Origins)

    def below(self, *prefix: str) -> Tree:
        """Return the block at ``prefix``, which must be a mapping."""
        data: Any = self.data
        for depth, key in enumerate(prefix, start=1):
            data = data[key] if data[key] is not None else {}
            if not isinstance(data, Mapping):
                example = f"{key}: {{my-server: {{backend: vllm, ...}}}}" if key == "servers" else f"{key}: {{...}}"
                raise self.origins.error(f"'{key}' must be a mapping, such as {example}", prefix[:depth])
        return Tree(data, self.origins.below(prefix))

    def merged_under(self, upper: Tree) -> Tree:
        """Return this tree with ``upper`` laid over it: mappings merge deeply, anything else is replaced."""
        places = dict(self.origins.places)
        data = _merge(self.data, upper.data, (), places)
        places.update(upper.origins.places)
        return Tree(data, Origins(places))


def _is_list_and_mapping(one: Any, other: Any) -> bool:
    sequences = (list, tuple)
    return (isinstance(one, Mapping) and isinstance(other, sequences)) or (
        isinstance(one, sequences) and isinstance(other, Mapping)
    )


def labelled(data: Mapping[str, Any], label: str) -> Tree:
    """Return a tree whose values all come from the option or argument called ``label``."""
    places: dict[Path, Origin] = {}

    def walk(value: Any, path: Path) -> None:
        if path:
            places[path] = Origin(label)
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, (*path, key))

    walk(data, ())
    return Tree(data, Origins(places))


def _merge(lower: Any, upper: Any, path: Path, places: dict[Path, Origin]) -> Any:
    if isinstance(lower, Mapping) and isinstance(upper, Mapping):
        merged = dict(lower)
        for key, value in upper.items():
            merged[key] = _merge(lower[key], value, (*path, key), places) if key in lower else value
        return merged
    if _is_list_and_mapping(lower, upper):
        dotted = ".".join(map(str, path))
        message = f"'{dotted}' is a mapping in one place and a list in another: write both the same way"
        raise Origins(places).error(message, path)
    # The places below a replaced value would point at what no longer counts.
    for old in [place for place in places if place[: len(path)] == path]:
        del places[old]
    return upper
