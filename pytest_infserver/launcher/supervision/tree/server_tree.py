"""The processes of one server: the root that was launched, the engine, and all that descends from them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from pytest_infserver.system.processes.table import (
    Process,
    command_line,
    descendants,
    find_process,
    handles_sigterm,
    ignores_sigterm,
    read_file,
    read_process,
    send_signal,
    wait_until_stopped,
)

FREEZE_LIMIT = 0.2
"""Debug mode: seconds that processes get to stand still before what they hold is looked at."""
_FREEZE_ROUNDS = 20


class ServerTree:
    """All descendants of this process, a supervisor; those of the stop command are not the server's.

    Attributes:
        root: Pid of the process that was launched; 0 before that, -1 if only its descendants are known.
        root_exited: Whether the root has ended.
        childless: Whether this process has no children any more.
        ready: Whether the server is ready, and handles SIGTERM since then.
        pid_file: If the root is a profiler, the file in which the engine below it has left its pid.
        stop_signal: What asks its processes to end.
        stopper: Pid of the running stop command, or 0.
        cgroup: Folder of the cgroup that all its processes are in, or None.
    """

    def __init__(self) -> None:
        """Begin without any process."""
        self.root = 0
        self.root_exited = False
        self.childless = False
        self.ready = False
        self.pid_file: str | None = None
        self.stop_signal: int = signal.SIGTERM
        self.stopper = 0
        self.cgroup: str | None = None

    def processes(self) -> list[Process]:
        """Return the server's processes."""
        below = descendants(os.getpid())
        helpers = self.helpers(below)
        return [process for process in below if process.pid not in helpers]

    def helpers(self, below: Sequence[Process]) -> set[int]:
        """Return which of our descendants belong to the stop command."""
        helpers = {self.stopper} if self.stopper else set()
        for process in below:
            # Parents come before their children.
            if process.parent in helpers:
                helpers.add(process.pid)
        return helpers

    def identity(self) -> dict[str, Any]:
        """Return which processes an owner has to do with: a pid alone may be another one's by the time it is used."""
        root, me = find_process(self.root), find_process(os.getpid())
        return {
            "pid": self.root,
            "start": None if root is None else root.start,
            "supervisor": os.getpid(),
            "supervisor_start": None if me is None else me.start,
            "cgroup": self.cgroup,
        }

    def terminate_root(self) -> None:
        """Ask the root to end, or the engine if the root is a profiler."""
        engine = self._engine()
        if engine != self.root:
            # A profiler ends with its engine, and not the other way round.
            process = read_process(engine)
            if process is not None:
                send_signal(process, self.stop_signal)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Only we reap the root, so that its pid is still its own.
            os.kill(self.root, self.stop_signal)

    def ask_below_root(self) -> None:
        """Ask all processes below the root to end, the deepest first: the root has not passed it on."""
        if self.pid_file is not None:
            return
        # Parents come before their children.
        for process in reversed(self.processes()):
            if process.pid != self.root:
                send_signal(process, self.stop_signal)

    def holds_signal_back(self) -> bool:
        """Return whether the root takes no notice of the request to end."""
        return self.stop_signal == signal.SIGTERM and ignores_sigterm(self.root)

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Debug mode: let a server do nothing meanwhile that SIGTERM ends on the spot.

        One that handles SIGTERM goes on: whichever of its threads woke first would get the signal, and Python, for
        one, then leaves a first thread asleep that waits for it.
        """
        tree = self.processes() if self.root and not handles_sigterm(self._engine()) else []
        for process in tree:
            send_signal(process, signal.SIGSTOP)
        wait_until_stopped(tree, FREEZE_LIMIT)
        try:
            yield
        finally:
            for process in tree:
                send_signal(process, signal.SIGCONT)

    def freeze_all(self) -> list[Process]:
        """Stop all descendants, those of the stop command too, until no new one appears: they cannot fork then."""
        frozen: dict[tuple[int, str], Process] = {}
        for _ in range(_FREEZE_ROUNDS):
            below = {(process.pid, process.start): process for process in descendants(os.getpid())}
            new = [process for key, process in below.items() if key not in frozen]
            if not new:
                break
            for process in new:
                send_signal(process, signal.SIGSTOP)
            frozen = {**below, **frozen}
        return list(frozen.values())

    def _engine(self) -> int:
        """Return the engine's process: the root, or what a profiler there has started."""
        if self.pid_file is not None:
            text = read_file(self.pid_file, 32).strip()
            # Whoever wrote it: only a process of ours is signalled.
            if text.isdigit() and any(process.pid == int(text) for process in self.processes()):
                return int(text)
        return self.root


def describe(process: Process) -> dict[str, Any]:
    """Return what a person wants to know about a process that should have ended."""
    return {"pid": process.pid, "command": command_line(process.pid)}
