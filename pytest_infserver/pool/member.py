"""What a pytest process sees of the pool, wherever that lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from pytest_infserver.pool.lease import Lease, Problem

if TYPE_CHECKING:
    from pytest_infserver.cluster.demand import Demand as ClusterDemand
    from pytest_infserver.launcher.follower import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.outlook import Outlook
    from pytest_infserver.pool.pool import Pool

CLIENT = "main"


class Member(Protocol):
    """One pytest process's access to the pool."""

    alone: bool
    """Whether this is the only process that runs tests."""
    incidents: list[str]
    """What happened to servers and is worth a word in the summary."""

    def server(self, name: str) -> InferenceServer:
        """Return the handle of a server, which stays the same through restarts; it need not run."""

    def servers(self) -> list[InferenceServer]:
        """Return the handles of all servers that were wanted so far."""

    def plan(
        self, tests: Mapping[str, Sequence[str]], profilers: Mapping[str, str] | None = None, *, in_order: bool = False
    ) -> None:
        """Say which servers each test is going to need, and for which profilers they are started.

        Args:
            tests: Node id to servers, in the order of the tests.
            profilers: Name of a server to the profiler for which it has to be started.
            in_order: Whether the tests run in exactly that order.
        """

    def is_ready(self, name: str) -> bool:
        """Tell whether a server runs now."""

    def pin(self, name: str) -> None:
        """Note a use that was not planned, which more may follow."""

    def acquire(
        self, names: Sequence[str], test: str | None, exclusive: bool, undisturbed: bool = False
    ) -> list[Lease]:
        """Wait for servers, all of them together; an error is in the leases, not raised."""

    def release(self, ticket: int, done: str | None = None) -> None:
        """Give a lease back; ``done`` is a planned test that is over with that."""

    def done(self, test: str) -> None:
        """Note that a planned test is over that had no lease."""

    def death(self, lease: Lease) -> str | None:
        """Return why the server has died since it was leased, or None if it has not."""

    def view(self, name: str, launch: int) -> View | None:
        """Return how a server is as its owner sees it, or None if that does not answer at once; nothing is raised."""

    def make_room_for(self, name: str, demands: Sequence[ClusterDemand]) -> None:
        """Have idle servers stopped in whose room one could run that waits for the cluster and is not the pool's."""

    def take_problems(self) -> list[Problem]:
        """Return what went wrong at stops since the last call."""

    def stop_all(self) -> None:
        """Stop all servers, if they are this process's: its last test is over."""

    def close(self) -> None:
        """Take part no more; whoever owns the servers stops them."""


class LocalMember:
    """The one process of a run without workers, which owns the servers."""

    alone = True

    def __init__(self, pool: Pool, *, waiting: Callable[[Outlook], object], progress: Callable[[str], object]) -> None:
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

    def server(self, name: str) -> InferenceServer:
        """Return the handle of a server."""
        return self.pool.server(name)

    def servers(self) -> list[InferenceServer]:
        """Return the handles of all servers that were wanted so far."""
        return self.pool.servers

    def plan(
        self, tests: Mapping[str, Sequence[str]], profilers: Mapping[str, str] | None = None, *, in_order: bool = False
    ) -> None:
        """Say which servers each test is going to need."""
        self.pool.join(CLIENT)
        self.pool.plan(tests, profilers)
        self.pool.raise_exit()

    def is_ready(self, name: str) -> bool:
        """Tell whether a server runs now."""
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

    def release(self, ticket: int, done: str | None = None) -> None:
        """Give a lease back."""
        self.pool.release(ticket, done)

    def done(self, test: str) -> None:
        """Note that a planned test is over that had no lease."""
        self.pool.done(test)

    def death(self, lease: Lease) -> str | None:
        """Return why the server has died since it was leased."""
        return self.pool.death(lease.name, lease.launch)

    def view(self, name: str, launch: int) -> View | None:
        """Return how a server is."""
        return self.pool.view(name, launch)

    def make_room_for(self, name: str, demands: Sequence[ClusterDemand]) -> None:
        """Have idle servers stopped."""
        self.pool.make_room_for(name, demands)

    def take_problems(self) -> list[Problem]:
        """Return what went wrong at stops since the last call."""
        return self.pool.take_problems()

    def stop_all(self) -> None:
        """Stop all servers."""
        self.pool.stop_all(self._progress)

    def close(self) -> None:
        """Stop all servers and hand none out any more."""
        self.pool.close(self._progress)
