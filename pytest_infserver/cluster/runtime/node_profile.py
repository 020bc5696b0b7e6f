"""The profiles that are made of a server on its node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.cluster.messages import Failure
from pytest_infserver.cluster.runtime.node_files import NodeFiles
from pytest_infserver.errors import ProfileError

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_SLACK = 60.0


class NodeProfile:
    """Begins and ends profiles on the node of a server, and has their files brought.

    Attributes:
        ended: The files of a profile that the server's end has ended, or why they are not there.
    """

    def __init__(self, server: InferenceServer, ask: Callable[..., Any], files: NodeFiles) -> None:
        """Prepare it; none runs.

        Args:
            server: The server.
            ask: Calls a method of its `ServerOnNode`: its name, the seconds that it may take, its arguments.
            files: Brings the files.
        """
        self.ended: list[Path] | ProfileError | None = None
        self._server = server
        self._ask = ask
        self._files = files
        self._is_running = False

    def start(self, name: str, tool: str | None) -> None:
        """Begin a profile."""
        failure: Failure | None = self._ask("start_profile", self._limit, name, tool)
        if failure is not None:
            raise failure.error(self._files.shown, self._server.log_path)
        self._is_running = True

    def stop(self) -> list[Path]:
        """End it, and return its files."""
        self._is_running = False
        answer: Failure | list[str] = self._ask("stop_profile", self._limit)
        brought = self._files.bring_profiles()
        if isinstance(answer, Failure):
            raise answer.error(self._files.shown, self._server.log_path)
        files = [brought[path] for path in answer if path in brought]
        self._server.runtime.profiling.asked_for += files
        return files

    def end(self) -> None:
        """End a profile that the end of the server has ended; `ClusterKeeper` gives it to whoever has begun it."""
        if self._is_running:
            try:
                self.ended = self.stop()
            except ProfileError as error:
                self.ended = error

    @property
    def _limit(self) -> float:
        profile = self._server.settings.profile
        return _SLACK + (1200.0 if profile is None else profile.flush_timeout)
