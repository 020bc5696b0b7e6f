"""The servers of all runs on a Ray cluster, for ``infserver ps`` and ``infserver stop``."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.connection.errors import ActorLost, NoAnswer
from pytest_infserver.cluster.messages import Description
from pytest_infserver.errors import ConfigError, InferenceServerError

PREFIX = "infserver:"
"""How the names of all of our actors begin."""
_ASK_LIMIT = 10.0
_DESCRIBE_LIMIT = 5.0
"""Seconds in which an actor must have answered; one that is just being made needs some."""
_STOP_SLACK = 30.0
_KILL_LIMIT = 20.0


@dataclass(frozen=True)
class ClusterServer:
    """A server on a cluster.

    Attributes:
        actor: Name of its actor.
        node: The node, by name and address.
        actor_pid: The actor's process there, or 0.
        description: What it says of itself; None if it does not answer.
    """

    actor: str
    node: str
    actor_pid: int
    description: Description | None
    connection: ClusterConnection = field(repr=False)

    @property
    def name(self) -> str:
        """The server's name."""
        # infserver:RUN:NUMBER:NAME
        return self.actor.split(":", 3)[-1] if self.description is None else self.description.name

    @property
    def label(self) -> str:
        """Which one it is."""
        if self.description is None:
            return self._place
        return f"on {self.node}, {self.description.url}"

    def end(self) -> tuple[bool, str]:
        """Stop it, also if somebody uses it; return whether that went well, and how, in words.

        An actor that does not answer is killed, and its supervisor stops the server.
        """
        who = f"`infserver stop` (pid {os.getpid()} on {socket.gethostname()})"
        begin = time.monotonic()
        if self.description is not None:
            try:
                gone = self._call("stop_for", self.description.stop_timeout + _STOP_SLACK, who)
            except ActorLost:
                # It has ended by itself meanwhile.
                gone = True
            except NoAnswer:
                return self._kill()
            seconds = time.monotonic() - begin
            if gone:
                return True, f"stopped in {seconds:.1f} s"
            return False, f"has not ended after {seconds:.0f} s; 'kill -9' of its actor ({self._place}) ends both"
        return self._kill()

    def _kill(self) -> tuple[bool, str]:
        self.connection.ask("kill_named", _ASK_LIMIT, name=self.actor)
        try:
            self._call("describe", _KILL_LIMIT)
        except ActorLost:
            return True, "its actor did not answer and is killed by Ray; then its supervisor stops it"
        except InferenceServerError:
            pass
        return False, f"its actor neither answers nor can be killed by Ray; 'kill -9' of it ({self._place}) ends both"

    def _call(self, method: str, limit: float, *arguments: object) -> object:
        return self.connection.ask(
            "call_named", limit + _ASK_LIMIT, name=self.actor, method=method, arguments=arguments, timeout=limit
        )

    @property
    def _place(self) -> str:
        return f"pid {self.actor_pid} on {self.node}" if self.actor_pid else self.actor


class WatchedCluster:
    """A cluster that is looked at; see `cluster_to_look_at`."""

    def __init__(self, connection: ClusterConnection) -> None:
        """Look at nothing yet."""
        self._connection = connection

    def servers(self) -> list[ClusterServer]:
        """Return the servers of all runs there, the oldest first; those that do not answer come last.

        Raises:
            InferenceServerError: The cluster does not answer.
        """
        actors = self._connection.ask("named_actors", _ASK_LIMIT, prefix=PREFIX)
        if not actors:
            return []
        nodes = {node.id: str(node) for node in self._connection.nodes()}
        with ThreadPoolExecutor(len(actors)) as threads:
            found = threads.map(lambda one: self._server(one[0], nodes.get(one[1], "-"), one[2]), actors)
            servers = [server for server in found if server is not None]
        return sorted(servers, key=_age, reverse=True)

    def _server(self, actor: str, node: str, pid: int) -> ClusterServer | None:
        try:
            description: Description | None = self._connection.ask(
                "call_named",
                _DESCRIBE_LIMIT + _ASK_LIMIT,
                name=actor,
                method="describe",
                arguments=(),
                timeout=_DESCRIBE_LIMIT,
            )
        except ActorLost:
            return None
        except InferenceServerError:
            return ClusterServer(actor, node, pid, None, self._connection)
        if description is None:
            return None
        return ClusterServer(actor, description.node, pid, description, self._connection)


@contextlib.contextmanager
def cluster_to_look_at(address: str) -> Iterator[WatchedCluster]:
    """Connect to a cluster, as long as the ``with`` block lasts.

    Args:
        address: ``HOST:PORT``, or ``auto``.

    Raises:
        ConfigError: It cannot be reached.
    """
    if address == "local":
        raise ConfigError(
            "--cluster local: such a cluster belongs to one run, on this machine: 'infserver ps' lists its servers, too"
        )
    try:
        connection = ClusterConnection(address)
    except ConfigError as error:
        raise ConfigError(_as_ours(str(error))) from None
    try:
        yield WatchedCluster(connection)
    finally:
        connection.close()


def _as_ours(text: str) -> str:
    """Return what is said to runs of pytest as this command would say it."""
    return text.replace("--infserver-cluster", "--cluster").partition("; 'ray start")[0]


def _age(server: ClusterServer) -> float:
    if server.description is None:
        return -1.0
    return server.description.age or 0.0
