"""The owner of a server as its supervisor hears it: one at a time, or none while the server is kept."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from typing import Any

from pytest_infserver.system.processes.owner import Owner

MAX_SECONDS = 1e9
"""No request asks for a longer time."""
OWNER_INTERVAL = 1.0
"""Seconds between two looks for the owner where the system cannot tell of its end (no pidfd)."""


class Ownership:
    """Who the owner is, and the connection to it.

    Attributes:
        owner: The process whose end is the server's end too.
        owner_gone: Whether it has ended, or let go of the server without keeping it.
        kept_until: When a server that is kept, and has no owner, is stopped; None as long as it has one.
    """

    def __init__(self, channel: socket.socket, owner: Owner) -> None:
        """Take the first owner.

        Args:
            channel: Leads to the owner.
            owner: The process at its other end.
        """
        self.owner = owner
        self.owner_gone = False
        self.kept_until: float | None = None
        self._channel = channel
        self._inbox = b""

    def register(self, poller: select.poll) -> None:
        """Add what is to be watched."""
        if self.owner_gone:
            return
        if self._channel.fileno() != -1:
            poller.register(self._channel, select.POLLIN)
        if self.owner.handle is not None and self.kept_until is None:
            poller.register(self.owner.handle, select.POLLIN)

    def has_said_something(self, readable: set[int]) -> bool:
        """Return whether there is something to `receive`."""
        return self._channel.fileno() in readable

    def has_ended(self, readable: set[int]) -> bool:
        """Return whether the owner's process is gone."""
        handle = self.owner.handle
        return handle in readable or (handle is None and self.owner.is_gone())

    def is_looked_for(self) -> bool:
        """Return whether only a look from time to time shows the owner's end."""
        return self.kept_until is None and self.owner.handle is None

    def receive(self) -> list[dict[str, Any]] | None:
        """Return what the owner has said, or None if it has closed the channel."""
        try:
            data = self._channel.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return None
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def send(self, **message: Any) -> None:
        """Tell the owner something."""
        if self.owner_gone:
            # A fork of it may hold the channel open, and nobody reads what would fill it.
            return
        with contextlib.suppress(OSError):
            self._channel.sendall(json.dumps(message).encode() + b"\n")

    def keep(self, seconds: float) -> None:
        """Let the server be without an owner for so long."""
        self.kept_until = time.monotonic() + min(seconds, MAX_SECONDS)

    def hand_over(self, channel: socket.socket, owner: Owner) -> None:
        """Take a new owner."""
        self._channel.close()
        self.owner.forget()
        self._channel, self.owner, self._inbox, self.kept_until = channel, owner, b"", None

    def close(self) -> None:
        """Close the channel of an owner that has let go of a server that is kept."""
        self._channel.close()
