"""Several nodes on which the engine starts its own workers by Ray, as vLLM does."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.cluster.messages import Failure, Order
from pytest_infserver.cluster.placement.placement import Placement
from pytest_infserver.cluster.runtime.actor import Actor
from pytest_infserver.cluster.runtime.several_nodes.others import Others
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.share import Share

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_POLL = 2.0
_STEP = 0.25
_FREE_LIMIT = 15.0
"""Seconds that Ray gets to end the workers of an engine that is gone."""


class Workers(Others):
    """Nodes on which the engine has its own workers, actors of its own in the group that it was given."""

    def __init__(self, server: InferenceServer, placement: Placement, on_end: Callable[[], object]) -> None:
        """Prepare to look after them; see `choice.others_of`."""
        self._server = server
        self._placement = placement
        self._on_end = on_end
        self._over = threading.Event()
        self._lost: str | None = None

    def create(self, order: Order, name: str) -> None:
        """Do nothing: the engine does that."""

    def join(self, head: Actor) -> Share:
        """Watch the nodes from now on."""
        threading.Thread(target=self._watch, name=f"infserver-{self._server.name}-nodes", daemon=True).start()
        return Share(0, self._placement.demand.nodes)

    def why_ended(self, before: float | None = None) -> str | None:
        """Return which node is lost, if one is; a worker's end is told by the engine's log."""
        if self._lost is None:
            with contextlib.suppress(InferenceServerError):
                node = self._placement.lost_node()
                if node is not None:
                    rank = self._placement.nodes.index(node)
                    share = Share(rank, self._placement.demand.nodes)
                    self._lost = f"its node {node} ({share}) was lost, and the workers there with it"
        return self._lost

    def how_died(self, how: str, at: float) -> str:
        """Return how it has died: with its node, if that is lost."""
        lost = self.why_ended(at)
        return how if lost is None else f"died: {lost}"

    def explained(self, failure: Failure) -> Failure:
        """Return why it did not start, with the node that is lost."""
        lost = self.why_ended()
        return failure if lost is None else dataclasses.replace(failure, text=f"{failure.text}\n  {lost}")

    def kill(self) -> None:
        """Do nothing: Ray ends the workers of an engine that ends."""

    def begin_stop(self, limit: float) -> None:
        """Do nothing: the engine ends its workers, or Ray does it then."""
        self._over.set()

    def await_stop(self) -> InferenceServerError | None:
        """Wait until none of its GPUs is in use."""
        deadline = time.monotonic() + _FREE_LIMIT
        used = 0.0
        with contextlib.suppress(InferenceServerError):
            while (used := self._placement.gpus_in_use()) > 0 and time.monotonic() < deadline:
                if self._placement.lost_node() is not None:
                    # What is gone is not told of as free.
                    return None
                time.sleep(_STEP)
        if used > 0:
            self._server.warn(
                f"{self._server}: {_FREE_LIMIT:g} s after its end Ray's workers still have {used:g} of its GPUs; their"
                " placement group is removed, with which Ray kills them"
            )
            self._placement.give_back()
        return None

    def close(self) -> None:
        """Watch no more."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            if self.why_ended() is not None:
                self._on_end()
                return
