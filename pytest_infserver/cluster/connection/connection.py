"""The connection to a Ray cluster, by way of a process of its own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from pytest_infserver.cluster.agent.protocol import ANSWERED, AWAY, DEAD, LATE, OTHER
from pytest_infserver.cluster.connection.errors import ActorAway, ActorLost, ClusterLost, NoAnswer, Unreachable
from pytest_infserver.cluster.connection.nodes import Node
from pytest_infserver.cluster.connection.reach import advice, require_head, require_ray
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.system.environment import environment

_CONNECT_LIMIT = 60.0
_CLOSE_LIMIT = 15.0
_END_LIMIT = 1.0
"""Seconds between the end of the agent's connection and its own."""
_SHOWN = 2000
"""Characters of what the agent has said last that an error shows."""
_SEND_LIMIT = 10
"""Seconds that the agent gets to take a question off the line."""


class ClusterConnection:
    """A connection, from its making to `close`; may be used by several threads.

    Attributes:
        address: What the user has named.
    """

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: ``auto``, ``local`` or ``HOST:PORT``.

        Raises:
            ConfigError: It cannot be connected to; the message says what to do.
        """
        self.address = address
        meant = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
        require_ray(meant)
        require_head(meant)
        self._numbers = itertools.count()
        self._waiting: dict[int, _Answer] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._lost = False
        self._why: str | None = None
        self._pid = os.getpid()
        try:
            self._start()
        except OSError as error:
            why = f"the process that is to hold the connection cannot be started: {error}"
            raise Unreachable(f"--infserver-cluster {address}: {why}") from None
        try:
            self.ask("connect", _CONNECT_LIMIT, address=address)
        except InferenceServerError as error:
            problem = self._last_words() if isinstance(error, ClusterLost) else str(error)
            if address != "local":
                # Nothing was started: it may go at once, in whatever it waits.
                self._agent.kill()
            self.close()
            raise Unreachable(f"--infserver-cluster {address}: {advice(address, problem)}") from None
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        with contextlib.ExitStack() as made:
            self._said = made.enter_context(tempfile.TemporaryFile())
            self._socket, theirs = map(made.enter_context, socket.socketpair())
            self._agent = subprocess.Popen(
                [sys.executable, "-m", "pytest_infserver.cluster.agent", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=[theirs.fileno()],
                env=_environment(self.address),
                # Ctrl-C is pytest's.
                start_new_session=True,
            )
            made.callback(self._agent.wait)
            made.callback(self._agent.kill)
            # Whoever asks holds a lock meanwhile.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_LIMIT, 0))
            self._channel: Connection[Any, Any] = made.enter_context(Connection(os.dup(self._socket.fileno())))
            threading.Thread(target=self._listen, name="infserver-cluster", daemon=True).start()
            theirs.close()
            # From now on they are closed by `close`.
            made.pop_all()

    def ask(self, verb: str, limit: float, /, **arguments: Any) -> Any:
        """Ask the agent.

        Args:
            verb: Name of a method of `agent.Agent`.
            limit: Seconds until it must have answered.
            **arguments: Its arguments.

        Raises:
            ClusterLost: The connection is lost.
            ActorLost: The actor that was asked is gone.
            NoAnswer: There was no answer in time.
            InferenceServerError: It could not be done.
        """
        answer = _Answer()
        if os.getpid() != self._pid:
            # First: in a process that a test has forked another thread may hold the lock for ever.
            raise ClusterLost(f"the connection to the Ray cluster is that of process {self._pid}")
        with self._lock:
            if self._closed or self._lost:
                raise ClusterLost(self.why_lost())
            number = next(self._numbers)
            self._waiting[number] = answer
            self._send((number, verb, arguments))
        if not answer.there.wait(limit):
            self._waiting.pop(number, None)
            raise NoAnswer(f"the cluster has not answered within {limit:g} s ({verb})")
        if answer.kind == ANSWERED:
            return answer.value
        if answer.kind == DEAD:
            raise ActorLost(answer.value)
        if answer.kind == LATE:
            raise NoAnswer(answer.value)
        if answer.kind == OTHER:
            self._lose(answer.value)
        if answer.kind == AWAY:
            raise ActorAway(answer.value)
        if answer.kind is None:
            raise ClusterLost(self.why_lost())
        raise InferenceServerError(answer.value)

    def tell(self, verb: str, /, **arguments: Any) -> None:
        """Have the agent do something, and do not wait for it."""
        if os.getpid() != self._pid:
            return
        with self._lock, contextlib.suppress(ClusterLost):
            if not self._closed and not self._lost:
                self._send((None, verb, arguments))

    def _send(self, question: tuple[Any, ...]) -> None:
        try:
            self._channel.send(question)
        except OSError:
            # A part of it may be on the line: nothing can follow.
            self._lose()

    def _lose(self, why: str | None = None) -> NoReturn:
        self._why = self._why or why
        self._lost = True
        self._agent.kill()
        raise ClusterLost(self.why_lost()) from None

    def nodes(self, timeout: float = 30.0) -> list[Node]:
        """Return the nodes of the cluster by name, with what is free now."""
        found = []
        for entry in self.ask("nodes", timeout):
            host = entry.pop("host")
            if entry["name"] == entry["address"]:
                # It was given no name.
                entry["name"] = host
            found.append(Node(**entry))
        return sorted(found, key=lambda node: node.name)

    @functools.cached_property
    def has_gpus(self) -> bool:
        """Whether there was a GPU when this was asked first."""
        return any(node.total.get("GPU") for node in self.nodes() if node.alive)

    @property
    def is_lost(self) -> bool:
        """Whether nothing will be answered any more."""
        return self._lost or self._closed

    def why_lost(self) -> str:
        """Return what is known of why the connection is lost."""
        if self._closed:
            return "the connection to the Ray cluster is closed"
        text = f"the Ray cluster ({self.address}) cannot be reached any more"
        if self._why is not None:
            return f"{text}: {self._why}"
        try:
            code = self._agent.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            return text
        if code < 0:
            name = signal.Signals(-code).name
            return f"{text}: the process that holds the connection ({self._agent.pid}) was killed by {name}"
        said = self._last_words()
        if "GCS" in said:
            return f"{text}: its head node does not answer"
        return f"{text}: {said}" if said else text

    def close(self) -> None:
        """Leave the cluster: what was started there ends; no effect in a process that was forked."""
        if os.getpid() != self._pid:
            # Shutting the socket down would do that to the parent's, too.
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        # Wakes our own reader, which close() alone does not.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._channel.close()
        try:
            self._agent.wait(_CLOSE_LIMIT)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()
        self._said.close()

    def _listen(self) -> None:
        # The end, from either side; or what is sent cannot be read, after which nothing can.
        with contextlib.suppress(Exception):
            while True:
                number, kind, value = self._channel.recv()
                answer = self._waiting.pop(number, None)
                if answer is not None:
                    answer.give(kind, value)
        with self._lock:
            self._lost = True
            waiting, self._waiting = list(self._waiting.values()), {}
        for answer in waiting:
            answer.give(None, None)

    def _last_words(self) -> str:
        try:
            size = os.fstat(self._said.fileno()).st_size
            data = os.pread(self._said.fileno(), _SHOWN, max(0, size - _SHOWN))
        except (OSError, ValueError):
            return ""
        lines = data.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


class _Answer:
    def __init__(self) -> None:
        self.there = threading.Event()
        self.kind: str | None = None
        self.value: Any = None

    def give(self, kind: str | None, value: Any) -> None:
        self.kind, self.value = kind, value
        self.there.set()


def _environment(address: str) -> dict[str, str]:
    """Return the environment of the agent; Ray reads some of it when it is imported."""
    env = {**environment(), "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
    if address == "local":
        env["RAY_USAGE_STATS_ENABLED"] = "0"
        if "RAY_AUTH_MODE" not in env:
            # Ray listens on every interface, and would leave a token in the home directory that later clusters obey.
            env.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    return env
