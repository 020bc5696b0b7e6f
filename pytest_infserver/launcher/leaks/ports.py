"""Listening TCP ports: those that a process left behind holds, and those that outlive all processes we know of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

from pytest_infserver.launcher.leaks.holdings import Holdings
from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.proc_net import Listener, listeners, socket_inodes
from pytest_infserver.system.processes.table import age, command_line, read_process


class Ports:
    """Which listening sockets a server's processes had."""

    what: ClassVar[str] = "listening ports"

    def __init__(self) -> None:
        # A server may also be handed a socket.
        self._not_ours = {listener.inode for listener in listeners()}
        self._held: set[str] = set()

    def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
        """Note the listening sockets of the server's processes, and that what its owner holds is not the server's."""
        self._held.update(listener.inode for listener, _ in _held_by(tree))
        if owner is not None:
            self._not_ours.update(self._held & owner.sockets)

    def held_by(self, processes: Sequence[Holdings]) -> list[Finding]:
        """Return the ports that processes which should have ended still listen on."""
        return [
            Finding("port", str(listener), "", held.process.pid, held.command, age(held.process), removed=True)
            for listener, held in _held_by(processes)
            if listener.inode not in self._not_ours
        ]

    def left(self) -> list[Finding]:
        """Return the ports that are still listened on now that the processes are gone: the socket was passed on."""
        open_still = [listener for listener in listeners() if listener.inode in self._held - self._not_ours]
        return [self._finding(listener) for listener in open_still]

    def _finding(self, listener: Listener) -> Finding:
        for name in os.listdir("/proc"):  # noqa: PTH208
            if name.isdigit() and listener.inode in socket_inodes(int(name)):
                holder = read_process(int(name))
                return Finding(
                    "port",
                    str(listener),
                    "passed on to a process that is not the server's",
                    int(name),
                    command_line(int(name)),
                    None if holder is None else age(holder),
                )
        return Finding("port", str(listener), "holder unknown")


def _held_by(processes: Sequence[Holdings]) -> list[tuple[Listener, Holdings]]:
    holders = {inode: held for held in processes for inode in held.sockets}
    return [(listener, holders[listener.inode]) for listener in listeners() if listener.inode in holders]
