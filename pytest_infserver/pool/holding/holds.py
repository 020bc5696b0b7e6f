"""Leases that outlive a test: those of `inference_server_factory`, each until its scope is over."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import pytest

from pytest_infserver.config.needs import check_needs, with_needs
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.pool.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.launcher.spec import ServerSpec
    from pytest_infserver.pool.collection.choice import Choice
    from pytest_infserver.pool.member import Member

Maker: TypeAlias = "pytest.FixtureDef[Any] | pytest.Item | None"


class Moment(Protocol):
    """What runs now."""

    item: pytest.Item | None
    leases: dict[str, Lease]

    @property
    def fixture_in_setup(self) -> pytest.FixtureDef[Any] | None:
        """The fixture that is being made, or None."""


@dataclass(eq=False)
class Held:
    """A lease that outlives its test.

    Attributes:
        config: The server.
        lease: The lease; another one when the server had died.
        maker: The fixture that has asked for it, or the test, if it did so itself.
        scope: The scope that was asked for; None for that of the fixture.
        ends: Whether its scope is over: it is given back unless the next one wants the same server.
        user: The test that has used it last.
        is_over: Whether it was given back; the test's report still tells of it.
    """

    config: ServerConfig
    lease: Lease
    maker: Maker = None
    scope: str | None = None
    ends: bool = False
    user: str | None = None
    is_over: bool = False

    @property
    def name(self) -> str:
        """The server's name."""
        return self.config.name

    def is_used_by(self, item: pytest.Item) -> bool:
        """Return whether a test takes the fixture that has asked for it."""
        return isinstance(self.maker, pytest.FixtureDef) and self.maker.argname in getattr(item, "fixturenames", ())


class Holds:
    """The leases of one pytest process that outlive their tests.

    Attributes:
        all: Those that are not over, and those that have ended in the running test.
    """

    def __init__(self, member: Member, choice: Choice, moment: Moment) -> None:
        """Begin with none.

        Args:
            member: Gives out the servers.
            choice: Knows the configured servers.
            moment: Knows what runs.
        """
        self._member = member
        self._choice = choice
        self._moment = moment
        self.all: list[Held] = []
        self._left_behind: list[Held] = []
        self._blocks: list[tuple[str, Held | None]] = []

    def begin_test(self, item: pytest.Item) -> None:
        """Forget what was over before a test, and note where in its servers' logs it begins."""
        self._left_behind = [held for held in [*self._left_behind, *self.all] if held.is_over and _is_cached(held)]
        self.all = [held for held in self.all if not held.is_over]
        for held in self.all:
            held.user = held.user if held.ends else item.nodeid
            held.lease = dataclasses.replace(held.lease, log_start=held.lease.server.runtime.log_size_now())

    def hold(
        self, config: ServerConfig, until: Callable[[Callable[[], object]], object], scope: str | None
    ) -> InferenceServer:
        """Lease a server until some scope ends.

        Args:
            config: The server.
            until: Gets what ends the lease, for the end of the scope.
            scope: The scope, if the user has named one.

        Raises:
            InferenceServerError: It could not be had.
        """
        held = next((one for one in self.all if one.ends and one.name == config.name), None)
        if held is not None and held.lease.server.running:
            held.ends, held.maker, held.scope = False, self._maker, scope
        else:
            # A parametrised fixture's server is gone before the next parameter's is there.
            self.end(gone=True)
            check_needs({**self._choice.all_configs, config.name: config})
            self._member.add({config.name: config})
            held = Held(config, self._lease(config), self._maker, scope)
            if held.lease.error is not None:
                self._member.release(held.lease.ticket)
                raise held.lease.error
            self.all.append(held)
        until(functools.partial(self._let_go, held, in_fixture=self._moment.fixture_in_setup is not None))
        held.lease.server.runtime.blocks = self
        return held.lease.server

    def end(self, *, gone: bool = False) -> None:
        """Give back what was leased for a scope that is over.

        Args:
            gone: Whether to wait until these servers have ended, unless others use them.
        """
        for held in self.all:
            if held.ends:
                held.ends, held.is_over = False, True
                self._member.release(held.lease.ticket, user=held.user)
                if gone:
                    self._member.await_stopped(held.name)

    def revive(self, item: pytest.Item) -> None:
        """Have those started again that have ended since the last test.

        Args:
            item: The test that is about to begin; it fails if one that it takes cannot be had any more.
        """
        for held in self.all:
            if held.is_over:
                continue
            state = held.lease.server.state
            is_used = held.is_used_by(item)
            has_ended = state is ServerState.DIED or (state is ServerState.STOPPED and is_used)
            if has_ended and held.lease.error is None:
                self._member.release(held.lease.ticket)
                held.lease = self._lease(held.config)
            if is_used and held.lease.error is not None:
                pytest.fail(_given_up(held), pytrace=False)

    def left_behind(self, item: pytest.Item) -> list[tuple[str, str]]:
        """Return name and fate of each server that was given back, and that a fixture of a test still has."""
        found = [held for held in [*self._left_behind, *self.all] if held.is_over and held.is_used_by(item)]
        return [(held.name, _left(held)) for held in found if _is_cached(held) and not held.lease.server.running]

    # As `Blocks`: what ``with factory(...) as server:`` begins and ends.

    def enter(self, server: ServerSpec) -> None:
        """Note that a block begins whose end gives back what was asked for just now."""
        entered = [held for _, held in self._blocks]
        mine = [one for one in self.all if one.name == server.name and one.maker is self._maker and not one.is_over]
        self._blocks.append((server.name, next((one for one in reversed(mine) if one not in entered), None)))

    def leave(self, server: ServerSpec) -> bool:
        """Give back what the innermost block has; return False if it is the server itself that has to be stopped."""
        index = next((i for i in reversed(range(len(self._blocks))) if self._blocks[i][0] == server.name), None)
        held = None if index is None else self._blocks.pop(index)[1]
        if held is not None and not held.is_over:
            held.ends, held.user = True, self._test or held.user
            self.end(gone=True)
        own = self._moment.leases.get(server.name)
        return held is not None or own is None or not own.exclusive

    # The inside.

    @property
    def _maker(self) -> Maker:
        return self._moment.fixture_in_setup or self._moment.item

    @property
    def _test(self) -> str | None:
        return None if self._moment.item is None else self._moment.item.nodeid

    def _lease(self, config: ServerConfig) -> Lease:
        before = self._member.server(config.name).launches
        configs: Mapping[str, ServerConfig] = {**self._choice.all_configs, config.name: config}
        needed = with_needs((config.name,), configs)
        # What the test has to itself it cannot lease once more.
        own = self._moment.leases
        others = [name for name in needed[:-1] if name not in own or not own[name].exclusive]
        lease = self._member.acquire((*others, config.name), self._test, exclusive=False)[-1]
        if lease.launch == before:
            return lease
        # What it wrote at its start it wrote for who has asked for it.
        return dataclasses.replace(lease, log_start=lease.server.runtime.status.launch_log_start)

    def _let_go(self, held: Held, *, in_fixture: bool) -> None:
        if held.is_over:
            return
        held.ends, held.user = True, self._test or held.user
        if not in_fixture:
            # Else the next parameter's fixture may want the same one.
            self.end(gone=True)


def _is_cached(held: Held) -> bool:
    """Return whether the fixture that has asked for a server still has it."""
    return isinstance(held.maker, pytest.FixtureDef) and held.maker.cached_result is not None


def _given_up(held: Held) -> str:
    assert isinstance(held.maker, pytest.FixtureDef)
    return (
        f"the server of the fixture '{held.maker.argname}' (scope '{held.maker.scope}') is not there any more:"
        f' {held.lease.error}\nWhere a test may end it, give each one of its own: scope="function" for the fixture,'
        " fresh=True for the factory."
    )


def _left(held: Held) -> str:
    assert isinstance(held.maker, pytest.FixtureDef)
    fixture = held.maker
    return (
        f"{held.lease.server} had ended before this test: it was asked for with scope='{held.scope or fixture.scope}',"
        f" and given back after {held.user}. The fixture '{fixture.argname}' still has it: leave 'scope' out, or write"
        f" scope='{fixture.scope}'."
    )
