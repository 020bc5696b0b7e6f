"""Gives the servers to those who ask for them, and takes them back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.pool.lease import Lease
from pytest_infserver.pool.planning.decisions import Phase, Request
from pytest_infserver.pool.servers.stop_refusals import stop_refusal
from pytest_infserver.pool.wait_report import Wait, WaitReport, causes, wait_of, wait_report

if TYPE_CHECKING:
    from pytest_infserver.pool.servers.books import Books
    from pytest_infserver.pool.servers.executor import Executor

_STEP = 0.25
"""Seconds between two looks of somebody who waits."""
_TELL_EVERY = 0.2
"""Seconds between two reports of what somebody waits for."""


class Leasing:
    """Answers the requests for servers.

    A method whose docstring does not say otherwise is called under the pool's lock.
    """

    def __init__(self, books: Books, executor: Executor) -> None:
        """Begin with no request.

        Args:
            books: What is known of the servers.
            executor: Starts and stops them.
        """
        self._books = books
        self._executor = executor
        self._changed = books.changed
        self._planner = books.planner
        self._handles = books.handles
        self._tickets = books.tickets
        self._end = books.end

    def ask(self, request: Request, test: str | None) -> None:
        """Let a request wait for its servers."""
        self._tickets.ask(request.ticket, request.client, test)
        self._planner.ask(request)
        self._executor.proceed()

    def wait_for(self, ticket: int, waiting: Callable[[WaitReport], object], progress: Callable[[str], object]) -> None:
        """Wait until a request is answered; without the lock.

        Args:
            ticket: Its number.
            waiting: Gets what all who wait are waiting for, now and then, and once when this has come to an end; not
                of a request that is answered at once.
            progress: Gets what takes long for another reason.
        """
        told = 0.0
        while True:
            with self._changed:
                if not self._is_answered(ticket):
                    with self._end.exits():
                        self._executor.proceed(changed=False)
                if not self._is_answered(ticket):
                    wake, now = self._planner.wake, time.monotonic()
                    self._changed.wait(_STEP if wake is None else max(0.0, min(_STEP, wake - now)))
                answered = self._is_answered(ticket)
            for line in self._handles.take_lines():
                progress(line)
            if answered and not told:
                # Nobody was shown a wait.
                return
            # Whoever shows it does not show more.
            if answered or time.monotonic() - told >= _TELL_EVERY:
                told = time.monotonic()
                waiting(self.wait_report())
            if answered:
                return

    def _is_answered(self, ticket: int) -> bool:
        return self._end.closed or self._tickets.is_answered(ticket)

    def wait_report(self) -> WaitReport:
        """Return what those wait for who wait now; also without the lock."""
        with self._changed:
            servers = self._handles.made()
            if self._end.closed or not self._planner.wishes():
                return wait_report((), servers)
            tests = self._tickets.tests()
            waits = tuple(self._wait(*cause) for cause in causes(self._planner, self._books.room, tests))
            return wait_report(waits, servers)

    def _wait(self, name: str, hindrance: str, ticket: int | None) -> Wait:
        now = time.monotonic()
        changes = self._planner.phase(name) in (Phase.STARTING, Phase.STOPPING, Phase.FALLING_ASLEEP)
        begin = self._executor.begun_at(name, now) if changes or ticket is None else self._tickets.asked_at(ticket, now)
        return wait_of(self._handles.get(name), now - begin, hindrance)

    def leases(
        self, ticket: int, names: Sequence[str], test: str | None, exclusive: bool, begins: Sequence[int]
    ) -> list[Lease]:
        """Return what a request has been granted; ``begins`` are the sizes of the servers' logs."""
        grant = self._tickets.take(ticket)
        refusal = self._end.in_words() if grant is None else grant.refusal
        if test is not None:
            self._books.planned.used_by(test, names)
        errors = self._books.failures.errors(names, test)
        return [
            self._lease(ticket, name, refusal, exclusive, errors[name], begin)
            for name, begin in zip(names, begins, strict=True)
        ]

    def _lease(
        self,
        ticket: int,
        name: str,
        refusal: str | None,
        exclusive: bool,
        error: InferenceServerError | None,
        log_start: int,
    ) -> Lease:
        server = self._handles.get(name)
        if error is None and refusal is not None:
            error = InferenceServerError(refusal)
        if server.launches and self._books.failures.is_first_shown(name):
            # What a failed start has written is shown once, with the first test.
            log_start = server.runtime.status.launch_log_start
        if error is None and (exclusive or name in self._handles.added):
            server.runtime.stop_refusal = None if exclusive else stop_refusal(server, self._books)
        return Lease(ticket, name, server, server.launches, log_start, error, exclusive)

    def give_back(self, ticket: int, done: str | None) -> None:
        """Take a lease back, or a request that still waits.

        Args:
            ticket: Its number.
            done: A planned test that is over now.
        """
        now = time.monotonic()
        request = self._planner.lease(ticket)
        self._planner.give_back(ticket, now)
        if request is not None:
            self._books.planned.used_until(request.names, now)
            for name in request.names:
                if request.exclusive or name in self._handles.added:
                    self._executor.end_exclusive(name)
        self._tickets.drop(ticket)
        self.note_done(done)

    def note_done(self, test: str | None) -> None:
        """Note that a planned test is over; None for none."""
        self._books.planned.note_done(test, self._planner.done)

    def leave(self, client: str) -> None:
        """Take back what a client still has, and the test that it was running with it."""
        wishes, leases = self._planner.leave(client)
        # Also a test that waits for a server, or could not have it, is over.
        for ticket in dict.fromkeys(wishes + leases + self._tickets.of_client(client)):
            waits = self._tickets.is_asked(ticket)
            self.give_back(ticket, self._tickets.test(ticket))
            if waits:
                self._tickets.refuse(ticket, client, f"{client} is gone")
