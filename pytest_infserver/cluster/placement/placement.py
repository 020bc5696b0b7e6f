"""The place of one server on the cluster: a placement group, kept through restarts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.connection.errors import ClusterLost, NoAnswer
from pytest_infserver.cluster.connection.nodes import Node
from pytest_infserver.cluster.placement.demand import Demand
from pytest_infserver.errors import InferenceServerError

_ASK_LIMIT = 30.0
_REACH_LIMIT = 30.0
_PIN_LIMIT = 5.0
"""Seconds in which a group on given nodes must be there: its room has just been free."""

_ALL_VISIBLE = {f"RAY_EXPERIMENTAL_NOSET_{name}_VISIBLE_DEVICES": "1" for name in ("CUDA", "HIP", "ROCR")}
"""With these Ray does not hide the GPUs from an actor that has none of its own: an engine looks at what kind they are
before its workers start, which are told which ones are theirs (vLLM 0.32 sets them for the workers, too)."""


class Placement:
    """Room on one node, or on several.

    Ray promises of STRICT_SPREAD that each bundle is on a node of its own, and of STRICT_PACK that all are on one.
    It has no promise for some bundles on each of some nodes, as the workers of a server on several nodes need them:
    PACK takes fewer nodes where it can, SPREAD more. So the nodes are found by a group with one bundle for each,
    which is given up for one whose bundles name these nodes.

    Attributes:
        ticket: What it is called.
        demand: How much.
        nodes: The nodes, once it is there; the first one is that of rank 0.
        connection: The cluster.
        lost: Whether one of them is known to be gone; Ray's head may not have noticed.
    """

    def __init__(self, connection: ClusterConnection, demand: Demand, ticket: str) -> None:
        """Prepare it; `ask` asks for it."""
        self.ticket = ticket
        self.demand = demand
        self.nodes: list[Node] = []
        self.lost = False
        self.connection = connection
        self._seats = f"{ticket}:seats" if demand.workers and demand.gpus_each > 1 else None
        self._pinned_at: float | None = None

    def ask(self) -> None:
        """Ask for it."""
        strategy = "STRICT_PACK" if self.demand.nodes == 1 else "STRICT_SPREAD"
        self._reserve(self._seats or self.ticket, self.demand.bundles, strategy)

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; return whether it is there."""
        if self._seats is not None and self._pinned_at is None:
            seats = self._reserved(self._seats, timeout)
            if seats is None:
                return False
            self._pin(self._seats, seats)
        found = self._reserved(self.ticket, timeout)
        if found is None:
            if self._pinned_at is not None and time.monotonic() - self._pinned_at > _PIN_LIMIT:
                # Somebody was faster.
                self.connection.ask("give_back", _ASK_LIMIT, ticket=self.ticket)
                self._pinned_at = None
                self.ask()
            return False
        self._check(found)
        self.nodes = list({node.id: node for node in found}.values())
        return True

    def is_there(self) -> bool:
        """Return whether all of its nodes still live."""
        if self.lost or self.connection.is_lost:
            return False
        try:
            return bool(self.nodes) and self.lost_node() is None
        except ClusterLost:
            return False

    def lost_node(self) -> Node | None:
        """Return one of its nodes that does not live any more, or None."""
        lost = self.connection.ask("unreachable", _REACH_LIMIT, ids=[node.id for node in self.nodes])
        return next((node for node in self.nodes if node.id in lost), None)

    def create(self, rank: int, order: bytes, name: str) -> None:
        """Have an actor created on one of its nodes.

        Args:
            rank: Which one.
            order: An `Order` as JSON.
            name: What it is called.
        """
        demand = self.demand
        self.connection.ask(
            "create",
            _ASK_LIMIT,
            ticket=self.ticket,
            rank=rank,
            order=order,
            cpus=demand.cpus,
            # A worker gets the GPU of its bundle only if nobody has it.
            gpus=0 if demand.workers else demand.gpus_each,
            resources={key: amount for key, amount in demand.resources.items() if amount},
            name=name,
            variables=_ALL_VISIBLE if demand.workers else {},
        )

    def gpus_in_use(self) -> float:
        """Return how many of its GPUs somebody uses."""
        used: float = self.connection.ask("gpus_in_use", _ASK_LIMIT, ticket=self.ticket)
        return used

    def give_back(self) -> None:
        """Let others have it: whoever still runs there is ended by Ray.

        Nobody waits until that is done, as the pool does this under its lock.
        """
        self.nodes = []
        for ticket in filter(None, (self._seats, self.ticket)):
            with contextlib.suppress(InferenceServerError):
                self.connection.ask("give_back", 0.0, ticket=ticket)

    def _reserve(self, ticket: str, bundles: Sequence[Mapping[str, float]], strategy: str) -> None:
        self.connection.ask("reserve", _ASK_LIMIT, ticket=ticket, bundles=bundles, strategy=strategy)

    def _reserved(self, ticket: str, timeout: float) -> list[Node] | None:
        """Return the node of each bundle, or None."""
        ids = self.connection.ask("reserved", timeout + _ASK_LIMIT, ticket=ticket, timeout=timeout)
        if ids is None:
            return None
        nodes = {node.id: node for node in self.connection.nodes() if node.alive}
        # Ray is about to move what is on a node that was lost.
        return [nodes[one] for one in ids] if all(one in nodes for one in ids) else None

    def _pin(self, seats: str, nodes: Sequence[Node]) -> None:
        """Exchange the seats for bundles on the same nodes."""
        bundles = [
            # Each node has 1 of what is called after its address.
            {**bundle, f"node:{node.address}": 0.001}
            for node, part in zip(nodes, self.demand.parts, strict=True)
            for bundle in part
        ]
        self._pinned_at = time.monotonic()
        # A head that is away does it later, in this order.
        for ask in (
            lambda: self.connection.ask("give_back", _ASK_LIMIT, ticket=seats),
            lambda: self._reserve(self.ticket, bundles, "PACK"),
        ):
            with contextlib.suppress(NoAnswer):
                ask()

    def _check(self, found: Sequence[Node]) -> None:
        demand, names = self.demand, [str(node) for node in found]
        counts = {name: names.count(name) for name in names}
        if len(counts) != demand.nodes or len(set(counts.values())) != 1:
            shown = ", ".join(f"{count} on {name}" for name, count in counts.items())
            self.give_back()
            raise InferenceServerError(f"it needs {demand}, and the cluster has given it {len(found)} bundles: {shown}")
