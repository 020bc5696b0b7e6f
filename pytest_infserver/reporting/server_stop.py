"""``infserver stop``: end servers, whoever has started them, and say how that went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.launcher.kept import KeptServer


class NoSuchServer(Exception):
    """A name that no server has; the text says which names there are."""


def chosen(servers: Sequence[KeptServer], names: Sequence[str]) -> list[KeptServer]:
    """Return the servers with one of these names, or that fit one of these patterns.

    Raises:
        NoSuchServer: No server fits one of them.
    """
    unknown = [name for name in names if not any(fnmatchcase(server.name, name) for server in servers)]
    if unknown:
        known = ", ".join(sorted({server.name for server in servers}))
        what = f"these run: {known}" if known else "no server runs"
        raise NoSuchServer(f"no server is called {' or '.join(map(repr, unknown))}; {what}")
    return [server for server in servers if any(fnmatchcase(server.name, name) for name in names)]


def stop_all(servers: Sequence[KeptServer]) -> Iterator[tuple[bool, str]]:
    """Stop servers, all at the same time.

    Yields:
        For each, as soon as it is known, whether it is gone, and a line about it.
    """
    if not servers:
        return
    with ThreadPoolExecutor(len(servers)) as threads:
        for future in as_completed([threads.submit(_stop, server) for server in servers]):
            yield future.result()


def _stop(server: KeptServer) -> tuple[bool, str]:
    who = f"{server.name} (pid {server.pid}, {server.url})"
    begin = time.monotonic()
    gone = server.stop()
    seconds = time.monotonic() - begin
    if gone:
        return True, f"{who}: stopped in {seconds:.1f} s"
    return False, (
        f"{who}: has not ended after {seconds:.0f} s; 'kill -9 {server.supervisor_pid}' ends its supervisor, and"
        " whatever of it can be killed"
    )
