"""``infserver ps``: the servers that run on this machine, or on a cluster, as a table."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_infserver.system.processes.table import read_file
from pytest_infserver.system.secrets import find_secrets
from pytest_infserver.system.text import one_line

if TYPE_CHECKING:
    from pytest_infserver.cluster.listing import ClusterServer
    from pytest_infserver.launcher.keeping.kept import KeptServer

_HEAD = ("NAME", "STATE", "MODEL", "URL", "AGE", "LEFT", "MEMORY", "USED BY")
_CLUSTER_HEAD = ("NAME", "STATE", "MODEL", "NODE", "URL", "AGE", "MEMORY", "USED BY")
_MAX_COMMAND = 60
_MAX_READ = 16 * 1024


def server_table(servers: Sequence[KeptServer]) -> list[str]:
    """Return the lines of a table of servers, or the one line that says that there is none."""
    return _table(_HEAD, [_row(server) for server in servers])


def cluster_table(servers: Sequence[ClusterServer]) -> list[str]:
    """Return the same of servers on a cluster, where none is kept."""
    return _table(_CLUSTER_HEAD, [_cluster_row(server) for server in servers])


def _table(head: tuple[str, ...], servers: Sequence[tuple[str, ...]]) -> list[str]:
    if not servers:
        return ["no server runs"]
    # What another user's process says of itself may be anything.
    rows = [head, *(tuple(map(one_line, row)) for row in servers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(server: KeptServer) -> tuple[str, ...]:
    return (
        server.name,
        server.state,
        server.model or "-",
        server.url,
        as_duration(server.age),
        "-" if server.seconds_left is None else as_duration(server.seconds_left),
        as_size(server.memory()),
        "-" if server.owner_pid is None else as_user(server.owner_pid),
    )


def _cluster_row(server: ClusterServer) -> tuple[str, ...]:
    known = server.description
    if known is None:
        return (server.name, "no answer", "-", server.node, "-", "-", "-", "-")
    return (
        server.name,
        known.state,
        known.model or "-",
        server.node,
        known.url,
        "-" if known.age is None else as_duration(known.age),
        as_size(known.memory),
        known.user,
    )


def as_duration(seconds: float) -> str:
    """Return a time as people say it: 42 s, 3 min, 2 h 5 min, 3 d 4 h."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{int(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def as_size(size: int | None) -> str:
    """Return a number of bytes as people read it: 840 MB, 4.1 GB."""
    if size is None:
        return "-"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def as_user(pid: int, host: str | None = None) -> str:
    """Return which process of this machine uses a server, in words.

    Args:
        pid: Its id.
        host: What this machine is called, for who reads it elsewhere.
    """
    who = f"pid {pid}" if host is None else f"pid {pid} on {host}"
    command = shown_command(_words(pid))
    return f"{who} ({command})" if command else who


def _words(pid: int) -> list[str]:
    if os.path.isdir("/proc/self"):  # noqa: PTH112
        text = read_file(f"/proc/{pid}/cmdline", _MAX_READ)
        if len(text) == _MAX_READ:
            # Half a secret would not be known for one.
            text = text.rpartition(b"\0")[0]
        return text.decode("utf-8", "replace").rstrip("\0").split("\0") if text else []
    import psutil

    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def shown_command(words: Sequence[str]) -> str:
    """Return a command line in short: without the path of Python and of the script, secrets masked."""
    rest = list(words)
    if len(rest) > 1 and re.fullmatch(r"python[\d.]*t?", os.path.basename(rest[0])):  # noqa: PTH119
        rest = rest[1:]
        if rest[0] == "-m" and len(rest) > 1:
            rest = rest[1:]
    if rest:
        rest[0] = os.path.basename(rest[0])  # noqa: PTH119
    # A script given with -c has many lines.
    text = " ".join(one_line(" ".join(rest), find_secrets({}, words), _MAX_READ).split())
    width = max(_MAX_COMMAND, shutil.get_terminal_size().columns // 2)
    return text if len(text) <= width else f"{text[:width]}..."
