"""Whose profile of a server is being made on another machine: one at a time, whichever worker asks."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError, ProfileError

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_TURN_LIMIT = 30.0
"""Seconds that a worker waits for the end of another one's profile; as on one machine."""


class ProfileTurns:
    """Lets workers profile servers in turn, and ends what one has left that is gone."""

    def __init__(self) -> None:
        self._users: dict[InferenceServer, str] = {}
        self._changed = threading.Condition()

    def begin(self, client: str, server: InferenceServer, name: str, tool: str | None) -> None:
        """Begin a profile when nobody else makes one.

        Args:
            client: The worker.
            server: The server.
            name: What the trace is called.
            tool: The profiler; None for the configured one.

        Raises:
            ProfileError: It cannot be done, or somebody else's takes too long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._users.get(server, client) == client, _TURN_LIMIT):
                raise ProfileError(
                    f"{server}: a profile is being made by worker {self._users[server]}, and there is one at a time;"
                    " @pytest.mark.infserver(exclusive=True) gives a test its server alone"
                )
            has_one = server in self._users
            self._users[server] = client
        try:
            server.start_profile(name, tool)
        except BaseException:
            if not has_one:
                self._forget(server)
            raise

    def end(self, client: str, server: InferenceServer) -> list[Path]:
        """End the profile that a worker has begun; return its files.

        Raises:
            ProfileError: There is none, or it is not complete.
        """
        if self._users.get(server, client) != client:
            raise ProfileError(f"{server}: no profile of this worker is running: begin one with start_profile()")
        try:
            return server.stop_profile()
        finally:
            if self._users.get(server) == client:
                self._forget(server)

    def leave(self, client: str) -> None:
        """End what a worker has begun that is gone."""
        for server in [server for server, user in list(self._users.items()) if user == client]:
            threading.Thread(
                target=self._end_left, args=(client, server), name="infserver-profile", daemon=True
            ).start()

    def _end_left(self, client: str, server: InferenceServer) -> None:
        with contextlib.suppress(InferenceServerError):
            self.end(client, server)

    def _forget(self, server: InferenceServer) -> None:
        with self._changed:
            self._users.pop(server, None)
            self._changed.notify_all()
