"""Which servers could not be had or have died, and what each test is told of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError, ServerDiedError
from pytest_infserver.launcher.diagnosis.messages import repeated

if TYPE_CHECKING:
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer


class Failures:
    """The servers that are not started again, and the deaths of launches; guarded by the pool's lock."""

    def __init__(self) -> None:
        """Begin with none."""
        self._failures: dict[str, InferenceServerError] = {}
        self._shown: set[str] = set()
        self._first_told: dict[str, str] = {}
        self._deaths: dict[tuple[str, int], str] = {}
        self._last_views: dict[tuple[str, int | None], tuple[float, View]] = {}
        self._restarts: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self._failures

    def note(self, name: str, error: InferenceServerError) -> None:
        """Note why a server could not be had: it is not started again, and all who ask for it are told so."""
        self._failures[name] = error

    def forget(self, name: str) -> None:
        """Let a server be started again that could not be had."""
        self._failures.pop(name, None)

    def error(self, name: str) -> InferenceServerError | None:
        """Return why a server could not be had, or None."""
        return self._failures.get(name)

    def first(self, names: Iterable[str]) -> str | None:
        """Return the first of some servers that could not be had, or None."""
        return next((name for name in names if name in self._failures), None)

    def errors(self, names: Iterable[str], test: str | None) -> Mapping[str, InferenceServerError | None]:
        """Return what a test is told of each server that it has asked for: it gets all of them together or none."""
        known = list(names)
        failed = self.first(known)
        return {name: self._failure(name if name in self._failures else failed, test) for name in known}

    def _failure(self, name: str | None, test: str | None) -> InferenceServerError | None:
        """Return why a server could not be had: all of it for the first test, for each later one that and where."""
        error = None if name is None else self._failures.get(name)
        if error is None or test is None:
            return error
        first = self._first_told.setdefault(str(name), test)
        text = repeated(str(error), first)
        return error if first == test or text == str(error) else type(error)(text)

    def is_first_shown(self, name: str) -> bool:
        """Return whether a server has failed and that has not been asked here: its output is shown with one test."""
        if name not in self._failures or name in self._shown:
            return False
        self._shown.add(name)
        return True

    def note_death(self, server: InferenceServer, reason: str) -> None:
        """Note that a launch of a server has died, and how the server is."""
        self._deaths[server.name, server.launches] = reason
        self._last_views[server.name, server.launches] = time.monotonic(), server.runtime.view()

    def gives_up(self, server: InferenceServer, restarts: int) -> bool:
        """Count a death, and return whether the server is not started again.

        Args:
            server: The server.
            restarts: How often one that died is started again.
        """
        name = server.name
        self._restarts[name] += 1
        if self._restarts[name] <= restarts:
            return False
        self._failures[name] = ServerDiedError(_not_restarted(server, self._restarts[name]))
        return True

    def death(self, name: str, launch: int) -> str | None:
        """Return why a launch of a server died, or None if it did not."""
        return self._deaths.get((name, launch))

    def last_view(self, name: str, launch: int | None) -> tuple[float, View] | None:
        """Return when a launch of a server was seen to have died and how the server was then, or None."""
        return self._last_views.get((name, launch))


def _not_restarted(server: InferenceServer, deaths: int) -> str:
    if deaths == 1:
        return f"{server} has died and is not restarted (--infserver-on-crash=fail); log: {server.log_path}"
    return f"{server} has died {deaths} times and is not restarted any more; log: {server.log_path}"
