"""The Ray actor that holds a server: what anybody on the cluster may ask of it, and what only its run may."""

from __future__ import annotations

import hmac
from typing import Any

from pytest_infserver.cluster.messages import Description, Order
from pytest_infserver.cluster.node.server_on_node import ServerOnNode
from pytest_infserver.errors import InferenceServerError


class NodeServer:
    """A server that somebody on another machine uses; whoever can join the cluster finds this actor by its name."""

    def __init__(self, order: bytes) -> None:
        """Make the server; nothing is started.

        Args:
            order: An `Order` as JSON.
        """
        self._secret = Order.secret_of(order)
        self._server = ServerOnNode(order)

    def ask(self, secret: str, method: str, *arguments: Any) -> Any:
        """Call a method of `ServerOnNode`, for the run that the server belongs to.

        Args:
            secret: That of the order.
            method: Its name.
            *arguments: Its arguments.

        Raises:
            InferenceServerError: Somebody else asks.
        """
        if not hmac.compare_digest(secret.encode(), self._secret.encode()) or method.startswith("_"):
            raise InferenceServerError("this server belongs to another run")
        return getattr(self._server, method)(*arguments)

    def describe(self) -> Description | None:
        """Return what ``infserver ps`` shows; None when there is nothing to show any more."""
        return self._server.describe()

    def stop_for(self, who: str) -> bool:
        """Stop the server for somebody else than its user; return whether it is gone."""
        return self._server.stop_for(who)
