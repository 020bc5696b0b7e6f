"""What a pytest process sees of the pool, wherever that lives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pytest_infserver.pool.lease import Lease, Problem

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.pool import Pool
    from pytest_infserver.pool.wait_report import WaitReport

CLIENT = "main"


@dataclass(frozen=True)
class Plan:
    """What the tests of one pytest process are going to need.

    Attributes:
        tests: Node id to servers, in the order of the tests.
        profilers: Name of a server to the profiler for which it has to be started.
        in_order: Whether the tests run in exactly that order.
        ahead: Whether a server may be started before a test asks for it.
    """

    tests: Mapping[str, Sequence[str]]
    profilers: Mapping[str, str] = field(default_factory=dict)
    in_order: bool = False
    ahead: bool = True


class Member(Protocol):
    """One pytest process's access to the pool."""

    alone: bool
    """Whether this is the only process that runs tests."""
    owns_pool: bool
    """Whether the servers belong to this process, or to one that it has started: it writes the report."""
    incidents: list[str]
    """What happened to servers and is worth a word in the summary."""

    def begin(self, expected: Mapping[str, ServerConfig]) -> None:
        """Prepare for servers, without waiting for anything.

        Args:
            expected: Those that tests are probably going to use, the first one wanted first; `plan` says which.
        """

    def test(self) -> AbstractContextManager[None]:
        """Run a test."""

    def server(self, name: str) -> InferenceServer:
        """Return the handle of a server, which stays the same through restarts; it need not run."""

    def can_run(self, config: ServerConfig) -> bool:
        """Return whether the pool can run servers of a backend."""

    def add(self, configs: Mapping[str, ServerConfig]) -> None:
        """Have the pool take in servers that are not configured: variants of these, and what tests make.

        Raises:
            ConfigError: One of them needs more than there is.
        """

    def servers(self) -> list[InferenceServer]:
        """Return the handles of all servers that were wanted so far."""

    def plan(self, plan: Plan) -> None:
        """Say which servers each test is going to need."""

    def is_ready(self, name: str) -> bool:
        """Return whether a server runs now."""

    def pin(self, name: str) -> None:
        """Note a use that was not planned, which more may follow."""

    def acquire(
        self, names: Sequence[str], test: str | None, exclusive: bool, undisturbed: bool = False
    ) -> list[Lease]:
        """Wait for servers, all of them together; an error is in the leases, not raised."""

    def release(self, ticket: int, done: str | None = None, user: str | None = None) -> None:
        """Give a lease back; ``done`` is a planned test that is over with that, ``user`` who has used it last."""

    def await_stopped(self, name: str) -> None:
        """Wait until a server has ended that nobody wants any more."""

    def done(self, test: str) -> None:
        """Note that a planned test is over that had no lease."""

    def death(self, lease: Lease) -> str | None:
        """Return why the server has died since it was leased, or None if it has not."""

    def view(self, name: str, launch: int) -> View | None:
        """Return how a server is as its owner sees it, or None if that does not answer at once; nothing is raised."""

    def take_problems(self) -> list[Problem]:
        """Return what went wrong at stops since the last call."""

    def stop_all(self) -> None:
        """Stop all servers, if they are this process's: its last test is over."""

    def close(self) -> None:
        """Take part no more; whoever owns the servers stops them."""


class LocalMember:
    """The one process of a run without workers, which owns the servers."""

    alone = True
    owns_pool = True

    def __init__(
        self, pool: Pool, *, waiting: Callable[[WaitReport], object], progress: Callable[[str], object]
    ) -> None:
        """Join a pool.

        Args:
            pool: The pool.
            waiting: Gets what is waited for, now and then, and once when that has come to an end.
            progress: Gets a line of text when a start takes long for another reason.
        """
        self.pool = pool
        self.incidents = pool.incidents
        self._waiting = waiting
        self._progress = progress

    def begin(self, expected: Mapping[str, ServerConfig]) -> None:
        """Do nothing: the pool is here, and what it starts may be code of the user's, beside pytest's imports."""

    def test(self) -> AbstractContextManager[None]:
        """Run a test."""
        return contextlib.nullcontext()

    def server(self, name: str) -> InferenceServer:
        """Return the handle of a server."""
        return self.pool.server(name)

    def can_run(self, config: ServerConfig) -> bool:
        """Return True: the pool is here."""
        return True

    def add(self, configs: Mapping[str, ServerConfig]) -> None:
        """Have the pool take in servers that are not configured."""
        self.pool.add(configs)

    def servers(self) -> list[InferenceServer]:
        """Return the handles of all servers that were wanted so far."""
        return self.pool.servers

    def plan(self, plan: Plan) -> None:
        """Say which servers each test is going to need."""
        self.pool.join(CLIENT)
        self.pool.plan(plan.tests, plan.profilers, ahead=plan.ahead)
        self.pool.raise_exit()

    def is_ready(self, name: str) -> bool:
        """Return whether a server runs now."""
        return self.pool.is_ready(name)

    def pin(self, name: str) -> None:
        """Note a use that was not planned."""
        self.pool.pin(name)

    def acquire(
        self, names: Sequence[str], test: str | None, exclusive: bool, undisturbed: bool = False
    ) -> list[Lease]:
        """Wait for servers."""
        self.pool.join(CLIENT)
        leases = self.pool.acquire(
            CLIENT,
            names,
            test=test,
            exclusive=exclusive,
            undisturbed=undisturbed,
            waiting=self._waiting,
            progress=self._progress,
        )
        try:
            self.pool.raise_exit()
        except BaseException:
            for ticket in {lease.ticket for lease in leases}:
                self.pool.release(ticket)
            raise
        return leases

    def release(self, ticket: int, done: str | None = None, user: str | None = None) -> None:
        """Give a lease back."""
        self.pool.release(ticket, done, user)

    def await_stopped(self, name: str) -> None:
        """Wait until a server has ended that nobody wants any more."""
        self.pool.await_stopped(name)

    def done(self, test: str) -> None:
        """Note that a planned test is over that had no lease."""
        self.pool.done(test)

    def death(self, lease: Lease) -> str | None:
        """Return why the server has died since it was leased."""
        return self.pool.death(lease.name, lease.launch)

    def view(self, name: str, launch: int) -> View | None:
        """Return how a server is."""
        return self.pool.view(name, launch)

    def take_problems(self) -> list[Problem]:
        """Return what went wrong at stops since the last call."""
        return self.pool.take_problems()

    def stop_all(self) -> None:
        """Stop all servers."""
        self.pool.stop_all(self._progress)

    def close(self) -> None:
        """Stop all servers and hand none out any more."""
        self.pool.close(self._progress)
