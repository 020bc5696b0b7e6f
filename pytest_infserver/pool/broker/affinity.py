"""How tests are given to xdist's workers: those of one server together, and those without one while it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from xdist.scheduler import LoadScheduling

from pytest_infserver.pool.collection.order import Group, Order

if TYPE_CHECKING:
    import pytest
    from xdist.workermanage import WorkerController

SHORT, TINY = 0.1, 0.01
"""Seconds under which a test counts as short, or as tiny: the next ones must lie ready."""
AHEAD, AHEAD_SHORT, AHEAD_TINY = 2, 4, 200
"""How many tests a worker has: it needs the next one to begin one, and short ones are gone before more can come. Many
tiny ones it gets only of those without a server."""
_STRETCH = 0.25
"""Seconds that these may take: they must not keep it long from a server that is ready meanwhile."""


class ServerAffinity(LoadScheduling):
    """xdist's load scheduling with another order: few tests at a time, chosen by the servers that run now."""

    def __init__(
        self,
        config: pytest.Config,
        log: Any,
        servers_of: Callable[[str], Sequence[str]],
        is_ready: Callable[[str], bool],
        in_order: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make a scheduler.

        Args:
            config: pytest's configuration.
            log: xdist's own log.
            servers_of: Returns the servers that a test (node id) needs.
            is_ready: Returns whether a server runs now.
            in_order: Tells, once all tests are known, whether they are given out in the order in which they stand.
        """
        super().__init__(config, log)
        self._in_order = in_order
        self._servers_of = servers_of
        self._is_ready = is_ready
        self.collection: list[str] | None = None
        self._last: dict[WorkerController, Group] = {}
        self._order: Order[int] = Order((), self._needs)

    def schedule(self) -> None:
        """Give the workers their first tests, and to one that has come later its own."""
        if self.collection is None:
            if not self._check_nodes_have_same_collection():
                return
            self.collection = next(iter(self.node2collection.values()))
            self.pending[:] = range(len(self.collection))
            if not self.pending:
                return
        # In turn: with few tests none is left without work.
        for _ in range(AHEAD):
            for node in self.nodes:
                if len(self.node2pending[node]) < AHEAD and not node.shutting_down:
                    self._send_tests(node, 1)
        for node in self.nodes:
            self.check_schedule(node)

    def check_schedule(self, node: WorkerController, duration: float = 0) -> None:
        """Give a worker what it needs to go on."""
        if node.shutting_down:
            return
        ahead = AHEAD_SHORT if 0 < duration < SHORT else AHEAD
        # Not more than its share: the last tests are for all workers.
        share = len(self.pending) // max(1, len(self.nodes))
        ahead = max(AHEAD, min(ahead, share))
        self._send_tests(node, ahead - len(self.node2pending[node]))
        has = len(self.node2pending[node])
        many = min(AHEAD_TINY, int(_STRETCH / duration)) if 0 < duration < TINY else 0
        if has <= many // 2:
            self._send_tests(node, min(many, share) - has, plain=True)
        if not self.pending:
            node.shutdown()

    def _send_tests(self, node: WorkerController, num: int, *, plain: bool = False) -> None:
        """Give a worker so many tests, or so many without a server as would come next."""
        chosen: list[int] = []
        while len(chosen) < num and self.pending:
            index = self._take(node, plain)
            if index is None:
                break
            chosen.append(index)
        if chosen:
            self.node2pending[node] += chosen
            node.send_runtest_some(chosen)

    def _take(self, node: WorkerController, plain: bool) -> int | None:
        if self._in_order():
            index = None if plain and self._needs(self.pending[0]) else self.pending[0]
        else:
            if len(self._order) != len(self.pending):
                # At the beginning, and when a worker has crashed and its tests have come back.
                self._order = Order(self.pending, self._needs)
            others = [self._last.get(other, ()) for other in self.nodes if other is not node]
            last = self._last.get(node, ())
            if plain and self._order.next_group(last, self._is_ready, others):
                return None
            index, self._last[node] = self._order.pop(last, self._is_ready, others)
        if index is not None:
            self.pending.remove(index)
        return index

    def _needs(self, index: int) -> Group:
        assert self.collection is not None
        return tuple(self._servers_of(self.collection[index]))
