"""What a node is told about the server that it is to run."""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_infserver.cluster.messages import Order
from pytest_infserver.cluster.placement.demand import Demand
from pytest_infserver.cluster.placement.placement import Placement
from pytest_infserver.cluster.runtime.backend_class import by_value
from pytest_infserver.launcher.address import configured_key
from pytest_infserver.reporting.terminal.server_table import as_user
from pytest_infserver.version import __version__

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer


def order_for(server: InferenceServer, placement: Placement) -> Order:
    """Return the order for the first node of a server."""
    node = placement.nodes[0]
    return Order(
        version=__version__,
        backend=server.settings.backend or server.backend_name,
        backend_class=by_value(type(server)),
        keywords=_keywords(server, placement.demand),
        node=str(node),
        address=node.address,
        port=server.allotment.port,
        user=as_user(os.getpid(), socket.gethostname()),
        secret=secrets.token_hex(),
    )


def _keywords(server: InferenceServer, demand: Demand) -> Mapping[str, Any]:
    values = server.settings.keywords()
    if demand.nodes > 1 and demand.gpus and not demand.workers:
        # On its node it has no more than its share.
        values["gpus"] = demand.gpus_each
    if server.settings.api_key_env is not None:
        # The node has another environment than pytest.
        del values["api_key_env"]
        values["api_key"] = configured_key(server.settings, server.env_vars)[0]
    profile = values.get("profile")
    if profile is not None:
        values["profile"] = dataclasses.asdict(profile)
    return values
