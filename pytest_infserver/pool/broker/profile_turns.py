"""Whose profile of a server is being made on another machine: one at a time, whichever worker asks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError, ProfileError
from pytest_infserver.pool.threads import spawn

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_TURN_LIMIT = 30.0
"""Seconds that a worker waits for the end of another one's profile; as on one machine."""


@dataclass(eq=False)
class _Turn:
    """One profile of one worker.

    Attributes:
        client: The worker.
        runs: Whether the profile has begun.
        ends: Whether somebody is ending it, or has to as soon as it has begun: nobody else may.
    """

    client: str
    runs: bool = False
    ends: bool = False


class ProfileTurns:
    """Lets workers profile servers in turn, and ends what one has left that is gone."""

    def __init__(self, failed: Callable[[BaseException], object]) -> None:
        """Begin without profiles.

        Args:
            failed: Gets what is raised where nobody waits for it.
        """
        self._failed = failed
        self._turns: dict[InferenceServer, _Turn] = {}
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
            if not self._changed.wait_for(lambda: self._is_free(client, server), _TURN_LIMIT):
                raise ProfileError(
                    f"{server}: a profile is being made by worker {self._turns[server].client}, and there is one at a"
                    " time; @pytest.mark.infserver(exclusive=True) gives a test its server alone"
                )
            has_one = server in self._turns
            turn = self._turns.setdefault(server, _Turn(client))
        try:
            server.start_profile(name, tool)
        except BaseException:
            if not has_one:
                self._forget(server, turn)
            raise
        with self._changed:
            turn.runs = True
            left = turn.ends
        if left:
            self._finish(server, turn)

    def end(self, client: str, server: InferenceServer) -> list[Path]:
        """End the profile that a worker has begun; return its files.

        Raises:
            ProfileError: There is none, or it is not complete.
        """
        with self._changed:
            turn = self._turns.get(server)
            if turn is None or turn.client != client or turn.ends or not turn.runs:
                raise ProfileError(f"{server}: no profile of this worker is running: begin one with start_profile()")
            turn.ends = True
        return self._finish(server, turn)

    def leave(self, client: str) -> None:
        """End what a worker has begun that is gone; may be called more than once."""
        with self._changed:
            left = [(one, turn) for one, turn in self._turns.items() if turn.client == client and not turn.ends]
            for _, turn in left:
                turn.ends = True
            # One that is about to begin is ended by who begins it.
            running = [(server, turn) for server, turn in left if turn.runs]
        for server, turn in running:
            self._finish_elsewhere(server, turn)

    def _is_free(self, client: str, server: InferenceServer) -> bool:
        turn = self._turns.get(server)
        return turn is None or (turn.client == client and not turn.ends)

    def _finish_elsewhere(self, server: InferenceServer, turn: _Turn) -> None:
        def finish() -> None:
            # Nobody wants it any more.
            with contextlib.suppress(InferenceServerError):
                self._finish(server, turn)

        try:
            spawn(finish, "profile", self._failed)
        except BaseException:
            self._forget(server, turn)
            raise

    def _finish(self, server: InferenceServer, turn: _Turn) -> list[Path]:
        try:
            return server.stop_profile()
        finally:
            self._forget(server, turn)

    def _forget(self, server: InferenceServer, turn: _Turn) -> None:
        with self._changed:
            if self._turns.get(server) is turn:
                del self._turns[server]
            self._changed.notify_all()
