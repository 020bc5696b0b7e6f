"""Where on the cluster the servers of one pytest process are."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.connection.errors import ClusterLost, NoAnswer, Unreachable
from pytest_infserver.cluster.placement.demand import Demand, nodes_in_words
from pytest_infserver.cluster.placement.packing import fits
from pytest_infserver.cluster.placement.placement import Placement
from pytest_infserver.errors import ServerStartupError

if TYPE_CHECKING:
    from pytest_infserver.cluster.connection.nodes import Node
    from pytest_infserver.launcher.server import InferenceServer

_STEP = 0.25
_LOOK_LIMIT = 2.0
_COUNT_INTERVAL = 2.0
_TOO_SMALL_LIMIT = 10.0
"""Seconds that a cluster which has become too small for a server gets to grow again."""


class Placements:
    """Gives servers their places; each keeps its own until `give_back`, so that it comes back where it was."""

    def __init__(
        self, connection: Callable[[], ClusterConnection], demand: Callable[[InferenceServer], Demand]
    ) -> None:
        """Begin with no server.

        Args:
            connection: Returns the connection to the cluster, a new one when the last one is lost.
            demand: Returns what a server needs.
        """
        self._connection = connection
        self._demand = demand
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._placements: dict[InferenceServer, Placement] = {}

    def new_name(self) -> str:
        """Return a name that nothing else on the cluster has."""
        return f"{self._run}:{next(self._numbers)}"

    def give_back(self, server: InferenceServer) -> None:
        """Give back the place of a server that has been stopped."""
        placement = self._placements.pop(server, None)
        if placement is not None:
            placement.give_back()

    def note_lost(self, server: InferenceServer) -> None:
        """Note that nobody knows what has become of what was asked for at a server's place: it gets another one."""
        if server in self._placements:
            self._placements[server].lost = True

    def place(self, server: InferenceServer) -> Placement:
        """Return a server's place, and wait for one if it has none.

        Raises:
            ServerStartupError: There is none in time, or the start was cancelled.
        """
        before = self._placements.get(server)
        if before is not None:
            if before.is_there():
                return before
            # Its node is gone.
            self.give_back(server)
        try:
            return self._new_place(server)
        except ClusterLost:
            # That was not known before: a head node that was restarted is another cluster.
            return self._new_place(server)

    def _new_place(self, server: InferenceServer) -> Placement:
        try:
            connection, demand = self._connection(), self._demand(server)
        except Unreachable as error:
            raise ServerStartupError(f"{server} cannot start: {error}") from None
        placement = Placement(connection, demand, f"infserver:{self.new_name()}")
        self._placements[server] = placement
        try:
            self._await(server, placement)
        except BaseException:
            self.give_back(server)
            raise
        return placement

    def _await(self, server: InferenceServer, placement: Placement) -> None:
        begin = time.monotonic()
        limit = server.settings.startup_timeout
        demand = placement.demand
        fitted_at = counted_at = begin
        placement.ask()
        while not self._has_come(placement):
            server.runtime.raise_if_cancelled()
            now = time.monotonic()
            nodes = None
            if now - counted_at > _COUNT_INTERVAL:
                counted_at = now
                nodes = _living(placement.connection)
                if nodes is None or fits([demand.bundles], [node.total for node in nodes]):
                    fitted_at = now
            if nodes is not None and now - fitted_at > _TOO_SMALL_LIMIT:
                raise ServerStartupError(
                    f"{server} cannot start: it needs {demand}, and the cluster has {nodes_in_words(nodes)} now"
                )
            if now - begin > limit:
                nodes = _living(placement.connection)
                free = "its head node does not answer" if nodes is None else nodes_in_words(nodes, free=True)
                raise ServerStartupError(
                    f"{server} cannot start: the cluster had no room for it within startup_timeout {limit:g} s: it"
                    f" needs {demand}; free now: {free}\n  What to do: wait for whoever has the rest, or raise"
                    " startup_timeout (--infserver-startup-timeout)."
                )
            if now - begin > _STEP:
                server.runtime.note_phase(f"waiting for the cluster (needs {demand})")

    @staticmethod
    def _has_come(placement: Placement) -> bool:
        try:
            return placement.wait(_STEP)
        except NoAnswer:
            # A head node that is away comes back, or the connection is lost.
            return False


def _living(connection: ClusterConnection) -> list[Node] | None:
    """Return the nodes that live, or None if nobody says."""
    try:
        return [node for node in connection.nodes(_LOOK_LIMIT) if node.alive]
    except NoAnswer:
        return None
