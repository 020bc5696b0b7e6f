"""The actor that holds a server, or a part of one, as seen from pytest."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.connection.errors import ActorAway, ActorLost, NoAnswer
from pytest_infserver.cluster.messages import Hello
from pytest_infserver.cluster.placement.placement import Placement
from pytest_infserver.errors import InferenceServerError, ServerStartupError
from pytest_infserver.version import __version__

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

SLACK = 10.0
_CLOCK_LOOKS = 5
_CANNOT_BE = ("No module named", "failed to import", "cannot import")
"""What Ray says of an actor whose class the node cannot have."""
_CREATE_LIMIT = 120.0
"""Seconds in which an actor must have begun: its node may first have to load a large file system's Python."""


class Actor:
    """One actor in a server's place.

    Attributes:
        node: Where it is.
    """

    def __init__(self, connection: ClusterConnection, placement: Placement, rank: int = 0) -> None:
        """Prepare it; `create` creates it."""
        self.node = placement.nodes[rank]
        self._connection = connection
        self._placement = placement
        self._rank = rank
        # Its place may be given back before it is dismissed.
        self._ticket = placement.ticket

    def create(self, order: bytes, name: str) -> None:
        """Have it created; it is there when `hello` returns."""
        self._placement.create(self._rank, order, name)

    def ask(self, method: str, timeout: float, *arguments: Any) -> Any:
        """Call a method of `ServerOnNode`."""
        return self._connection.ask(
            "call",
            timeout + SLACK,
            ticket=self._ticket,
            rank=self._rank,
            method=method,
            arguments=arguments,
            timeout=timeout,
        )

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of `ServerOnNode` and do not wait for it."""
        self._connection.tell("tell", ticket=self._ticket, rank=self._rank, method=method, arguments=arguments)

    def hello(self, server: InferenceServer) -> Hello:
        """Wait until it is there, and return what it says first.

        Raises:
            ActorLost: It or its node is gone.
            ServerStartupError: It does not come, or cannot.
        """
        deadline = time.monotonic() + _CREATE_LIMIT
        while True:
            try:
                answer: Hello = self.ask("hello", 1.0)
            except NoAnswer as problem:
                if isinstance(problem, ActorAway) and self.node.has_no_ray():
                    raise ActorLost("its node has died") from None
                server.runtime.raise_if_cancelled()
                server.runtime.note_phase("starting its actor")
                if time.monotonic() > deadline:
                    raise ServerStartupError(
                        f"{server} cannot start: its actor on {self.node} did not answer within {_CREATE_LIMIT:g} s"
                    ) from None
            except ActorLost as lost:
                if not any(sign in str(lost) for sign in _CANNOT_BE):
                    raise
                raise ServerStartupError(f"{server} cannot start on {self.node}: {_why_none(str(lost))}") from None
            else:
                if answer.node not in ("", self.node.id):
                    # Ray has moved its place; the address that the server has been given is the old one.
                    raise ActorLost("its node has died")
                return answer

    def measured_clock(self) -> float:
        """Return by how many seconds its node's clock is ahead of this one."""
        looks = []
        for _ in range(_CLOCK_LOOKS):
            asked = time.time()
            answer: Hello = self.ask("hello", SLACK)
            now = time.time()
            looks.append((now - asked, answer.now - (asked + now) / 2))
        # The faster the answer, the better it is known when it was given.
        return min(looks)[1]

    def node_is_lost(self, reason: str) -> bool:
        """Return whether its whole node is gone, after Ray has given a reason for the end of the actor."""
        with contextlib.suppress(InferenceServerError):
            return (
                "node has died" in reason
                or self.node.has_no_ray()
                or self.node.id not in {one.id for one in self._connection.nodes() if one.alive}
            )
        return False

    def end(self, *, is_gone: bool = False) -> None:
        """Have it remove its files, and end it.

        Args:
            is_gone: Whether it will not answer.
        """
        if not is_gone:
            with contextlib.suppress(InferenceServerError):
                self.ask("close", SLACK)
        with contextlib.suppress(InferenceServerError):
            self._connection.ask("dismiss", SLACK, ticket=self._ticket, rank=self._rank)


def _why_none(reason: str) -> str:
    if "No module named 'pytest_infserver" in reason:
        return (
            f"the Python of its Ray has no pytest-infserver {__version__}: pip install"
            f" 'pytest-infserver[ray]=={__version__}' there, as on every node"
        )
    return reason
