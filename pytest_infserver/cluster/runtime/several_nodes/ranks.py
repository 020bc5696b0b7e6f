"""Several nodes on which the same command runs, as with SGLang."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.messages import Failure, Order
from pytest_infserver.cluster.placement.placement import Placement
from pytest_infserver.cluster.runtime.actor import SLACK, Actor
from pytest_infserver.cluster.runtime.several_nodes.others import Others
from pytest_infserver.cluster.runtime.several_nodes.rank import Rank
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.share import Share

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_GRACE = 5.0
"""Seconds that parts get to tell of their end after the first one has told of its own."""
_VERDICT_LIMIT = 10.0
"""Seconds that a node which does not answer gets until it is called lost, after the first one has ended."""
_STEP = 0.25


class Ranks(Others):
    """The same command on each node."""

    def __init__(
        self,
        connection: ClusterConnection,
        server: InferenceServer,
        placement: Placement,
        on_end: Callable[[], object],
    ) -> None:
        """Prepare them; see `choice.others_of`."""
        self._server = server
        self._ranks = [
            Rank(Actor(connection, placement, rank), server, Share(rank, placement.demand.nodes), on_end)
            for rank in range(1, placement.demand.nodes)
        ]
        self._stopping: list[threading.Thread] = []

    def create(self, order: Order, name: str) -> None:
        """Have one actor created on each node."""
        for rank in self._ranks:
            rank.create(order, name)

    def join(self, head: Actor) -> Share:
        """Have them begin to look for the first one."""
        meeting: str | Failure = head.ask("meet", SLACK)
        if isinstance(meeting, Failure):
            raise meeting.error(lambda text: text, self._server.log_path)
        for rank in self._ranks:
            rank.begin(meeting)
        return Share(0, len(self._ranks) + 1, meeting)

    def why_ended(self, before: float | None = None) -> str | None:
        """Return how that one has ended that has ended first, or None."""
        deadline = time.monotonic() + _VERDICT_LIMIT
        while silent := [rank for rank in self._ranks if not rank.answers()]:
            if time.monotonic() > deadline:
                return f"{silent[0]} does not answer any more"
            time.sleep(_STEP)
        ends = [rank.end for rank in self._ranks if rank.end is not None]
        first = min(ends, key=lambda end: (not end.lost, end.time), default=None)
        if first is None or (before is not None and not first.lost and first.time > before):
            return None
        return first.text

    def how_died(self, how: str, at: float) -> str:
        """Return how a server has died: by the part that has ended first, if that can be told."""
        deadline = time.monotonic() + _GRACE
        # An engine takes its time to end after it has lost its worker: the order of the ends proves little.
        while not any(rank.told() for rank in self._ranks) and time.monotonic() < deadline:
            if not all(rank.answers() for rank in self._ranks):
                break
            time.sleep(_STEP)
        first = self.why_ended(at)
        if first is not None:
            return f"died: {first}"
        return "; ".join([how, *filter(None, (rank.told() for rank in self._ranks))])

    def explained(self, failure: Failure) -> Failure:
        """Return why the first node's part did not start, with the others' own reasons."""
        for rank in self._ranks:
            rank.answers()
        lines = [f"\n  {text}" for text in (rank.told() for rank in self._ranks) if text is not None]
        return dataclasses.replace(failure, text=failure.text + "".join(lines))

    def kill(self) -> None:
        """End them at once."""
        for rank in self._ranks:
            rank.kill()

    def begin_stop(self, limit: float) -> None:
        """Have them stop, all at the same time."""
        if not self._stopping:
            self._stopping = [threading.Thread(target=rank.stop, args=(limit,), daemon=True) for rank in self._ranks]
            for thread in self._stopping:
                thread.start()

    def await_stop(self) -> InferenceServerError | None:
        """Wait until they have stopped; return what is wrong with what they have left."""
        for thread in self._stopping:
            thread.join()
        failures = [failure for rank in self._ranks if (failure := rank.count_leftovers()) is not None]
        for failure in failures[1:]:
            self._server.warn(str(failure))
        return failures[0] if failures else None

    def close(self) -> None:
        """End their actors."""
        threads = [threading.Thread(target=rank.close, daemon=True) for rank in self._ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
