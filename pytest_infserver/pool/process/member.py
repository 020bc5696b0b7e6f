"""The pool of a process of its own, as the pytest process sees it that has started that one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.pool.broker.broker import PROGRESS
from pytest_infserver.pool.broker.remote import RemoteMember
from pytest_infserver.pool.lease import Problem
from pytest_infserver.pool.member import CLIENT

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.lease import Lease
    from pytest_infserver.pool.member import Plan
    from pytest_infserver.pool.process.owner import PoolOwner
    from pytest_infserver.pool.wait_report import WaitReport


class PoolFailedError(Exception):
    """Something went wrong in the pool's process that nobody can do anything about; the run ends."""


class OwnerMember(RemoteMember):
    """The only process that runs tests, or the controller of xdist, which runs none.

    Attributes:
        owner: The pool's process.
        records: The records of its servers, when they are stopped.
        secrets: What must not be shown of them, likewise.
    """

    owns_pool = True

    def __init__(
        self,
        configs: Mapping[str, ServerConfig],
        owner: PoolOwner,
        *,
        alone: bool,
        waiting: Callable[[WaitReport], object],
        progress: Callable[[str], object],
    ) -> None:
        """Connect to nothing yet.

        Args:
            configs: The servers by name.
            owner: The pool's process.
            alone: Whether this process runs the tests.
            waiting: Gets what is waited for, now and then, and once when that has come to an end.
            progress: Gets a line of text when a start takes long for another reason.
        """
        self._init_handles(configs)
        self.alone = alone
        self.owner = owner
        self.records: list[dict[str, Any]] = []
        self.secrets: frozenset[str] = frozenset()
        self._waiting = waiting
        self._progress = progress
        self._is_connected = False
        self._is_closed = False
        self._trouble_seen = 0
        self._left: list[Problem] = []

    def begin(self, expected: Mapping[str, ServerConfig]) -> None:
        """Start the process, and do not wait for it."""
        self.owner.begin(expected)

    def test(self) -> AbstractContextManager[None]:
        """Run a test: code of the user's that the pool's process asks for has to wait meanwhile."""
        return self.owner.moments.test()

    def note_test(self, label: str, fields: Mapping[str, Any]) -> None:
        """Have it noted in the journal of a server that a test has used it."""
        self.owner.push("note", label, fields)

    def followed(self, config: ServerConfig, view: View) -> InferenceServer:
        """Return the handle of a server, as it is now."""
        self.know({config.name: config})
        return self._follow(config.name, view)

    def plan(self, plan: Plan) -> None:
        """Say which servers each test is going to need.

        Raises:
            ConfigError: A test needs more than there is.
        """
        refusal = self._planned(plan)
        self._raise_exit()
        if refusal is not None:
            raise ConfigError(refusal)

    def is_ready(self, name: str) -> bool:
        """Return whether a server runs now."""
        return name in self.owner.told.up

    def acquire(
        self, names: Sequence[str], test: str | None, exclusive: bool, undisturbed: bool = False
    ) -> list[Lease]:
        """Wait for servers."""
        leases = super().acquire(names, test, exclusive, undisturbed)
        try:
            self._raise_exit()
        except BaseException:
            for ticket in {lease.ticket for lease in leases}:
                self.release(ticket)
            raise
        return leases

    def await_stopped(self, name: str) -> None:
        """Wait until a server has ended that nobody wants any more, and hear how that went."""
        super().await_stopped(name)
        with self._unless_gone():
            self._left += self._problems()

    def take_problems(self) -> list[Problem]:
        """Return what went wrong at stops since the last call; raise what ends the run."""
        self._raise_exit()
        found, self._left = self._left, []
        if self.owner.told.trouble != self._trouble_seen and not self._is_closed:
            found += self._problems()
        return found

    def raise_exit(self) -> None:
        """Raise what ends the run."""
        self._raise_exit()
        if self.owner.told.trouble != self._trouble_seen and not self._is_closed:
            self._left += self._problems()

    def pause(self, server: InferenceServer) -> None:
        """Keep a server from being taken for hung."""
        if self.owner.moments.is_in_moment:
            # The main thread may wait for the very start whose hook this is: nothing can be asked meanwhile.
            self.owner.push("pause", server.name)
        else:
            super().pause(server)

    def resume(self, server: InferenceServer) -> None:
        """Undo one `pause`."""
        if self.owner.moments.is_in_moment:
            self.owner.push("resume", server.name)
        else:
            super().resume(server)

    def stop_all(self) -> None:
        """Stop all servers: the last test is over."""
        if self._is_connected and not self._is_closed:
            with self._unless_gone():
                self._ask("stop_all")
                self._left += self._problems()

    def close(self) -> None:
        """Stop all servers, and let the process end."""
        if self._is_closed or self.owner.pid is None:
            return
        final: dict[str, Any] = {}
        # Whoever waits still, as a test that was interrupted, must not keep the question from being read.
        self.owner.push("refuse")
        try:
            final = self._ask("close")
            with contextlib.suppress(InferenceServerError):
                self.owner.call("flush")
            with contextlib.suppress(PoolFailedError):
                self._left += self._problems()
        except InferenceServerError as error:
            self._left.append(Problem(str(error), None))
        finally:
            self._is_closed = True
            if self._is_connected:
                super().close()
            self.owner.wait_end()
        self.know(final.get("configs", {}))
        for name, view in final.get("views", {}).items():
            self._follow(name, view).runtime.profiling.note_made(final["profiles"][name])
        self.records = final.get("records", [])
        self.secrets = final.get("secrets", frozenset())
        self.incidents += final.get("incidents", [])

    # The inside.

    def _ask(self, verb: str, **arguments: Any) -> Any:
        with self.owner.moments.wait():
            if not self._is_connected:
                self._connect(self.owner.key, CLIENT, "ask" if self.alone else "owner")
                self._is_connected = True
            return super()._ask(verb, **arguments)

    def _told_meanwhile(self, kind: str, what: Any) -> None:
        if kind == PROGRESS:
            self._progress(what)
        else:
            self._waiting(what)

    def _problems(self) -> list[Problem]:
        """Return what has gone wrong.

        Raises:
            PoolFailedError: Something that ends the run.
        """
        self._trouble_seen = self.owner.told.trouble
        problems, failure = self._ask("problems")
        if failure is not None:
            self._left += problems
            raise PoolFailedError(failure)
        found: list[Problem] = problems
        return found

    def _raise_exit(self) -> None:
        error, self.owner.exit = self.owner.exit, None
        if error is not None:
            raise error

    def _why_gone(self) -> str:
        if self.owner.pid is None or self.owner.end is None:
            return super()._why_gone()
        return f"the process of the pool (pid {self.owner.pid}) {self.owner.end}; its servers ended with it"
