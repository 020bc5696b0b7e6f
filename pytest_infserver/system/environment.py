"""This process's environment, as threads may read it beside tests that change it."""

from __future__ import annotations

import os


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
