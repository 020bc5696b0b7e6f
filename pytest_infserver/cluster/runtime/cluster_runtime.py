"""ClusterRuntime: a server that this process has run on some node of a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.cluster.connection.errors import ActorLost, ClusterLost, NoAnswer
from pytest_infserver.cluster.runtime.life import Life
from pytest_infserver.cluster.runtime.loss import NodeLost
from pytest_infserver.cluster.runtime.placements import Placements
from pytest_infserver.errors import InferenceServerError, ProfileError, ServerStartupError
from pytest_infserver.launcher.runtime.own import OwnRuntime
from pytest_infserver.launcher.state import ServerState

if TYPE_CHECKING:
    from pytest_infserver.launcher.runtime.runtime import Runtime
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer

_ASK_LIMIT = 30.0
_LOOK_LIMIT = 2.0
_MAX_NODES = 3
"""How often a server is started because its nodes, or its actors, are lost before it is ready, or launched."""


class ClusterRuntime(OwnRuntime):
    """Starts and stops a server on the cluster, one life after another."""

    server: InferenceServer

    def __init__(self, before: Runtime, placements: Placements) -> None:
        """Begin; nothing is started.

        Args:
            before: What the server had so far.
            placements: Gives it its place.
        """
        super().__init__(before.server, before)
        self._placements = placements
        self._starting: Life | None = None
        self._life: Life | None = None
        self._has_told_failure = False
        self._ended_profile: list[Path] | ProfileError | None = None

    runs_elsewhere = True

    # Its start.

    def _end_last(self) -> None:
        self._has_told_failure = False
        life, self._life = self._life, None
        if life is not None:
            try:
                life.end()
            except InferenceServerError as problem:
                # It has died: it had no chance to clean up.
                self.server.warn(str(problem))
            self._keep_profile(life)
            # One that has died stays dead without its process.
            self.change(process=None, state=self.state)

    def _launch(self) -> None:
        server = self.server
        # If it does not come to a launch there is nothing to show.
        self.change(launch_log_start=self.log_size)
        server.leak_report = None
        for left in reversed(range(_MAX_NODES)):
            placement = self._placements.place(server)
            life = self._starting = Life(placement.connection, server, placement, self._placements.new_name())
            try:
                life.begin()
                life.await_ready()
                return
            except NodeLost as lost:
                if not left:
                    raise
                life.abandon()
                self._starting = None
                head = str(lost).partition("\n")[0]
                where = " elsewhere" if placement.lost else ""
                server.warn(f"{head}; it is started again{where}")

    def _become_ready(self) -> None:
        self._life, self._starting = self._starting, None

    def _undo(self, error: BaseException) -> None:
        life = self._starting or self._life
        self._starting = self._life = None
        if life is not None:
            life.abandon()
            self._has_told_failure = life.has_told_failure
        if isinstance(error, NoAnswer):
            self._placements.note_lost(self.server)

    def _failure_fields(self) -> dict[str, Any] | None:
        return None if self._has_told_failure else {}

    def _after_failure(self, error: BaseException) -> None:
        if isinstance(error, (ClusterLost, NoAnswer)) or type(error) is InferenceServerError:
            raise ServerStartupError(f"{self.server} cannot start: {error}") from None

    # Its end.

    def stop(self) -> None:
        """Stop the server, and look at what it has left on its node."""
        with self.lifecycle:
            life, self._life = self._life, None
            if life is None:
                if self.status.state is not ServerState.NEW:
                    self.change(state=ServerState.STOPPED)
                return
            self.change(state=ServerState.STOPPING)
            try:
                life.end()
            finally:
                self._keep_profile(life)
                self.change(process=None, state=ServerState.STOPPED)

    def kill(self) -> None:
        """End the server at once."""
        self.cancel_start()
        life = self._life
        if life is not None:
            life.ask("kill", _ASK_LIMIT)
            # Its end is heard as any other, with how and why.
            self.server.wait_death(_ASK_LIMIT)

    # How it is.

    def look(self) -> View:
        """Return how the server is now; its log is here as far as it goes."""
        life = self._life
        if life is not None:
            with contextlib.suppress(InferenceServerError):
                life.catch_up(_LOOK_LIMIT)
        return self.view()

    def view(self) -> View:
        """Return how the server is, with the heartbeat that its node has told of last, and when that was."""
        view, life = super().view(), self._life
        return view if life is None else dataclasses.replace(view, pulse=life.pulse, silent=life.silent)

    def log_size_now(self) -> int:
        """Return the size of the log, with what is still on its node only."""
        life = self._life
        size = None if life is None else life.log_size()
        return self.log_size if size is None else size

    def pause_heartbeat(self) -> None:
        """Keep the server from being taken for hung."""
        self._tell("pause")

    def resume_heartbeat(self) -> None:
        """Undo one `pause_heartbeat`."""
        self._tell("resume")

    def _keep_profile(self, life: Life) -> None:
        if life.profile.ended is not None:
            self._ended_profile = life.profile.ended

    def _tell(self, verb: str) -> None:
        life = self._life
        if life is not None:
            with contextlib.suppress(InferenceServerError):
                life.ask(verb, _ASK_LIMIT)

    # Its profiles.

    def start_profile(self, name: str, tool: str | None) -> None:
        """Begin a profile on the server's node."""
        self._ended_profile = None
        life = self._life
        if life is None or self.state is not ServerState.READY:
            raise ProfileError(f"{self.server}: the server does not run: its state is {self.state}")
        life.profile.start(name, tool)

    def stop_profile(self) -> list[Path]:
        """End it, and bring its files."""
        ended, self._ended_profile = self._ended_profile, None
        if isinstance(ended, ProfileError):
            raise ended
        if ended is not None:
            return ended
        life = self._life
        if life is None:
            raise ProfileError(f"{self.server}: no profile is running: begin one with start_profile()")
        try:
            return life.profile.stop()
        except (ActorLost, ClusterLost) as lost:
            raise ProfileError(f"{self.server}: its profile is lost with its node: {lost}") from None
