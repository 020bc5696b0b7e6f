"""The socket on which a supervisor is asked about its server by processes that are not its owner.

A visitor connects, asks one question (a JSON object on one line) and gets one answer. Whatever visitors do, the
supervisor waits for none of them. Imports only the standard library: the supervisor starts with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from pytest_infserver.system.disk.socket_files import PAUSE, accept, listen
from pytest_infserver.system.peer import Peer, is_same_user, peer_of

SUFFIX = ".sock"
"""How the name of each socket file ends."""
MAX_VISITORS = 16
"""Visitors at a time; one more, and the one that has kept silent for longest has to go."""
MAX_QUESTION = 64 * 1024
"""Bytes that a question may have."""
PATIENCE = 2.0
"""Seconds in which a visitor must have asked."""


class Visitor:
    """A process that has connected.

    Attributes:
        deadline: When it must have asked; None when it has and waits for the answer.
    """

    def __init__(self, connection: socket.socket, peer: Peer) -> None:
        self.connection = connection
        self.peer = peer
        self.inbox = b""
        self.deadline: float | None = time.monotonic() + PATIENCE


Question = tuple[Visitor, dict[str, Any]]


class ControlSocket:
    """Listens, and keeps visitors from being a burden.

    Attributes:
        path: The socket file.
    """

    def __init__(self, folder: str) -> None:
        """Open it.

        Args:
            folder: Private folder for the socket file.

        Raises:
            OSError: That cannot be made.
        """
        name = f"{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
        self.path = os.path.join(folder, name)  # noqa: PTH118
        self._listener = listen(folder, name, MAX_VISITORS)
        self._listener.setblocking(False)
        self._visitors: dict[int, Visitor] = {}
        self._closed_until = 0.0

    def register(self, poller: select.poll) -> None:
        """Add what is to be watched."""
        if time.monotonic() >= self._closed_until:
            poller.register(self._listener, select.POLLIN)
        for visitor in self._visitors.values():
            # One that waits is only watched for its end.
            poller.register(visitor.connection, select.POLLIN if visitor.deadline is not None else 0)

    def moments(self) -> list[float]:
        """Return when `serve` is due even if nothing happens."""
        deadlines = [visitor.deadline for visitor in self._visitors.values() if visitor.deadline is not None]
        return [*deadlines, *([self._closed_until] if self._closed_until > time.monotonic() else [])]

    def serve(self, ready: set[int]) -> list[Question]:
        """Let visitors in, read what they ask, and see those off that take too long.

        Args:
            ready: Descriptors on which something has happened.

        Returns:
            The questions; each is to be answered with `answer` or `hand_over`, now or later.
        """
        now = time.monotonic()
        for visitor in list(self._visitors.values()):
            if visitor.deadline is not None and visitor.deadline <= now:
                self._drop(visitor)
        heard = [self._hear(self._visitors[handle]) for handle in ready & self._visitors.keys()]
        if self._listener.fileno() in ready:
            for _ in range(MAX_VISITORS):
                if not self._let_in():
                    break
        return [question for question in heard if question is not None]

    def answer(self, visitor: Visitor, answer: Mapping[str, Any]) -> None:
        """Answer a question and see the visitor off."""
        self._tell(visitor, answer)
        self._drop(visitor)

    def hand_over(self, visitor: Visitor, answer: Mapping[str, Any]) -> socket.socket | None:
        """Answer a question and return the connection, which is the caller's from now on; None if that failed."""
        if not self._tell(visitor, answer):
            self._drop(visitor)
            return None
        del self._visitors[visitor.connection.fileno()]
        visitor.connection.setblocking(True)
        return visitor.connection

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)  # noqa: PTH108
        self._listener.close()
        for visitor in list(self._visitors.values()):
            self._drop(visitor)

    def _let_in(self) -> bool:
        """Let one visitor in; return whether there was one."""
        try:
            connection = accept(self._listener)
        except OSError:
            self._closed_until = time.monotonic() + PAUSE
            return False
        if connection is None:
            return False
        peer = peer_of(connection)
        if peer is None or not is_same_user(peer) or not self._make_room():
            connection.close()
            return True
        connection.setblocking(False)
        self._visitors[connection.fileno()] = Visitor(connection, peer)
        return True

    def _make_room(self) -> bool:
        if len(self._visitors) < MAX_VISITORS:
            return True
        # The first one came first.
        silent = [visitor for visitor in self._visitors.values() if visitor.deadline is not None]
        if silent:
            self._drop(silent[0])
        return bool(silent)

    def _hear(self, visitor: Visitor) -> Question | None:
        try:
            data = visitor.connection.recv(MAX_QUESTION)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            data = b""
        visitor.inbox += data
        line, end, _ = visitor.inbox.partition(b"\n")
        if not data or visitor.deadline is None or len(line) > MAX_QUESTION:
            self._drop(visitor)
        elif end:
            question = _parsed(line)
            if question is not None:
                visitor.deadline = None
                visitor.inbox = b""
                return visitor, question
            self._drop(visitor)
        return None

    def _tell(self, visitor: Visitor, answer: Mapping[str, Any]) -> bool:
        data = json.dumps(answer).encode() + b"\n"
        try:
            # What does not fit into the socket's buffer is not waited for.
            return visitor.connection.send(data) == len(data)
        except OSError:
            return False

    def _drop(self, visitor: Visitor) -> None:
        self._visitors.pop(visitor.connection.fileno(), None)
        visitor.connection.close()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        question = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return question if isinstance(question, dict) and isinstance(question.get("do"), str) else None
