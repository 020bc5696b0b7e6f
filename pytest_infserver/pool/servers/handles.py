"""The handles of the servers of a run: one for each name, the same through all its restarts."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.config.model import check_same

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.room import Room


class Handles:
    """Makes the handles of the servers, each when it is wanted first.

    Guarded by the pool's lock, which each method takes itself that changes something. What the servers say comes and
    is taken without it.

    Attributes:
        configs: The servers by name.
        added: The names of those that were not configured.
    """

    def __init__(
        self,
        configs: Mapping[str, ServerConfig],
        room: Room,
        changed: threading.Condition,
        prepare: Callable[[InferenceServer], object],
    ) -> None:
        """Begin without any handle.

        Args:
            configs: The servers by name.
            room: Where they are going to run.
            changed: The pool's lock.
            prepare: Gets each handle before anything is done with it; under the lock.
        """
        self.configs = configs
        self.added: set[str] = set()
        self._room = room
        self._changed = changed
        self._prepare = prepare
        self._servers: dict[str, InferenceServer] = {}
        self._lines: deque[str] = deque()

    def get(self, name: str) -> InferenceServer:
        """Return the handle of a server, which stays the same through restarts; it need not run."""
        with self._changed:
            if name not in self._servers:
                self._servers[name] = self._made(name)
            return self._servers[name]

    def made(self) -> list[InferenceServer]:
        """Return the handles that were wanted so far."""
        with self._changed:
            return list(self._servers.values())

    def names(self) -> list[str]:
        """Return the names of the servers whose handles were wanted so far."""
        with self._changed:
            return list(self._servers)

    def _made(self, name: str) -> InferenceServer:
        from pytest_infserver.launcher.factory import create_from_config

        server = create_from_config(self.configs[name])
        # The next tests expect it where it was, also if it dies.
        server.runtime.holds_port = True
        server.on_progress = self._lines.append
        self._prepare(server)
        return server

    def add(self, configs: Mapping[str, ServerConfig]) -> None:
        """Take in servers that were not configured: variants of these, and what tests make.

        Args:
            configs: The servers by name; one that is known already is left as it is.

        Raises:
            ConfigError: One of them needs more than there is, or has the name of another one.
        """
        from pytest_infserver.launcher.factory import create_from_config

        for name, config in configs.items():
            with self._changed:
                known = self.configs.get(name)
            if known is not None:
                check_same(known, config)
                continue
            # Outside of the lock: its backend may have to be asked.
            server = create_from_config(config)
            with self._changed:
                self._room.add(server)
                self.configs = {**self.configs, name: config}
                self.added.add(name)
            shortage = self._room.shortage([name])
            if shortage is not None:
                raise config.error(shortage)

    def needs_of(self, name: str) -> Sequence[str]:
        """Return the servers that one needs."""
        needs: Sequence[str] = getattr(self.configs.get(name), "needs", ())
        return needs

    def take_lines(self) -> Iterator[str]:
        """Yield what the servers have said; each line once, also if several wait."""
        while True:
            try:
                line = self._lines.popleft()
            except IndexError:
                return
            yield line
