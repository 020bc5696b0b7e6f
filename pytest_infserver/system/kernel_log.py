"""Which processes the kernel says it has killed for memory, where its log can be read."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from pytest_infserver.system.text import one_line

KMSG = Path("/dev/kmsg")
_INITIAL_PIDS = "pid:[4026531836]"
"""The first pid namespace: its number is the same on every Linux."""
_RECORD = 16 * 1024
"""Bytes that one read gets; the kernel refuses one that is too small for the record."""
_MAX_READS = 200_000
_LIMIT = 1.0
"""Seconds that reading may take."""
_MAX_KILLS = 1000

_KILLED = re.compile(rb"Killed process (\d{1,10}) \((.{0,64})\),? (?:total-vm|vsz|UID)")
_SUMMARY = re.compile(rb"^oom-kill:.{0,2000},oom_memcg=(/.{0,1000}),task_memcg=.{0,2000},pid=(\d{1,10}),uid=\d+$")
_RESIDENT = re.compile(rb"(?:anon|file|shmem)-rss:(\d{1,12})kB")


@dataclasses.dataclass(frozen=True)
class Kill:
    """A process that the kernel has killed for memory.

    Attributes:
        pid: Its process id, as the machine's first pid namespace knows it.
        name: What it was called.
        resident: How much memory it held, in bytes.
        in_cgroup: Whether the limit of a cgroup was the reason, and not the machine's memory; None if it does not say.
        cgroup: The path of that cgroup, where it says so.
    """

    pid: int
    name: str
    resident: int
    in_cgroup: bool | None
    cgroup: str | None = None


class KernelLog:
    """What the kernel writes from the moment on at which this object is made."""

    def __init__(self, path: Path = KMSG) -> None:
        """Remember the end of the log; nothing of it is read.

        Args:
            path: Where the kernel shows its log.
        """
        self._handle: int | None = None
        self._gap = False
        self._kills: list[Kill] = []
        self._cgroup = 0, ""
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.lseek(handle, 0, os.SEEK_END)
            except OSError:
                os.close(handle)
                raise
            self._handle = handle
            self._close = weakref.finalize(self, os.close, handle)

    def kills(self) -> list[Kill]:
        """Return which processes have been killed for memory since the beginning, as far as the log tells."""
        for text in filter(None, map(_message, self._new_lines())):
            # Comes just before the line about the process.
            summary = _SUMMARY.search(text)
            if summary is not None:
                self._cgroup = int(summary[2]), summary[1].decode("utf-8", "surrogateescape")
            kill = parse(text)
            if kill is not None and len(self._kills) < _MAX_KILLS:
                pid, cgroup = self._cgroup
                self._kills.append(dataclasses.replace(kill, cgroup=cgroup) if pid == kill.pid else kill)
        return list(self._kills)

    @property
    def complete(self) -> bool:
        """Whether all could be read: what is not in `kills` has not happened."""
        return self._handle is not None and not self._gap

    def close(self) -> None:
        """Read no more."""
        if self._handle is not None:
            self._handle, self._gap = None, True
            self._close()

    def _new_lines(self) -> Iterator[bytes]:
        deadline = time.monotonic() + _LIMIT
        unfinished = b""
        for _ in range(_MAX_READS):
            if self._handle is None or time.monotonic() > deadline:
                break
            try:
                data = os.read(self._handle, _RECORD)
            except BlockingIOError:
                return
            except BrokenPipeError:
                # The oldest have been overwritten; the next read goes on behind them.
                self._gap = True
                continue
            except OSError:
                break
            if not data:
                return
            *lines, unfinished = (unfinished + data)[-2 * _RECORD :].split(b"\n")
            yield from lines
        self._gap = True


def _message(record: bytes) -> bytes:
    """Return the text of a record that is the kernel's own, else nothing."""
    head, _, text = record.partition(b";")
    priority = head.partition(b",")[0]
    # Programs may write there, too, but not in the kernel's name.
    own = priority.isdigit() and len(priority) <= 6 and int(priority) >> 3 == 0
    return text if own else b""


def parse(text: bytes) -> Kill | None:
    """Return what a message of the kernel says of a process that was killed for memory, or None."""
    match = _KILLED.search(text)
    if match is None:
        return None
    resident = sum(int(number) for number in _RESIDENT.findall(text, match.end(2))) * 1024
    name = one_line(match[2])
    reasons = ((b"Memory cgroup", True), (b"Out of memory", False))
    in_cgroup = next((answer for words, answer in reasons if text.startswith(words)), None)
    return Kill(int(match[1]), name, resident, in_cgroup)


def knows_our_pids(proc: Path = Path("/proc")) -> bool:
    """Return whether the process ids of the kernel's log are those that this process sees: not so in a container."""
    try:
        return str((proc / "self/ns/pid").readlink()) == _INITIAL_PIDS
    except OSError:
        return False
