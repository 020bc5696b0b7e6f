"""Whether the kernel has killed a server, or one of its processes, because memory ran out."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pytest_infserver.launcher.diagnosis.memory_finding import Finding as Finding
from pytest_infserver.launcher.diagnosis.memory_finding import Whom as Whom
from pytest_infserver.launcher.supervision.exit import Exit
from pytest_infserver.system.cgroup_memory import (
    PROC,
    Level,
    Limit,
    folder_of,
    levels,
    place,
    reread,
    tightest_limit,
)
from pytest_infserver.system.kernel_log import KMSG, KernelLog, Kill, knows_our_pids
from pytest_infserver.system.processes.table import descendants, is_alive

_LOOK_INTERVAL = 1.0
"""Seconds between two looks at a starting server's processes, if that does not take long."""
_LOOK_SHARE = 50
"""Looks take at most one part in so many of the time."""
_SECOND_LOOK = 0.02
"""Seconds: the kernel writes its line a moment after the process has got its signal."""
_MAX_NAMED = 3
_SHELL_KILLED = 128 + signal.SIGKILL
"""How shells and wrappers say that what they have started was killed by SIGKILL."""

_ADVICE = (
    "memory of the host, not of a GPU (--gpu-memory-utilization does not change it): {limit}take a smaller model or"
    " context, or run fewer servers at a time (--infserver-max-servers)"
)


class OutOfMemoryWatch:
    """Knows what the kernel's counters were when a server was launched. Where there are none it finds nothing.

    Nothing is read while the server runs.
    """

    def __init__(self, pid: int | None = None, *, proc: Path = PROC, kmsg: Path = KMSG) -> None:
        """Read the counters, before the launch: the server is going to be in this process's cgroup.

        Args:
            pid: A server that runs already, which may be in another one.
            proc: Where the kernel shows the processes.
            kmsg: Where the kernel shows its log.
        """
        self._proc = proc
        self._place = b""
        self._levels: tuple[Level, ...] = ()
        # Whatever is odd about this machine, the server has to start.
        with contextlib.suppress(Exception):
            self._place, self._levels = place(pid, proc), levels(pid, proc)
        self._log = KernelLog(kmsg)
        self._names_ours = self._log.complete and knows_our_pids(proc)
        self._pids: dict[int, str | None] = {}
        self._next_look = 0.0
        self._lock = threading.Lock()
        self._known: tuple[Exit | None, Finding | None] | None = None

    def look(self, root: int | None, supervisor: int | None, *, now: bool = False) -> None:
        """Note what the server's processes are, and whether it has moved to another cgroup.

        Args:
            root: The server's root process.
            supervisor: The process above all of its processes.
            now: Whether this is worth the time, which else is limited.
        """
        begin = time.monotonic()
        if root is None or supervisor is None or (begin < self._next_look and not now):
            return
        with contextlib.suppress(Exception):
            self._look(root, supervisor)
        self._next_look = begin + max(_LOOK_INTERVAL, (time.monotonic() - begin) * _LOOK_SHARE)

    def _look(self, root: int, supervisor: int) -> None:
        self._pids[root] = self._pids[supervisor] = None
        where = place(root, self._proc)
        if where and where != self._place:
            # The counters of another cgroup say nothing until they have been read once. One that counts nothing itself,
            # as the server's own, has those above it, which are known.
            found = levels(root, self._proc)
            self._place = where
            if [level.folder for level in found] != [level.folder for level in self._levels]:
                self._levels = found
        # Only the kernel's log names processes.
        for process in descendants(supervisor) if self._names_ours else ():
            self._pids.setdefault(process.pid, process.start)

    def finding(self, root: int | None, how: Exit | None, *, ours: bool = False) -> Finding | None:
        """Return what the kernel has to do with a server's end; once found it stays that.

        Args:
            root: The process that was its root.
            how: How that ended by itself; None if it was ended.
            ours: Whether it was killed by this package.
        """
        with self._lock:
            if self._known is None or self._known[0] != how:
                found = None
                # Whatever is odd about this machine, the server's end has to be told.
                with contextlib.suppress(Exception):
                    found = self._find(root, how, ours)
                self._known = how, found
            return self._known[1]

    def close(self) -> None:
        """Watch no more; what was found stays known."""
        self._log.close()

    def _find(self, root: int | None, how: Exit | None, ours: bool) -> Finding | None:
        killed = how is not None and how.code in (-signal.SIGKILL, _SHELL_KILLED)
        unexplained = killed and not ours and how is not None and how.stopped_by is None
        count, level, certain = self._count()
        kills = self._log.kills()
        if unexplained and count and not kills and self._log.complete:
            time.sleep(_SECOND_LOOK)
            kills = self._log.kills()
        own = [kill for kill in kills if self._names_ours and self._is_own(kill.pid, root)]
        if own:
            whom = Whom.ROOT if any(kill.pid == root for kill in own) else Whom.PART
            return _blamed(whom, f"the kernel killed {_named(own)} for memory", self._limit_of(own[0]))
        if not count or level is None:
            return None
        counted = f"{level.file} counts {count} more than at the launch"
        # If the log tells of all those who were counted, it was none of the server's.
        others = self._names_ours and self._log.complete and len(kills) >= count
        if unexplained and certain and not others:
            whom = Whom.ROOT if how is not None and how.code == -signal.SIGKILL else Whom.PART
            who = "it" if whom is Whom.ROOT else "one of its processes"
            return _blamed(whom, f"the kernel killed {who} for memory: {counted}", self._reached_limit())
        named = f": {_named(kills)}" if others else ""
        fact = f"the kernel killed for memory in its cgroup meanwhile{named} ({counted})"
        return Finding(Whom.SOMEBODY, (fact, "nothing says that it was one of this server's processes"))

    def _is_own(self, pid: int, root: int | None) -> bool:
        if pid == root:
            return True
        if pid not in self._pids:
            return False
        start = self._pids[pid]
        return start is None or not is_alive(pid, start)

    def _count(self) -> tuple[int, Level | None, bool]:
        """Return how often was killed since the launch, where that is counted, and whether just there."""
        for before in self._levels:
            after = reread(before)
            if after is None:
                # It went with the server; those above have counted for it.
                continue
            own = before is self._levels[0]
            if own and before.kills is not None and after.kills is not None and after.kills > before.kills:
                return after.kills - before.kills, after, True
            count = after.kills_below - before.kills_below
            return max(0, count), after, own and after.kills is None
        return 0, None, False

    def _limit_of(self, kill: Kill) -> Limit | None:
        if kill.in_cgroup is False:
            return None
        folder = None if kill.cgroup is None else folder_of(kill.cgroup, self._proc)
        return self._reached_limit() if folder is None else tightest_limit((folder,))

    def _reached_limit(self) -> Limit | None:
        limit = tightest_limit(tuple(level.folder for level in self._levels))
        return None if limit is not None and limit.reached is False else limit


def _blamed(whom: Whom, fact: str, limit: Limit | None) -> Finding:
    if limit is None:
        return Finding(whom, (fact, "no limit of its cgroup is known that was reached", _ADVICE.format(limit="")))
    peak = "" if limit.peak is None else f", peak {shown_bytes(limit.peak)}"
    where = f"the limit of its cgroup is {shown_bytes(limit.size)}{peak} ({limit.file})"
    return Finding(whom, (fact, where, _ADVICE.format(limit=f"raise {limit.file.name}, ")))


def _named(kills: Sequence[Kill]) -> str:
    names = [f"pid {kill.pid} ({kill.name}, {shown_bytes(kill.resident)} resident)" for kill in kills[:_MAX_NAMED]]
    more = len(kills) - _MAX_NAMED
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def shown_bytes(size: int) -> str:
    """Return a size as text, in the units in which limits are set: ``64 MiB``, ``1.5 GiB``."""
    return f"{size / 1024**2:.0f} MiB" if size < 1024**3 else f"{size / 1024**3:.1f} GiB"
