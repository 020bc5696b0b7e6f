"""What other processes than the owner are told about a server, and what they may do with it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from pytest_infserver.launcher.supervision.control_socket import ControlSocket, Visitor
from pytest_infserver.launcher.supervision.ownership import MAX_SECONDS, Ownership
from pytest_infserver.launcher.supervision.stopping import Stop
from pytest_infserver.launcher.supervision.tree.server_tree import ServerTree
from pytest_infserver.system.processes.owner import Owner
from pytest_infserver.system.processes.table import read_process


class Answers:
    """Answers who comes to the control socket; there may be none.

    Attributes:
        control_socket: Where they come to, or None.
        info: What the owner says of the server.
        guard: Pid of the guard above this process, or None.
    """

    def __init__(self, tree: ServerTree, stop: Stop, ownership: Ownership) -> None:
        """Prepare to answer; `open` opens the socket."""
        self.control_socket: ControlSocket | None = None
        self.info: dict[str, Any] = {}
        self.guard: int | None = None
        self._tree = tree
        self._stop = stop
        self._ownership = ownership
        self._waiting: list[Visitor] = []  # until the server is gone

    def open(self, folder: str) -> None:
        """Open the control socket."""
        try:
            self.control_socket = ControlSocket(folder)
        except OSError as error:
            # In the server's log: it runs all the same.
            print(f"infserver: nobody can ask about this server: {folder}: {error}", file=sys.stderr)  # noqa: T201

    def close(self, answer: Mapping[str, Any]) -> None:
        """Close it, with an answer for those who wait for the server's end."""
        control_socket, self.control_socket = self.control_socket, None
        if control_socket is not None:
            for visitor in self._waiting:
                control_socket.answer(visitor, answer)
            control_socket.close()

    def attend(self, readable: set[int]) -> None:
        """Answer who has come; nothing that happens there may harm the server."""
        if self.control_socket is None:
            return
        try:
            for visitor, question in self.control_socket.serve(readable):
                self._reply(self.control_socket, visitor, question)
        except Exception as error:
            # As the module traceback does, which takes 2 ms to import.
            sys.excepthook(type(error), error, error.__traceback__)
            self.close({})

    def identity(self) -> dict[str, Any]:
        """Return what a new owner is told: the processes that it has to do with, and the path of the socket."""
        path = None if self.control_socket is None else self.control_socket.path
        return {**self._tree.identity(), "control_socket": path}

    def _reply(self, control_socket: ControlSocket, visitor: Visitor, question: Mapping[str, Any]) -> None:
        if question["do"] == "describe":
            control_socket.answer(visitor, self._description())
        elif question["do"] == "stop":
            if not self._stop.begun and not self._tree.root_exited:
                self._stop.by = f"`infserver stop` (pid {visitor.peer.pid})"
            self._waiting.append(visitor)
            self._stop.begin(_seconds(question.get("timeout")))
        elif question["do"] == "take_over":
            self._hand_over(control_socket, visitor, question)
        else:
            control_socket.answer(visitor, {"event": "failed", "message": "not understood"})

    def _hand_over(self, control_socket: ControlSocket, visitor: Visitor, question: Mapping[str, Any]) -> None:
        """Make a visitor the owner of a kept server."""
        free = self._ownership.kept_until is not None and not self._stop.begun and not self._tree.root_exited
        # Without a pid, as from another container, nobody would see its end.
        if not free or question.get("fingerprint") != self.info.get("fingerprint") or visitor.peer.pid <= 0:
            control_socket.answer(visitor, {"event": "failed", "message": "it is not free, or not what was asked for"})
            return
        owner = Owner(visitor.peer.pid, is_parent=False)
        guard = self.guard if self.guard == os.getppid() else None
        channel = control_socket.hand_over(visitor, {"event": "taken_over", "guard": guard, **self.identity()})
        if channel is None:
            owner.forget()
            return
        self._ownership.hand_over(channel, owner)
        self._stop.timeout = _seconds(question.get("stop_timeout")) or self._stop.timeout
        if isinstance(question.get("info"), dict):
            self.info.update(question["info"])

    def _description(self) -> dict[str, Any]:
        ends = self._stop.begun or self._tree.root_exited
        state = "stopping" if ends else "running" if self._tree.ready else "starting"
        until = self._ownership.kept_until
        root = read_process(self._tree.root)
        return {
            "info": self.info,
            "root": self._tree.root,
            "root_start": None if root is None else root.start,
            "supervisor": os.getpid(),
            "owner": None if until is not None else self._ownership.owner.pid,
            "state": "kept" if until is not None and state == "running" else state,
            "left": None if until is None else max(0.0, until - time.monotonic()),
            "stop_timeout": self._stop.timeout,
        }


def _seconds(value: object) -> float | None:
    """Return a time that a visitor has asked for, or None if that is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS:
        return None
    return float(value)
