"""Which way a server runs on several nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.placement.placement import Placement
from pytest_infserver.cluster.runtime.several_nodes.others import Others
from pytest_infserver.cluster.runtime.several_nodes.ranks import Ranks
from pytest_infserver.cluster.runtime.several_nodes.workers import Workers

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer


def others_of(
    connection: ClusterConnection, server: InferenceServer, placement: Placement, on_end: Callable[[], object]
) -> Others | None:
    """Return the further nodes of a server, or None if it runs on one.

    Args:
        connection: The cluster.
        server: The server.
        placement: Where it runs.
        on_end: Called, in a thread of its own, when a part on one of them has ended.
    """
    if placement.demand.nodes == 1:
        return None
    if placement.demand.workers:
        return Workers(server, placement, on_end)
    return Ranks(connection, server, placement, on_end)
