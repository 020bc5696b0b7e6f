"""Where workers of xdist ask for the pool of a run that has no configuration: it is made for the first that asks."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.system.disk.socket_files import PAUSE, accept, connect, listen, stop_listening
from pytest_infserver.system.peer import is_same_user, peer_of

REQUEST_SOCKET = "request_socket"
"""Key of what a worker is given: the socket on which it asks for what it needs to reach the pool."""
_BACKLOG = 128
_LIMIT = 120.0
"""Seconds in which the controller has made a pool."""


class PoolRequests:
    """The controller's side. A run of xdist whose tests want no server has this, and no pool.

    Attributes:
        key: What a worker has to be given.
    """

    def __init__(self, open_pool: Callable[[], Mapping[str, Any]]) -> None:
        """Listen for workers.

        Args:
            open_pool: Makes the pool, unless there is one, and returns what a worker needs to reach it; a secret.
        """
        self._open_pool = open_pool
        self._folder = tempfile.mkdtemp(prefix="infserver-")
        self._listener = listen(self._folder, REQUEST_SOCKET, _BACKLOG)
        self._is_closed = threading.Event()
        self.key = {REQUEST_SOCKET: f"{self._folder}/{REQUEST_SOCKET}"}
        # In a thread: the controller's main thread waits for the workers, which wait for this.
        threading.Thread(target=self._serve, name="infserver-pool-requests", daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._is_closed.set()
        stop_listening(self._listener)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        while not self._is_closed.is_set():
            try:
                visitor = accept(self._listener)
            except OSError:
                self._is_closed.wait(PAUSE)
                continue
            if visitor is None:
                continue
            visitor.setblocking(True)
            if not is_same_user(peer_of(visitor)):
                visitor.close()
                continue
            with contextlib.suppress(OSError), Connection(visitor.detach()) as connection:
                connection.send(self._answer())

    def _answer(self) -> tuple[Mapping[str, Any] | None, str]:
        """Return what a worker needs, or why it cannot have it."""
        try:
            return self._open_pool(), ""
        except BaseException as error:
            return None, str(error) or type(error).__name__


def key_for(said: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return what a worker needs to reach the pool; None if it has to make one of its own.

    Args:
        said: What the controller has given it.

    Raises:
        ConfigError: The controller cannot make a pool.
        InferenceServerError: It has ended meanwhile.
    """
    if said is None or REQUEST_SOCKET not in said:
        return said
    try:
        visitor = connect(said[REQUEST_SOCKET], _LIMIT)
    except OSError:
        # The controller is on another machine.
        return None
    visitor.setblocking(True)
    connection: Connection[Any, Any] = Connection(visitor.detach())
    with connection:
        try:
            if not connection.poll(_LIMIT):
                raise InferenceServerError(f"xdist's controller has made no pool in {_LIMIT:g} s")
            key, refusal = connection.recv()
        except (EOFError, OSError):
            raise InferenceServerError("xdist's controller has ended: there is nobody to start servers") from None
    if key is None:
        raise ConfigError(refusal)
    found: Mapping[str, Any] = key
    return found
