"""Whether a server that counts as running is about to turn out dead."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.proc_net import is_listening

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_LIMIT = 6.0
"""Seconds that the news of an end is waited for: vLLM 0.32 takes 5 to follow its engine process."""
_HEALTH_LIMIT = 2.0
_PF_EXITING = 0x4
_LINUX = sys.platform == "linux"


def notice_death(server: InferenceServer, *, thorough: bool = False) -> None:
    """Wait for the news of a server's end if it is on its way.

    A client sees the broken connection a little before the process is reaped; without this the end would be put
    down to the next test.

    Args:
        server: The server.
        thorough: Whether its health is asked for as well, as after a test that has failed.
    """
    if not server.running or server.attached:
        return
    ends = _is_ending(server.pid) or not _listens(server)
    if ends or (thorough and not asked(server).check_health(_HEALTH_LIMIT)):
        server.wait_death(_LIMIT)


def _is_ending(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        # The command name may hold spaces and parentheses: fields count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except FileNotFoundError:
        # It has been reaped, and nobody has told us yet; unless nothing tells of any process here.
        return Path("/proc/self").exists()
    except OSError:
        return False
    return bool(int(fields[6]) & _PF_EXITING)


def _listens(server: InferenceServer) -> bool:
    """Return whether somebody listens on a server's port: some engines close theirs seconds before they end."""
    if not server.is_asked_at_port:
        return True
    # Not by a connection if need not be: one more for every test is much for a server with a short backlog.
    return _is_seen_to_listen(server) or _takes_connections(server)


def _is_seen_to_listen(server: InferenceServer) -> bool:
    """Return whether the system tells of a listener on a server's port; some sandboxes tell of none."""
    if not _LINUX or not server.settings.own_listener or server.remote or server.reach.uds is not None:
        return False
    try:
        return is_listening(server.port)
    except OSError:
        return False


def _takes_connections(server: InferenceServer) -> bool:
    try:
        with server.reach.connect(1):
            return True
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except (OSError, UnicodeError):
        return True
