"""The states of a server."""

from __future__ import annotations

from enum import Enum


class ServerState(str, Enum):
    """Where a server is in its life."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DIED = "died"

    __str__ = str.__str__
