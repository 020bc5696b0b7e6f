"""Markers decide on which of the configured servers a test runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from pytest_infserver.config.model import PROFILERS
from pytest_infserver.config.validation import nearest

PROFILE = "infserver_profile"
NEEDS = "infserver_needs"


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


@dataclass(frozen=True)
class Known:
    """What names in marks may stand for.

    Attributes:
        servers: All servers of the configuration, those too that this run leaves out; None: any name may be right.
        backends: All backends.
        optional: Globs of names that other configurations have.
    """

    servers: frozenset[str] | None = None
    backends: frozenset[str] | None = None
    optional: tuple[str, ...] = ()


class MarkerError(ValueError):
    """A marker with arguments that have no meaning."""


def check_names(marks: Iterable[Mark], known: Known) -> None:
    """Make sure that the names in marks stand for something: a misspelt one would only skip its test.

    Raises:
        MarkerError: One stands for nothing, or a mark has arguments that have no meaning.
    """
    for mark in marks:
        names = mark.args if mark.name == NEEDS else sum(_arguments(mark), ())
        what, there = ("backend", known.backends) if mark.name == "backend" else ("server", known.servers)
        for name in map(str, names):
            is_known = there is None or name in there or any(fnmatchcase(name, glob) for glob in known.optional)
            if not is_known and (what == "backend" or not set(name) & set("*?[")):
                raise MarkerError(
                    f"{_shown(mark)}: no {what} is called '{name}'{nearest(name, there or ())}. If other"
                    f" configurations have it, say so in the ini file: infserver_optional_names = {name}"
                )


def select(marks: Iterable[Mark], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that satisfy the closest mark of each kind.

    Args:
        marks: The marks, the closest to the test first, as `iter_markers` gives them.
        candidates: The servers to choose from.

    Raises:
        MarkerError: A mark has arguments that have no meaning.
    """
    chosen = list(candidates)
    for mark in closest(marks):
        names, excluded = _arguments(mark)
        if mark.name == "backend":
            chosen = [one for one in chosen if (not names or one.backend in names) and one.backend not in excluded]
        else:
            chosen = [one for one in chosen if any(fnmatchcase(one.name, name) for name in names)]
    return chosen


def closest(marks: Iterable[Mark]) -> list[Mark]:
    """Return the marks that choose a test's servers: of each kind the one that is closest to the test.

    Args:
        marks: The marks, the closest first.
    """
    found: dict[str, Mark] = {}
    for mark in marks:
        names, excluded = _arguments(mark)
        if names or excluded:
            found.setdefault(mark.name, mark)
    return list(found.values())


def settings_in(marks: Iterable[Mark]) -> list[Mapping[str, object]]:
    """Return what marks change about a test's servers, the closest first."""
    found: list[Mapping[str, object]] = []
    for mark in marks:
        if mark.name == "infserver" and isinstance(mark.kwargs, dict):
            settings = {key: value for key, value in mark.kwargs.items() if key != "exclusive"}
            if settings:
                found.append(settings)
    return found


def exclude_one_another(marks: Sequence[Mark], candidates: Sequence[Candidate]) -> bool:
    """Return whether each of a test's marks fits a server, and none fits all of them."""
    chosen = closest(marks)
    return len(chosen) > 1 and not select(marks, candidates) and all(select([one], candidates) for one in chosen)


def is_exclusive(marks: Iterable[Mark]) -> bool:
    """Return whether a test wants its servers alone; the mark that is nearest to the test counts."""
    said = [
        mark.kwargs["exclusive"]
        for mark in marks
        if mark.name == "infserver" and isinstance(mark.kwargs, dict) and "exclusive" in mark.kwargs
    ]
    return bool(said and said[0])


def wanted_profiler(marks: Iterable[Mark]) -> str | None:
    """Return the profiler that a test asks for, "" for the configured one, or None if it is not to be profiled.

    Raises:
        MarkerError: The mark that is nearest to the test has arguments that have no meaning.
    """
    mark = next((mark for mark in marks if mark.name == PROFILE), None)
    if mark is None:
        return None
    if mark.kwargs or len(mark.args) > 1 or not all(isinstance(word, str) for word in mark.args):
        raise MarkerError(f"{_shown(mark)}: give the name of one profiler, or nothing for the configured one")
    tool = str(mark.args[0]) if mark.args else ""
    if tool and tool not in PROFILERS:
        raise MarkerError(f"{_shown(mark)}: unknown profiler; there are {', '.join(PROFILERS)}")
    return tool


def needed_names(marks: Iterable[Mark], candidates: Sequence[Candidate]) -> tuple[list[str], str]:
    """Return the servers that ``infserver_needs`` names, and why they cannot be had, or "".

    Raises:
        MarkerError: A mark has arguments that have no meaning.
    """
    known = {one.name for one in candidates}
    names: list[str] = []
    for mark in marks:
        if mark.name != NEEDS:
            continue
        if not mark.args or mark.kwargs or not all(isinstance(word, str) for word in mark.args):
            raise MarkerError(f"{_shown(mark)}: give the names of servers")
        names += [str(word) for word in mark.args]
        if not known.issuperset(names):
            return [], explain([mark], candidates)
    return list(dict.fromkeys(names)), ""


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
    # Any other keyword is a setting of the server.
    says_how = mark.name == "infserver" and bool(keywords)
    exclusive = keywords.pop("exclusive", False) if says_how else False
    if mark.name == "infserver":
        keywords = {}
    excluded = tuple(excluded) if isinstance(excluded, (list, tuple, set, frozenset)) else (excluded,)
    names = mark.args
    if keywords:
        raise MarkerError(f"{_shown(mark)}: unknown keyword '{next(iter(keywords))}'")
    if not isinstance(exclusive, bool):
        raise MarkerError(f"{_shown(mark)}: exclusive is True or False")
    if not names and not excluded and not says_how:
        raise MarkerError(f"{_shown(mark)}: name at least one")
    texts = tuple(word for word in (*names, *excluded) if isinstance(word, str))
    if len(texts) != len(names) + len(excluded):
        raise MarkerError(f"{_shown(mark)}: names must be texts")
    return texts[: len(names)], texts[len(names) :]


def _shown(mark: Mark) -> str:
    words = [repr(word) for word in mark.args]
    if isinstance(mark.kwargs, dict):
        # Of settings the key only: they may hold a secret.
        is_setting = mark.name == "infserver"
        words += [
            f"{key}=..." if is_setting and key != "exclusive" else f"{key}={value!r}"
            for key, value in mark.kwargs.items()
        ]
    return f"{mark.name}({', '.join(words)})"
