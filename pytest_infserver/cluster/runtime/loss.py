"""Why nothing is heard any more of a server on a cluster: its actor, its node or the cluster is gone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.connection.errors import ClusterLost, NoAnswer
from pytest_infserver.cluster.connection.nodes import Node
from pytest_infserver.cluster.placement.placement import Placement
from pytest_infserver.errors import InferenceServerError, ServerStartupError

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_LOOK_LIMIT = 5.0


class NodeLost(ServerStartupError):
    """A node was lost while a server started there: on another one it may start."""


class NotBegun(NodeLost):
    """A server's actor has ended before the server was launched: with another one it may start."""


class Loss:
    """Finds out what of one server is gone."""

    def __init__(self, connection: ClusterConnection, server: InferenceServer, placement: Placement) -> None:
        """Prepare to find out.

        Args:
            connection: The cluster.
            server: The server.
            placement: Its nodes.
        """
        self._connection = connection
        self._server = server
        self._placement = placement
        # The place may be given back before its loss is explained.
        self._first = placement.nodes[0]

    def start_error(self, why: str) -> ServerStartupError:
        """Return why the server did not start, as what `why` says was in the way."""
        server = self._server
        kind = NodeLost if self._placement.lost else ServerStartupError
        what = f"{why}, while it started" if why.startswith("was lost") else f"did not start: {why}"
        return kind(f"{server} {what}\n  log:     {server.log_path}", log_path=server.log_path)

    def why(self, reason: str) -> str:
        """Return why the server's actor is gone, to follow the server's name."""
        node = self.lost_node()
        if node is None and "node has died" in reason:
            node = self._first
        if node is not None:
            return self.with_node(node)
        return (
            f"was lost: the process that held it on {self._first} has ended: {reason} (Ray's own logs"
            " there may say more: /tmp/ray/session_latest/logs)"
        )

    def with_node(self, node: Node) -> str:
        """Return that the server was lost with its node, which is not used again."""
        self._placement.lost = True
        try:
            self._connection.nodes(_LOOK_LIMIT)
        except ClusterLost as lost:
            return f"was lost: {lost}"
        except NoAnswer:
            return f"was lost with its node {node}; the cluster's head node does not answer either"
        return f"was lost with its node {node}"

    def lost_node(self) -> Node | None:
        """Return the node of the server that is gone, if one is."""
        for node in self._placement.nodes:
            if node.has_no_ray():
                return node
        with contextlib.suppress(InferenceServerError):
            alive = {one.id for one in self._connection.nodes(_LOOK_LIMIT) if one.alive}
            return next((node for node in self._placement.nodes if node.id not in alive), None)
        return None
