"""``infserver stop``: end servers, whoever has started them, and say how that went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from pytest_infserver.system.text import one_line


class Stoppable(Protocol):
    """A server that can be stopped."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def label(self) -> str:
        """Which one it is, in words that follow its name."""

    def end(self) -> tuple[bool, str]:
        """Stop it; return whether that went well, and how, in words."""


Server = TypeVar("Server", bound=Stoppable)


class NoSuchServer(Exception):
    """A name that no server has; the text says which names there are."""


def chosen(servers: Sequence[Server], names: Sequence[str]) -> list[Server]:
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


def stop_all(servers: Sequence[Stoppable]) -> Iterator[tuple[bool, str]]:
    """Stop servers, all at the same time.

    Yields:
        For each, as soon as it is known, whether it is gone, and a line about it.
    """
    if not servers:
        return
    with ThreadPoolExecutor(len(servers)) as threads:
        for future in as_completed([threads.submit(_stop, server) for server in servers]):
            yield future.result()


def _stop(server: Stoppable) -> tuple[bool, str]:
    gone, how = server.end()
    return gone, one_line(f"{server.name} ({server.label}): {how}")
