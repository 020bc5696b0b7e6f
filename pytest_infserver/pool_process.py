"""The program of the pool's process: it owns the servers of a run, and runs no code of the user's.

It is started by pytest, asked by each process that runs tests, and ends when pytest is gone, with all of its servers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.backends.registry import use_backend
from pytest_infserver.launcher.diagnosis.log_teller import LogTeller
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.pool.broker.broker import Broker
from pytest_infserver.pool.outcomes import in_words
from pytest_infserver.pool.pool import Pool
from pytest_infserver.pool.process.boot import Boot
from pytest_infserver.pool.process.channel import Channel
from pytest_infserver.pool.process.foreign import ForeignBackend, ForeignServer, make_class
from pytest_infserver.pool.room import machine_room
from pytest_infserver.pool.servers.policy import Hooks
from pytest_infserver.reporting.record.servers import ServerRecorder

_PARENT_INTERVAL = 1.0
"""Seconds between two looks whether pytest is still there: a child that it has forked may hold the connection open."""


def main(fd: int) -> None:
    """Run a pool.

    Args:
        fd: The connection to pytest.
    """
    parent = os.getppid()
    # Pytest says when this is over; a terminal's keys are not meant for it.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(fd)
    host = PoolHost(connection.recv(), connection)
    ended: list[int] = []
    # Not the event: its lock may be held by the very thread that this interrupts.
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    while not ended and not host.over.wait(_PARENT_INTERVAL) and os.getppid() == parent:
        pass
    if os.getppid() != parent:
        host.lose()
    host.close()


class PoolHost:
    """The pool and who asks it.

    Attributes:
        over: Set when pytest is gone, or has said that this is over.
    """

    def __init__(self, boot: Boot, connection: Connection[Any, Any]) -> None:
        self.over = threading.Event()
        self._troubles = itertools.count(1)
        self._pool: Pool | None = None
        self._log = LogTeller(lambda name, lines: self._channel.push("log", name, lines)) if boot.tells_log else None
        self._backends: dict[str, ForeignBackend] = {}
        self._channel = Channel(connection, on_push=self._on_push, on_call=self._on_call, on_end=self.over.set)
        try:
            self._open(boot)
        except Exception as error:
            self._channel.push("refusal", str(error) if isinstance(error, InferenceServerError) else in_words(error))

    def _open(self, boot: Boot) -> None:
        self._use_backends(boot.backends)
        self._recorder = ServerRecorder(boot.folder)
        self._recorder.on_start(lambda: self._channel.push("began"))
        hooks = Hooks(*(self._hook(kind) for kind in ("started", "stopping", "stopped")))
        room = machine_room(boot.configs, boot.max_servers)
        pool = Pool(boot.configs, room, hooks, boot.policy)
        pool.on_made = self._on_made
        pool.on_up = lambda names: self._channel.push("up", names)
        pool.on_trouble = lambda: self._channel.push("trouble", next(self._troubles))
        waiting = (lambda report: self._channel.push("waiting", report)) if boot.workers else None
        self._broker = broker = Broker(
            pool,
            each=boot.each,
            waiting=waiting,
            progress=pool.incidents.append if boot.workers else None,
            final=self._final,
            use_backends=self._use_backends,
        )
        pool.on_end = broker.tell_end
        pool.expect(boot.expected)
        # What pytest asks of the pool may come at any time from now on.
        self._pool = pool
        self._channel.push("key", broker.key)

    def lose(self) -> None:
        """Ask pytest nothing any more: it is gone, and a child that it has forked may hold its connection open."""
        self._channel.abandon()

    def close(self) -> None:
        """Stop everything."""
        if self._pool is not None:
            self._pool.close()
            self._broker.close()
        self._channel.close()

    def _on_made(self, server: InferenceServer) -> None:
        self._recorder.watch(server)
        if self._log is not None:
            self._log.watch(server)

    def _use_backends(self, backends: Mapping[str, ForeignBackend]) -> None:
        for name, foreign in backends.items():
            if self._backends.get(name) != foreign:
                self._backends[name] = foreign
                use_backend(name, make_class(foreign, self._ask_backend))

    def _hook(self, kind: str) -> Any:
        def told(server: Any) -> None:
            # Without pytest there is nobody to tell.
            if self._channel.is_open:
                self._channel.call("hook", f"pytest_infserver_server_{kind}", server.settings, server.runtime.view())

        return told

    def _ask_backend(self, server: ForeignServer, name: str, arguments: Sequence[Any]) -> Any:
        return self._channel.call("backend", server.settings, name, tuple(arguments), server.allotment)

    def _on_push(self, kind: str, *data: Any) -> None:
        if kind == "note":
            label, fields = data
            self._recorder.note_test(label, fields)
        elif self._pool is not None:
            getattr(self._broker, kind)(*data)

    def _on_call(self, kind: str, *data: Any) -> Any:
        assert self._pool is not None
        if kind == "flush":
            # What was told before is heard before this is answered.
            return None
        if kind == "refusal":
            return self._broker.refusal
        assert kind == "plan"
        return self._pool.tests, self._broker.in_order()

    def _final(self) -> dict[str, Any]:
        """Return what pytest wants to know when all servers are stopped."""
        assert self._pool is not None
        servers = self._pool.servers
        found: dict[str, Any] = {"records": [], "incidents": []}
        with contextlib.suppress(Exception):
            found["secrets"] = self._recorder.secrets
        try:
            found["records"] = self._recorder.server_records()
        except Exception as error:
            # A backend of the user's may fail to say what it is.
            found["incidents"].append(f"what became of the servers cannot be told: {type(error).__name__}: {error}")
        if self._log is not None:
            self._log.close()
        found["configs"] = {server.name: self._pool.configs[server.name] for server in servers}
        found["views"] = {server.name: server.runtime.view() for server in servers}
        found["profiles"] = {server.name: server.profiles for server in servers}
        found["incidents"] = [*self._pool.incidents, *found["incidents"]]
        return found
