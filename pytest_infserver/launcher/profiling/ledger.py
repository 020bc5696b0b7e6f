"""What is being profiled of one server, in a file beside its log: every process that uses the server sees it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from psutil import pid_exists

from pytest_infserver.system.disk.files import read_start, remove_file, write_whole
from pytest_infserver.system.disk.locks import wait_for_lock
from pytest_infserver.system.processes.table import read_process

_MAX_READ = 1 << 20
_LOCK_LIMIT = 60.0
"""Seconds that others may take to change the file: each needs a moment."""


def this_process() -> tuple[int, str]:
    """Return this process's id, and when it began; that is "" where the system has no /proc."""
    me = read_process(os.getpid())
    return os.getpid(), "" if me is None else me.start


@dataclass(frozen=True)
class Stretch:
    """One profile that is being made.

    Attributes:
        tool: The profiler.
        name: What it is called.
        target: Its file or folder.
        automatic: Whether it is that of the server's whole life, which gives way to any other.
        phase: ``beginning``, ``running`` or ``ending``.
        pid: The process that has asked for it.
        start: When that process began.
        is_piece: Whether it is a part of a whole life that was cut by another profile.
        resume: Whether the profile of the whole life goes on after it.
        running: What the profiler has to know at its end.
    """

    tool: str
    name: str
    target: str
    automatic: bool
    phase: str
    pid: int
    start: str
    is_piece: bool = False
    resume: bool = False
    running: dict[str, Any] = field(default_factory=dict)

    @property
    def is_abandoned(self) -> bool:
        """Whether the process that has asked for it is gone."""
        process = read_process(self.pid)
        if process is None and not self.start:
            # A system that has no /proc.
            return not pid_exists(self.pid)
        return process is None or process.zombie or process.start != self.start

    def now(self, phase: str, running: dict[str, Any] | None = None) -> Stretch:
        """Return it in another phase."""
        return replace(self, phase=phase, running=self.running if running is None else running)

    @property
    def can_be_ended(self) -> bool:
        """Whether nobody is about to begin or to end it."""
        return self.phase == "running" or self.is_abandoned

    def ended_here(self) -> Stretch:
        """Return it as what this process ends, so that the others see if that is gone, too."""
        pid, start = this_process()
        return replace(self, phase="ending", pid=pid, start=start)


@dataclass
class Entry:
    """The file's content.

    Attributes:
        place: That of the server's launch, if it was started for a profiler.
        stretch: What is being profiled now.
    """

    place: dict[str, str] | None = None
    stretch: Stretch | None = None


class Ledger:
    """The file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "profile.json"
        self._lock = folder / ".profile.lock"

    def exists(self) -> bool:
        """Return whether it says anything."""
        return self._path.exists()

    def read(self) -> Entry:
        """Return what it says now; nothing if there is none."""
        try:
            data = json.loads(read_start(self._path, _MAX_READ))
            stretch = data["stretch"]
            return Entry(data["place"], None if stretch is None else Stretch(**stretch))
        except (OSError, ValueError, KeyError, TypeError):
            return Entry()

    @contextlib.contextmanager
    def changed(self) -> Iterator[Entry]:
        """Let one process at a time change it; only for moments.

        Raises:
            OSError: It cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = wait_for_lock(self._lock, _LOCK_LIMIT)
        try:
            entry = self.read()
            yield entry
            self._write(entry)
        finally:
            os.close(descriptor)

    def _write(self, entry: Entry) -> None:
        if entry.place is None and entry.stretch is None:
            remove_file(self._path)
            return
        stretch = None if entry.stretch is None else asdict(entry.stretch)
        write_whole(self._path, json.dumps({"place": entry.place, "stretch": stretch}).encode())
