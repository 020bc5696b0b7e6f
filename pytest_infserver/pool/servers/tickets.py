"""Who asks for servers, waits for them and has them, by the number of each request."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping

from pytest_infserver.pool.planning.decisions import Grant, Request


class Tickets:
    """The requests that have not come to an end, by number; guarded by the pool's lock."""

    def __init__(self) -> None:
        """Begin with none."""
        self._numbers = itertools.count(1)
        self._asked: dict[int, float] = {}
        self._granted: dict[int, Grant] = {}
        self._running: dict[int, tuple[str, str]] = {}

    def new(self) -> int:
        """Return the next number; also without the lock."""
        return next(self._numbers)

    def ask(self, ticket: int, client: str, test: str | None) -> None:
        """Note a request, which waits from now on."""
        if test is not None:
            self._running[ticket] = client, test
        self._asked[ticket] = time.monotonic()

    def grant(self, grant: Grant) -> None:
        """Note the answer to a request, which waits no longer."""
        self._granted[grant.request.ticket] = grant

    def refuse(self, ticket: int, client: str, reason: str) -> None:
        """Answer a request that the planner does not know any more."""
        self._granted[ticket] = Grant(Request(ticket, client, ()), reason)

    def take(self, ticket: int) -> Grant | None:
        """Return the answer to a request, and forget that it was asked; None if there is no answer."""
        self._asked.pop(ticket, None)
        return self._granted.pop(ticket, None)

    def drop(self, ticket: int) -> None:
        """Forget a request: its servers were given back."""
        for book in (self._running, self._asked, self._granted):
            book.pop(ticket, None)

    def is_answered(self, ticket: int) -> bool:
        """Return whether a request has been answered."""
        return ticket in self._granted

    def is_asked(self, ticket: int) -> bool:
        """Return whether somebody has asked, and has not taken the answer yet."""
        return ticket in self._asked

    def asked_at(self, ticket: int, default: float) -> float:
        """Return when a request was made, or a default if its answer has been taken."""
        return self._asked.get(ticket, default)

    def of_client(self, client: str) -> list[int]:
        """Return the requests of a client's tests."""
        return [ticket for ticket, (user, _) in self._running.items() if user == client]

    def test(self, ticket: int) -> str | None:
        """Return the test that has made a request, or None."""
        return self._running[ticket][1] if ticket in self._running else None

    def tests(self) -> Mapping[int, str]:
        """Return the requests of tests, each with its test."""
        return {ticket: test for ticket, (_, test) in self._running.items()}
