"""What a node has told of its server so far: its journal, its lines and its health checks, each noted here once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.cluster.messages import Have, News
from pytest_infserver.cluster.runtime.node_files import NodeFiles

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer


class Told:
    """Notes it with the server's handle.

    Attributes:
        have: How much has been told.
        clock: By how many seconds the node's clock is ahead.
        has_told_failure: Whether its journal says why it did not start.
    """

    def __init__(self, server: InferenceServer, files: NodeFiles, place: Callable[[int], int]) -> None:
        """Begin with nothing.

        Args:
            server: The handle.
            files: Knows the paths here and there.
            place: Returns where a byte of the log is in the copy here.
        """
        self.have = Have()
        self.clock = 0.0
        self.has_told_failure = False
        self._server = server
        self._files = files
        self._place = place

    def note_log(self, received: int) -> None:
        """Note how much of the log is here."""
        self.have = dataclasses.replace(self.have, log=received)

    def note(self, news: News) -> None:
        """Note what is new."""
        server = self._server
        events = news.events[self.have.events - news.have.events :]
        said = news.said[self.have.said - news.have.said :]
        samples = [sample for sample in news.samples if sample[0] > self.have.sample]
        for event in events:
            fields = dict(event.fields)
            if event.kind in ("starting", "ready", "profile"):
                # This side says them itself.
                continue
            if event.kind == "launched":
                fields.update(launch=server.launches, log_start=self._place(fields.get("log_start", 0)))
                server.give(port=fields.get("port", server.allotment.port))
            self.has_told_failure |= event.kind == "failed"
            fields = {key: self._files.shown(value) for key, value in fields.items()}
            server.journal.note(event.kind, event.time - self.clock, **fields)
        for is_warning, text in said:
            (server.warn if is_warning else server.on_progress)(self._files.shown(text))
        for at, seconds in samples:
            server.heartbeats.append((at - self.clock, seconds))
        self.have = dataclasses.replace(
            self.have,
            events=self.have.events + len(events),
            said=self.have.said + len(said),
            sample=samples[-1][0] if samples else self.have.sample,
        )
