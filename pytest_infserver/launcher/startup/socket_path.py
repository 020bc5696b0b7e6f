"""The unix socket that a server is about to listen on: nobody else may."""

from __future__ import annotations

import contextlib
import os
import stat

from pytest_infserver.errors import ServerStartupError
from pytest_infserver.system.http.address import Address

_LONGEST = 107
"""Bytes that Linux takes as the path of a unix socket."""
_LIMIT = 1.0


def require_free_socket(who: str, address: Address) -> None:
    """Make sure that a server can listen on its unix socket, and remove one on which nobody listens any more.

    Args:
        who: The server, for messages.
        address: Where it will be reached; nothing is done if that is a port.

    Raises:
        ServerStartupError: It cannot; the message says why.
    """
    path = address.uds
    if path is None or path.startswith("\0"):
        return
    if len(os.fsencode(path)) > _LONGEST:
        raise ServerStartupError(
            f"{who} cannot start: the path of its unix socket has {len(os.fsencode(path))} bytes, the system takes"
            f" {_LONGEST}: choose a shorter 'uds'"
        )
    try:
        kind = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISSOCK(kind.st_mode):
        raise ServerStartupError(f"{who} cannot start: 'uds' is there already and is no socket: {path}")
    try:
        address.connect(_LIMIT).close()
    except ConnectionRefusedError:
        # Left behind by a server that was killed: with it the next one cannot listen there.
        if kind.st_uid == os.getuid():
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
        return
    except OSError:
        return
    raise ServerStartupError(
        f"{who} cannot start: another server listens on the unix socket {path}. Stop it, or choose another 'uds'."
    )
