"""Runs the servers of one pytest process on the cluster, each handle's lives one after another."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pytest_infserver.cluster.connection import ActorLost, ClusterConnection, ClusterLost, NoAnswer, Unreachable
from pytest_infserver.cluster.demand import Demand, nodes_in_words
from pytest_infserver.cluster.life import Life, NodeLost
from pytest_infserver.cluster.packing import fits
from pytest_infserver.cluster.placement import Placement
from pytest_infserver.errors import InferenceServerError, ProfileError, ServerStartupError
from pytest_infserver.launcher import messages
from pytest_infserver.launcher.follower import Keeper, View
from pytest_infserver.launcher.server import _StartToken
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.cluster.connection import Node
    from pytest_infserver.launcher.server import InferenceServer

_ASK_LIMIT = 30.0
_STEP = 0.25
_LOOK_LIMIT = 2.0
_COUNT_INTERVAL = 2.0
_MAKE_ROOM_INTERVAL = 1.0
_TOO_SMALL_LIMIT = 10.0
"""Seconds that a cluster which has become too small for a server gets to grow again."""
_MAX_NODES = 3
"""How often a server is started because its nodes, or its actors, are lost before it is ready, or launched."""


MakeRoom: TypeAlias = Callable[[Sequence[Demand]], object]


class ClusterKeeper(Keeper):
    """Starts and stops servers on the cluster.

    A server keeps its place until `give_back`, so that it comes back where it was; a transient one until its stop.
    """

    def __init__(
        self, connection: Callable[[], ClusterConnection], demand: Callable[[InferenceServer], Demand]
    ) -> None:
        """Begin with no server.

        Args:
            connection: Returns the connection to the cluster, a new one when the last one is lost.
            demand: Returns what a server needs.
        """
        self._transient: dict[InferenceServer, MakeRoom] = {}
        self._connection = connection
        self._demand = demand
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._lives: dict[InferenceServer, Life] = {}
        self._ended_profiles: dict[InferenceServer, list[Path] | ProfileError] = {}
        self._placements: dict[InferenceServer, Placement] = {}

    def adopt(self, server: InferenceServer) -> None:
        """Have a server run on the cluster from its next start on."""
        server._keeper = self

    def adopt_transient(self, server: InferenceServer, make_room: MakeRoom) -> None:
        """Have one run there for which nobody plans.

        Args:
            server: The server.
            make_room: Called with what such servers need, now and then while this one waits for its place.
        """
        self.adopt(server)
        self._transient[server] = make_room

    # Keeper.

    def start(self, server: InferenceServer) -> None:
        """Start a server on some node."""
        with server._lifecycle:
            if server.state is ServerState.READY:
                return
            server._start_token = _StartToken()
            begin = server._start_began = time.monotonic()
            server.phase = asked(server).first_phase
            life: Life | None = None
            try:
                self._end_last_life(server)
                server._owner = os.getpid()
                server._state = ServerState.STARTING
                server._forget_commands()
                # If it does not come to a launch there is nothing to show.
                server.launch_log_start = server.log_size
                server._why_killed = server._last_exit = None
                server.leak_report = None
                server.journal.note("starting")
                for left in reversed(range(_MAX_NODES)):
                    placement = self._placed(server)
                    life = Life(placement.connection, server, placement, f"{self._run}:{next(self._numbers)}")
                    try:
                        life.begin()
                        life.await_ready()
                    except NodeLost as lost:
                        if not left:
                            raise
                        life.abandon()
                        life = None
                        head = str(lost).partition("\n")[0]
                        where = " elsewhere" if placement.lost else ""
                        server.warn(f"{head}; it is started again{where}")
                    else:
                        break
                assert life is not None
                self._lives[server] = life
                server.start_seconds = time.monotonic() - begin
                server.journal.note("ready", seconds=round(server.start_seconds, 3), pid=life.view.pid)
                server._end_waiting()
            except BaseException as error:
                server._state = ServerState.FAILED
                messages.hide_secrets(error, server.secrets)
                if life is not None:
                    life.abandon()
                if isinstance(error, NoAnswer) and server in self._placements:
                    # Nobody knows what has become of what was asked for there.
                    self._placements[server].lost = True
                if life is None or not life.has_told_failure:
                    reason = str(error).removeprefix(f"{server} ") or type(error).__name__
                    server.journal.note("failed", error=reason)
                self._give_back_if_transient(server)
                server._end_waiting()
                if isinstance(error, (ClusterLost, NoAnswer)) or type(error) is InferenceServerError:
                    raise ServerStartupError(f"{server} cannot start: {error}") from None
                raise

    def stop(self, server: InferenceServer) -> None:
        """Stop a server, and look at what it has left on its node."""
        with server._lifecycle:
            life = self._lives.pop(server, None)
            if life is None:
                if server.state is not ServerState.NEW:
                    server._state = ServerState.STOPPED
                self._give_back_if_transient(server)
                return
            server._state = ServerState.STOPPING
            try:
                life.end()
            finally:
                self._keep_profile(server, life)
                server._process = None
                server._state = ServerState.STOPPED
                self._give_back_if_transient(server)

    def kill(self, server: InferenceServer) -> None:
        """End a server at once."""
        server.cancel_start()
        life = self._lives.get(server)
        if life is not None:
            life.ask("kill", _ASK_LIMIT)
            # Its end is heard as any other, with how and why.
            server.wait_death(_ASK_LIMIT)

    def look(self, server: InferenceServer) -> View:
        """Return how a server is now; its log is here as far as it goes."""
        life = self._lives.get(server)
        if life is not None:
            with contextlib.suppress(InferenceServerError):
                life.catch_up(_LOOK_LIMIT)
        return server.view()

    def seen(self, server: InferenceServer, view: View) -> View:
        """Return a view with the heartbeat that the server's node has told of last, and when that was."""
        life = self._lives.get(server)
        return view if life is None else dataclasses.replace(view, pulse=life.pulse, silent=life.silent)

    def log_size(self, server: InferenceServer) -> int | None:
        """Return the size of a server's log, with what is still on its node only."""
        life = self._lives.get(server)
        return None if life is None else life.log_size()

    def pause(self, server: InferenceServer) -> None:
        """Keep a server from being taken for hung."""
        self._tell(server, "pause")

    def resume(self, server: InferenceServer) -> None:
        """Undo one `pause`."""
        self._tell(server, "resume")

    def start_profile(self, server: InferenceServer, name: str, tool: str | None) -> None:
        """Begin a profile on the server's node."""
        self._ended_profiles.pop(server, None)
        self._running(server).start_profile(name, tool)

    def stop_profile(self, server: InferenceServer) -> list[Path]:
        """End it, and bring its files."""
        ended = self._ended_profiles.pop(server, None)
        if isinstance(ended, ProfileError):
            raise ended
        if ended is not None:
            return ended
        life = self._lives.get(server)
        if life is None:
            raise ProfileError(f"{server}: no profile is running: begin one with start_profile()")
        try:
            return life.stop_profile()
        except (ActorLost, ClusterLost) as lost:
            raise ProfileError(f"{server}: its profile is lost with its node: {lost}") from None

    # The end.

    def give_back(self, server: InferenceServer) -> None:
        """Give back the place of a server that has been stopped."""
        placement = self._placements.pop(server, None)
        if placement is not None:
            placement.give_back()

    # The inside.

    def _running(self, server: InferenceServer) -> Life:
        life = self._lives.get(server)
        if life is None or server.state is not ServerState.READY:
            raise ProfileError(f"{server}: the server does not run: its state is {server.state}")
        return life

    def _tell(self, server: InferenceServer, verb: str) -> None:
        life = self._lives.get(server)
        if life is not None:
            with contextlib.suppress(InferenceServerError):
                life.ask(verb, _ASK_LIMIT)

    def _end_last_life(self, server: InferenceServer) -> None:
        life = self._lives.pop(server, None)
        if life is not None:
            try:
                life.end()
            except InferenceServerError as problem:
                # It has died: it had no chance to clean up.
                server.warn(str(problem))
            self._keep_profile(server, life)
            server._process = None

    def _keep_profile(self, server: InferenceServer, life: Life) -> None:
        if life.ended_profile is not None:
            self._ended_profiles[server] = life.ended_profile

    def _placed(self, server: InferenceServer) -> Placement:
        """Return the server's place, and wait for one if it has none."""
        before = self._placements.get(server)
        if before is not None:
            if before.is_there():
                return before
            # Its node is gone.
            self.give_back(server)
        try:
            return self._new_place(server)
        except ClusterLost:
            # That was not known before: a head node that was restarted is another cluster.
            return self._new_place(server)

    def _new_place(self, server: InferenceServer) -> Placement:
        try:
            connection, demand = self._connection(), self._demand(server)
        except Unreachable as error:
            raise ServerStartupError(f"{server} cannot start: {error}") from None
        placement = Placement(connection, demand, f"infserver:{self._run}:{next(self._numbers)}")
        self._placements[server] = placement
        try:
            self._await(server, placement)
        except BaseException:
            self.give_back(server)
            raise
        return placement

    def _await(self, server: InferenceServer, placement: Placement) -> None:
        begin = time.monotonic()
        limit = server.settings.startup_timeout
        demand = placement.demand
        fitted_at = counted_at = room_made_at = begin
        placement.ask()
        while not self._has_come(placement):
            server._raise_if_cancelled()
            now = time.monotonic()
            nodes = None
            if now - counted_at > _COUNT_INTERVAL:
                counted_at = now
                nodes = _living(placement.connection)
                if nodes is None or fits([demand.bundles], [node.total for node in nodes]):
                    fitted_at = now
            if nodes is not None and now - fitted_at > _TOO_SMALL_LIMIT:
                raise ServerStartupError(
                    f"{server} cannot start: it needs {demand}, and the cluster has {nodes_in_words(nodes)} now"
                )
            if now - begin > limit:
                nodes = _living(placement.connection)
                free = "its head node does not answer" if nodes is None else nodes_in_words(nodes, free=True)
                raise ServerStartupError(
                    f"{server} cannot start: the cluster had no room for it within startup_timeout {limit:g} s: it"
                    f" needs {demand}; free now: {free}\n  What to do: wait for whoever has the rest, or raise"
                    " startup_timeout (--infserver-startup-timeout)."
                )
            if now - begin > _STEP:
                server._note_phase(f"waiting for the cluster (needs {demand})")
            if server in self._transient and now - room_made_at > _MAKE_ROOM_INTERVAL:
                room_made_at = now
                placements = [self._placements[one] for one in self._transient if one in self._placements]
                self._transient[server]([one.demand for one in placements])

    @staticmethod
    def _has_come(placement: Placement) -> bool:
        try:
            return placement.wait(_STEP)
        except NoAnswer:
            # A head node that is away comes back, or the connection is lost.
            return False

    def _give_back_if_transient(self, server: InferenceServer) -> None:
        if server in self._transient:
            self.give_back(server)


def _living(connection: ClusterConnection) -> list[Node] | None:
    """Return the nodes that live, or None if nobody says."""
    try:
        return [node for node in connection.nodes(_LOOK_LIMIT) if node.alive]
    except NoAnswer:
        return None
