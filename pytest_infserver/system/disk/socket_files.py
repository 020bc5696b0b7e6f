"""Unix sockets by their files, also where the path is longer than the 108 bytes that the system allows.

Imports only the standard library: the supervisor starts with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

_MAX_PATH = 100
"""Longer paths go through /proc (Linux): macOS allows 104 bytes, Linux 108."""
_RETRY = 0.005
PAUSE = 1.0
"""Seconds without new connections after `accept` has raised: whoever waits for one would be woken all the time."""


def listen(folder: str, name: str, backlog: int) -> socket.socket:
    """Return a socket that listens as ``name`` in a folder; only this user can connect to it.

    Raises:
        OSError: The folder does not allow it, or its path is too long for this system.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    hidden = f".{name}"
    previous = os.umask(0o177)
    try:
        with _address(folder, hidden) as address:
            listener.bind(address)
        listener.listen(backlog)
        # Not before it listens: who finds a file that nobody listens on removes it.
        os.rename(os.path.join(folder, hidden), os.path.join(folder, name))  # noqa: PTH104, PTH118
    except BaseException:
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, hidden))  # noqa: PTH108, PTH118
        raise
    finally:
        os.umask(previous)
    return listener


def accept(listener: socket.socket) -> socket.socket | None:
    """Return the next connection; None if it is gone again, or nobody has come.

    Raises:
        OSError: The system has no descriptor or no memory for one, or the listener is closed; see `PAUSE`.
    """
    try:
        return listener.accept()[0]
    except (BlockingIOError, InterruptedError, ConnectionAbortedError):
        return None


def stop_listening(listener: socket.socket) -> None:
    """Close a listener, and wake the thread that waits for connections on it."""
    with contextlib.suppress(OSError):
        # On Linux a close alone would not wake it.
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def connect(path: str, timeout: float) -> socket.socket:
    """Return a connection to the socket file ``path``.

    Args:
        path: The file.
        timeout: Limit in seconds of this and of each later operation.

    Raises:
        OSError: Nobody listens there (ConnectionRefusedError), or not in time.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        with _address(*os.path.split(path)) as address:
            _connect(connection, address, time.monotonic() + timeout)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(connection: socket.socket, address: str, deadline: float) -> None:
    while True:
        try:
            connection.connect(address)
            return
        except BlockingIOError:
            # Too many others are waiting to be let in; nothing tells when they are not.
            if time.monotonic() > deadline:
                raise TimeoutError("too many others ask at the same time") from None
            time.sleep(_RETRY)


@contextlib.contextmanager
def _address(folder: str, name: str) -> Iterator[str]:
    path = os.path.join(folder, name)  # noqa: PTH118
    if len(os.fsencode(path)) <= _MAX_PATH or not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        yield path
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{name}"
    finally:
        os.close(handle)
