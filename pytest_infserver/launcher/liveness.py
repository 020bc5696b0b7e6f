"""Whether a server that counts as running is about to turn out dead."""

from __future__ import annotations

import socket
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_LIMIT = 6.0
_PF_EXITING = 0x4


def notice_death(server: InferenceServer) -> None:
    """Wait for the news of a server's end if it is on its way.

    A client sees the broken connection a little before the process is reaped; without this the end would be put
    down to the next test.
    """
    if server.running and not server.attached and (_is_exiting(server.pid) or _refuses_connections(server)):
        server.wait_death(_LIMIT)


def _is_exiting(pid: int | None) -> bool:
    try:
        # The command name may hold spaces and parentheses: fields count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return bool(int(fields[6]) & _PF_EXITING)


def _refuses_connections(server: InferenceServer) -> bool:
    host = urllib.parse.urlsplit(server.server_url).hostname
    try:
        with socket.create_connection((host, server.port), timeout=1):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
