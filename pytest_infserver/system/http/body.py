"""Short HTTP questions whose answers are read, each within a limit of time and one of size."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import socket
import time
from typing import Any, NamedTuple

from pytest_infserver.system.http.address import Address

_HEAD = 64 * 1024
"""Bytes that an answer may have beyond its body."""


class TooLong(Exception):
    """The answer is longer than was allowed."""


class Reply(NamedTuple):
    """A whole answer: its status, its body, and where it sends on to."""

    status: int
    body: bytes
    location: str | None


class Connection:
    """Asks one server, over one connection where that is wanted. Not for several threads or processes.

    Proxies of the environment are not used: they would be asked for 127.0.0.1.
    """

    def __init__(self, address: Address, headers: dict[str, str], *, keep: bool) -> None:
        """Connect to nothing yet.

        Args:
            address: Where the server is reached.
            headers: Sent with each question.
            keep: Keep the connection open between two questions, if the server does.
        """
        self._address = address
        self._headers = headers if keep else {**headers, "Connection": "close"}
        self._keep = keep
        self._connection: http.client.HTTPConnection | None = None

    def get(self, target: str, timeout: float, max_bytes: int) -> tuple[int, bytes]:
        """GET a path and read the whole answer.

        Args:
            target: Path and query.
            timeout: Limit in seconds for all of it, also when the server sends a byte now and then. Looking up a name
                of the host is not bounded by it.
            max_bytes: Limit for the body.

        Returns:
            The status and the body.

        Raises:
            OSError: There was no answer, or not in time.
            http.client.HTTPException: The answer is not HTTP, or not complete.
            ValueError: The URL or a header is not valid.
            TooLong: There was more of it.
        """
        deadline = time.monotonic() + timeout
        kept = self._connection is not None
        try:
            return self._ask("GET", target, None, deadline, max_bytes)[:2]
        except ConnectionError:
            # Servers close a connection that was idle for a while.
            if not kept:
                raise
            return self._ask("GET", target, None, deadline, max_bytes)[:2]

    def send(self, method: str, target: str, body: bytes | None, timeout: float, max_bytes: int) -> Reply:
        """Send a request of any kind, once, and read the whole answer.

        Args:
            method: Such as POST.
            target: Path and query.
            body: What is sent, or None.
            timeout: As for `get`.
            max_bytes: As for `get`.

        Raises:
            Exception: Those of `get`.
        """
        return self._ask(method, target, body, time.monotonic() + timeout, max_bytes)

    def _ask(self, method: str, target: str, sent: bytes | None, deadline: float, max_bytes: int) -> Reply:
        try:
            connection = self._open(_left(deadline))
            connection.request(method, target, body=sent, headers=self._headers)
            # Its own reading has a time limit for each piece only.
            connection.response_class = functools.partial(bounded_response, deadline, max_bytes + _HEAD)  # type: ignore[assignment]
            with connection.getresponse() as response:
                body = response.read(max_bytes + 1)
                if len(body) > max_bytes:
                    raise TooLong
                if response.length:
                    raise http.client.IncompleteRead(body, response.length)
        except BaseException:
            self.close()
            raise
        if not self._keep:
            self.close()
        return Reply(response.status, body, response.getheader("Location"))

    def _open(self, timeout: float) -> http.client.HTTPConnection:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._address.http_connection(timeout)
        elif connection.sock is not None:
            connection.sock.settimeout(timeout)
        return connection

    def close(self) -> None:
        """Close the connection, if there is one; the next question opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def bounded_response(deadline: float, max_bytes: int, sock: socket.socket, **how: Any) -> http.client.HTTPResponse:
    """Return an answer that is read from a socket within limits, as `http.client` makes one.

    Args:
        deadline: When it must be whole, by `time.monotonic`.
        max_bytes: How long it may be, its head included.
        sock: The socket.
        **how: What `http.client` says of the request.
    """
    return http.client.HTTPResponse(_BoundedSocket(sock, deadline, max_bytes), **how)  # type: ignore[arg-type]


class _BoundedSocket:
    """As much of a socket as an HTTPResponse needs."""

    def __init__(self, sock: socket.socket, deadline: float, max_bytes: int) -> None:
        self._bytes = _BoundedBytes(sock, deadline, max_bytes)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._bytes)


class _BoundedBytes(io.RawIOBase):
    """What comes from a socket, within limits."""

    def __init__(self, sock: socket.socket, deadline: float, max_bytes: int) -> None:
        self._sock = sock
        # It keeps the socket open when http.client closes its own end of it.
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline
        self._bytes_left = max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._deadline))
        count = self._raw.readinto(buffer)
        self._bytes_left -= count or 0
        if self._bytes_left < 0:
            raise TooLong
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
