"""Runs of one machine take turns with a port that their configurations name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from pytest_infserver.system.disk.locks import sign, take_shared_lock
from pytest_infserver.system.disk.places import shared_lock_file


class Turns:
    """The ports that are this run's turn; the promise of a port itself is its server's, for one life."""

    def __init__(self) -> None:
        self._locks: dict[int, int | None] = {}

    def take(self, port: int) -> bool:
        """Have a port, unless another run has it; return whether it is had now."""
        if port in self._locks:
            return True
        try:
            lock = take_shared_lock(shared_lock_file(f"turn-{port}.lock"))
        except OSError:
            # Where nobody can be seen nobody is waited for: the start says who holds the port.
            self._locks[port] = None
            return True
        if lock is None:
            return False
        sign(lock)
        self._locks[port] = lock
        return True

    def keep_only(self, ports: Iterable[int]) -> None:
        """Let go of all other ports."""
        for port in self._locks.keys() - set(ports):
            lock = self._locks.pop(port)
            if lock is not None:
                with contextlib.suppress(OSError):
                    os.close(lock)
