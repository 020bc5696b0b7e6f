"""This process's environment, as threads may read it beside tests that change it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

_NOT_SETTINGS = ("PYTEST_", "INFSERVER_")
"""How variables begin which say something of the run itself."""


@dataclass(frozen=True)
class Surroundings:
    """What a process that is started inherits.

    Attributes:
        env: The environment.
        folder: The working directory; None if it is not there any more.
    """

    env: Mapping[str, str]
    folder: str | None


def surroundings() -> Surroundings:
    """Return those of this process now."""
    try:
        folder = os.getcwd()  # noqa: PTH109
    except OSError:
        folder = None
    return Surroundings(environment(), folder)


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that have changed between two environments; None for one that is gone."""
    names = sorted(name for name in {*before, *now} if not name.startswith(_NOT_SETTINGS))
    return {name: now.get(name) for name in names if before.get(name) != now.get(name)}


def environment() -> dict[str, str]:
    """Return a copy of this process's environment.

    Reading all of `os.environ` is not atomic: pytest sets and removes PYTEST_CURRENT_TEST around each phase of a test,
    and a variable that goes meanwhile would be a KeyError.
    """
    while True:
        names = list(os.environ.keys())
        try:
            return {name: os.environ[name] for name in names}
        except KeyError:
            continue
