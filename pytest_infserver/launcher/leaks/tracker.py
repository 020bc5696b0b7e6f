"""Follows one server's processes and what they hold, and says at the end what is left."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from pytest_infserver.launcher.leaks.holdings import Holdings, read_holdings
from pytest_infserver.launcher.leaks.ports import Ports
from pytest_infserver.launcher.leaks.shm import SharedMemory
from pytest_infserver.launcher.leaks.shm_alarm import open_alarm, quiet_alarm
from pytest_infserver.launcher.leaks.sysv import SysVSharedMemory
from pytest_infserver.launcher.leaks.temporary_files import TemporaryDirectory
from pytest_infserver.launcher.leaks.unix_sockets import UnixSockets
from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.processes.table import Process, age, command_line, read_process

Result = TypeVar("Result")


class Watch(Protocol):
    """Follows one kind of resource."""

    what: ClassVar[str]

    def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
        """Note what the server's processes hold now, and that what its owner holds is not the server's."""

    def left(self) -> list[Finding]:
        """Return what is left now that the processes are gone, after removing it."""


class Tracker:
    """Follows one server from before its launch; lives in its supervisor.

    Attributes:
        alarm: Descriptor that becomes readable when it is time for a look, or None.
    """

    def __init__(self, owner_pid: int, tmpdir: str) -> None:
        """Note what exists before the server does.

        Args:
            owner_pid: The process whose objects are never taken for the server's.
            tmpdir: The path of the temporary directory that is made for the server.
        """
        self._owner_pid = owner_pid
        self._not_checked: list[str] = []
        self._seen: dict[tuple[int, str], str] = {}
        self._processes: list[Finding] = []
        self.alarm: int | None = None
        self._watches: list[Watch] = []
        kinds: tuple[type[Watch], ...] = (SharedMemory, SysVSharedMemory, Ports, UnixSockets)
        if sys.platform == "linux":
            self.alarm = open_alarm()
            self._watches = [watch for kind in kinds if (watch := self._attempt(kind.what, kind)) is not None]
        else:
            self._not_checked.append(f"shared memory, sockets and ports: not on {sys.platform}")
        self._directory: TemporaryDirectory | None = TemporaryDirectory(tmpdir)
        try:
            self._directory.make()
        except OSError as error:
            self._directory = None
            self._not_checked.append(f"temporary files: {tmpdir} cannot be made ({error.strerror})")

    @property
    def tmpdir(self) -> str | None:
        """The server's own temporary directory, or None if none could be made."""
        return None if self._directory is None else self._directory.path

    def prepare(self) -> None:
        """Begin a look, before anybody asks which processes the server has."""
        if self.alarm is not None:
            quiet_alarm(self.alarm)
        for watch in list(self._watches):
            if isinstance(watch, SharedMemory):
                self._attempt(watch.what, watch.prepare, watch)

    def look(self, tree: Sequence[Process]) -> None:
        """Note what the server's processes hold now."""
        owner = read_process(self._owner_pid) if self._watches else None
        owner_held = None if owner is None else read_holdings(owner)
        held = [read_holdings(process) for process in tree] if self._watches else []
        for process in tree:
            # One that has just ended has no command line any more.
            self._seen.setdefault((process.pid, process.start), "")
        self._seen.update({(one.process.pid, one.process.start): one.command for one in held if one.command})
        for watch in list(self._watches):
            self._attempt(watch.what, functools.partial(watch.look, held, owner_held), watch)

    def note_blindness(self, reason: str) -> None:
        """Note that not all could be seen."""
        self._not_checked.append(reason)

    def note_left(self, tree: Sequence[Process], root: int, waited: str) -> None:
        """Note processes that should have ended, before they are asked to or killed.

        Args:
            tree: These processes.
            root: The server's root process.
            waited: How long they were waited for, in words.
        """
        self.look(tree)
        for process in tree:
            command = command_line(process.pid) or self._seen[process.pid, process.start]
            detail = f"{_role(process, root)}, did not end within {waited}"
            self._processes.append(
                Finding("process", command or "no command line", detail, process.pid, command, age(process))
            )
        for watch in list(self._watches):
            if isinstance(watch, Ports):
                others = [read_holdings(process) for process in tree if process.pid != root]
                action = functools.partial(watch.held_by, others)
                self._processes += self._attempt(watch.what, action, watch) or []

    def finish(self, stuck: Sequence[int]) -> dict[str, Any]:
        """Return what is left now that the processes are gone, and remove it.

        Args:
            stuck: Processes that could not be killed.
        """
        findings = [
            finding._replace(removed=finding.pid not in stuck) if finding.kind in ("process", "port") else finding
            for finding in self._processes
        ]
        for watch in list(self._watches):
            findings += self._attempt(watch.what, watch.left, watch) or []
        if self._directory is not None:
            findings += self._attempt("temporary files", self._directory.left) or []
        # The last command line says the most: workers rename themselves once they run.
        latest = {pid: command for (pid, _), command in self._seen.items()}
        findings = [one._replace(command=latest.get(one.pid or 0) or one.command) for one in findings]
        return {
            "findings": [finding._asdict() for finding in findings],
            "not_checked": self._not_checked,
            "processes": [(pid, start, command) for (pid, start), command in self._seen.items()],
        }

    def _attempt(self, what: str, action: Callable[[], Result], watch: Watch | None = None) -> Result | None:
        try:
            return action()
        except Exception as error:
            # The server must not fall because its leaks cannot be looked for.
            if watch is not None:
                self._watches.remove(watch)
            self._not_checked.append(f"{what}: {type(error).__name__}: {error}")
            return None


def _role(process: Process, root: int) -> str:
    if process.pid == root:
        return "the root process"
    if process.group == root:
        return "in the server's process group"
    if process.session == root:
        return "in a process group of its own"
    return "in a session of its own"
