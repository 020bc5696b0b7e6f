"""The machines of a cluster."""

from __future__ import annotations

import socket
from dataclasses import dataclass

_PROBE_LIMIT = 5.0


@dataclass(frozen=True)
class Node:
    """One machine of the cluster.

    Attributes:
        id: Ray's name for it.
        name: What people call it.
        address: Where it is reached.
        alive: Whether it is there.
        total: What it has: CPU, GPU and others, by name.
        free: What of that nobody has.
        port: Where Ray's own process listens on it, or 0.
    """

    id: str
    name: str
    address: str
    alive: bool
    total: dict[str, float]
    free: dict[str, float]
    port: int = 0

    def has_no_ray(self) -> bool:
        """Return whether its machine says that Ray does not run there any more; Ray's head takes longer to notice."""
        try:
            socket.create_connection((self.address, self.port), _PROBE_LIMIT).close()
        except ConnectionRefusedError:
            return self.port != 0
        except OSError:
            pass
        return False

    def __str__(self) -> str:
        return self.name if self.name == self.address else f"{self.name} ({self.address})"
