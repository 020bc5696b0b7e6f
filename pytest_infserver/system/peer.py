"""Who is at the other end of a unix socket, as the kernel tells. Imports only the standard library."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import NamedTuple


class Peer(NamedTuple):
    """The process at the other end.

    Attributes:
        pid: Its pid; 0 where it cannot be seen from here, as from another container.
        uid: Its user.
    """

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer | None:
    """Return who connected, or who listens; None if the system does not tell."""
    try:
        return _on_linux(connection) if sys.platform == "linux" else _elsewhere(connection)
    except (OSError, AttributeError, struct.error):
        return None


def is_same_user(peer: Peer | None) -> bool:
    """Return whether the peer is known to be a process of this user."""
    return peer is not None and peer.uid == os.getuid()


def _on_linux(connection: socket.socket) -> Peer:
    pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid)


def _elsewhere(connection: socket.socket) -> Peer | None:
    import ctypes

    uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
    if ctypes.CDLL(None).getpeereid(connection.fileno(), ctypes.byref(uid), ctypes.byref(gid)) != 0:
        return None
    # LOCAL_PEERPID at the level SOL_LOCAL, of macOS; Python has no names for them.
    pid = connection.getsockopt(0, 2) if sys.platform == "darwin" else 0
    return Peer(pid, uid.value)
