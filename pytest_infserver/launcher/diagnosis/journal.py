"""What happened to one server: kept in memory, and written as JSON lines beside its log as it happens."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_infserver.system.disk.files import open_append, remove_file
from pytest_infserver.system.text import cleaned

logger = logging.getLogger("pytest_infserver")

FILE = "events.jsonl"
_MAX_EVENTS = 10_000


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        time: When, in seconds since the epoch.
        kind: What: starting, placed, launched, taken_over, attached, phase, ready, failed, died, child_died,
            asleep, awake, stopping, stopped, kept, profile, test.
        fields: More about it; JSON values.
    """

    time: float
    kind: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        """Return the line of the file."""
        entry = {"time": round(self.time, 3), "event": self.kind, **self.fields}
        return json.dumps(entry, ensure_ascii=False, default=str)


class Journal:
    """The events of one server, in order; may be used by several threads.

    Attributes:
        on_event: Gets each event after it was written.
    """

    def __init__(self, secrets: Callable[[], frozenset[str]] = frozenset) -> None:
        """Begin without events.

        Args:
            secrets: Returns the values to hide in what is noted.
        """
        self._secrets = secrets
        self.on_event: Callable[[Event], object] = lambda event: None
        self._events: list[Event] = []
        self._unwritten: list[Event] = []
        self._path: Path | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def events(self) -> list[Event]:
        """All events so far, but not those of single tests; at most 10,000."""
        with self._own_lock():
            return list(self._events)

    def open(self, folder: Path, *, goes_on: bool = False) -> None:
        """Write to this folder from now on; what an earlier server wrote there is replaced.

        Args:
            folder: That of the log.
            goes_on: Whether it is the same server as before, so that what it wrote stays.
        """
        path = folder / FILE
        with self._own_lock():
            if path != self._path and not goes_on:
                with contextlib.suppress(OSError):
                    remove_file(path)
            self._path = path
            for event in self._unwritten:
                self._write(path, event)
            self._unwritten = []

    def note(self, kind: str, at: float | None = None, **fields: Any) -> None:
        """Note an event.

        Args:
            kind: What happened.
            at: When, in seconds since the epoch; now if None.
            **fields: More about it.
        """
        # Looking for secrets takes its time; numbers have none.
        if any(not isinstance(value, (int, float, type(None))) for value in fields.values()):
            fields = cleaned(fields, self._secrets())
        event = Event(time.time() if at is None else at, kind, fields)
        with self._own_lock():
            if kind != "test" and len(self._events) < _MAX_EVENTS:
                self._events.append(event)
            if self._path is not None:
                self._write(self._path, event)
            elif len(self._unwritten) < _MAX_EVENTS:
                self._unwritten.append(event)
        try:
            self.on_event(event)
        except Exception:
            # Whoever records must not keep a server from starting or stopping.
            logger.exception("on_event failed: %s", kind)

    def _own_lock(self) -> threading.Lock:
        if os.getpid() != self._pid:
            # After a fork that of the parent may be held for ever.
            self._pid, self._lock = os.getpid(), threading.Lock()
        return self._lock

    def _write(self, path: Path, event: Event) -> None:
        # Nor must a full disk, or a removed folder.
        with contextlib.suppress(OSError), open(open_append(path), "ab") as file:  # noqa: PTH123
            file.write(f"{event}\n".encode("utf-8", "replace"))
