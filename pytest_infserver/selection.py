"""Markers decide on which of the configured servers a test runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol


class Mark(Protocol):
    """What is read of a pytest mark."""

    @property
    def name(self) -> str:
        """The marker's name."""

    @property
    def args(self) -> tuple[object, ...]:
        """Its positional arguments."""

    @property
    def kwargs(self) -> object:
        """Its keyword arguments."""


@dataclass(frozen=True)
class Candidate:
    """A configured server, as far as the selection looks at it."""

    name: str
    backend: str


class MarkerError(ValueError):
    """A marker with arguments that have no meaning."""


def select(marks: Iterable[Mark], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that satisfy every mark.

    Raises:
        MarkerError: A mark has arguments that have no meaning.
    """
    chosen = list(candidates)
    for mark in marks:
        names, excluded = _arguments(mark)
        if mark.name == "backend":
            chosen = [one for one in chosen if (not names or one.backend in names) and one.backend not in excluded]
        elif mark.name == "infserver":
            chosen = [one for one in chosen if any(fnmatchcase(one.name, name) for name in names)]
    return chosen


def explain(marks: Sequence[Mark], candidates: Sequence[Candidate]) -> str:
    """Say why no candidate is left: what was asked for and what is configured."""
    asked = " and ".join(_shown(mark) for mark in marks) or "any server"
    configured = ", ".join(f"{one.name} ({one.backend})" for one in candidates) or "none"
    return f"no configured server fits {asked}; configured: {configured}{_suggestion(marks, candidates)}"


def _suggestion(marks: Sequence[Mark], candidates: Sequence[Candidate]) -> str:
    """Return a hint when a name that was asked for looks like a configured one."""
    from difflib import get_close_matches

    for mark in marks:
        known = {one.backend if mark.name == "backend" else one.name for one in candidates}
        words = [str(word) for word in mark.args if word not in known and not set(str(word)) & set("*?[")]
        for word in words:
            near = get_close_matches(word, known, n=1, cutoff=0.75)
            if near:
                return f"; did you mean '{near[0]}'?"
    return ""


def _arguments(mark: Mark) -> tuple[tuple[str, ...], tuple[str, ...]]:
    keywords = dict(mark.kwargs) if isinstance(mark.kwargs, dict) else {}
    excluded = keywords.pop("exclude", ()) if mark.name == "backend" else ()
    excluded = tuple(excluded) if isinstance(excluded, (list, tuple, set, frozenset)) else (excluded,)
    names = mark.args
    if keywords:
        raise MarkerError(f"{_shown(mark)}: unknown keyword '{next(iter(keywords))}'")
    if not names and not excluded:
        raise MarkerError(f"{_shown(mark)}: name at least one")
    texts = tuple(word for word in (*names, *excluded) if isinstance(word, str))
    if len(texts) != len(names) + len(excluded):
        raise MarkerError(f"{_shown(mark)}: names must be texts")
    return texts[: len(names)], texts[len(names) :]


def _shown(mark: Mark) -> str:
    words = [repr(word) for word in mark.args]
    if isinstance(mark.kwargs, dict):
        words += [f"{key}={value!r}" for key, value in mark.kwargs.items()]
    return f"{mark.name}({', '.join(words)})"
