"""How a supervisor ends its server: SIGTERM to the root, time for what is below it, SIGKILL to what is left then."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_infserver.launcher.supervision.limits import (
    ASKED_GRACE,
    DRAIN_GRACE,
    KILL_LIMIT,
    OWNER_GONE_GRACE,
    SETTLE,
    STARTUP_GRACE,
    STUBBORN_GRACE,
)
from pytest_infserver.launcher.supervision.tree.looks import Looks
from pytest_infserver.launcher.supervision.tree.server_tree import ServerTree, describe
from pytest_infserver.system.processes.table import Process, ignores_sigterm, is_alive, send_signal

_PART_OF_TIME = 0.4
"""Part of its time to end after which a root counts as a wrapper that does not pass the request on."""
_PID = re.compile(rb"(?<!\\)\{pid\}")


class Stop:
    """The end of one server, asked for or not.

    Attributes:
        timeout: Seconds between the request and the kill, if the request does not say otherwise.
        command: Command that stops what is not a descendant of the root, or None.
        env: The environment of that command, which is the server's.
        cwd: The directory of both; this process's if None.
        begun: Whether the server has been asked to end.
        by: Who has asked for it, if that was not the owner.
        survivors: What is told of the processes that had to be killed, by pid and beginning.
    """

    def __init__(self, tree: ServerTree, looks: Looks, send: Callable[..., object]) -> None:
        """Prepare it.

        Args:
            tree: The server's processes.
            looks: What looks at them before they end.
            send: Tells the owner something.
        """
        self.timeout = 30.0
        self.command: Sequence[bytes] | None = None
        self.env: Mapping[bytes, bytes] = {}
        self.cwd: bytes | None = None
        self.begun = False
        self.by: str | None = None
        self.survivors: dict[tuple[int, str], dict[str, Any]] = {}
        self._tree = tree
        self._looks = looks
        self._send = send
        self._orderly = False  # asked to stop with all that it needs to do so by itself
        self._deadline: float | None = None  # when what is left is killed
        self._ask_rest_at: float | None = None  # when all below a root are asked that has not ended
        self._root_unasked = False  # a command that names the root has asked it, not we
        self._limit: float | None = None  # no deadline is later than this; there is one when the owner is gone
        self._drain_since: float | None = None  # when the root ended
        self._drain_asked = False
        self._noted = False  # debug mode: which processes were left
        self._stubborn_since: float | None = None
        self._killed_since: float | None = None

    def begin(self, timeout: float | None = None) -> None:
        """Ask the root to end; it and its descendants are killed after ``timeout`` seconds."""
        timeout = self.timeout if timeout is None else timeout
        if not self._tree.ready and self.command is None:
            timeout = min(timeout, STARTUP_GRACE)
        if self.begun:
            if self._deadline is not None:
                self._deadline = min(self._deadline, time.monotonic() + timeout)
            return
        self.begun = True
        self._orderly = self._tree.ready and not self._tree.root_exited
        with self._looks.standing_still():
            self._looks.look()
            deadline = time.monotonic() + timeout
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            if self._tree.root and not self._tree.root_exited and not self._run_command():
                self._ask_root()

    def begin_without_owner(self) -> None:
        """Ask the root to end because the owner is gone."""
        self._limit = time.monotonic() + self.timeout + OWNER_GONE_GRACE
        self.begin()

    def begin_after_kill(self) -> None:
        """End what the guard has left of a server whose supervisor was killed."""
        self._looks.look()
        # Nobody has asked these processes to end: that they are there is no finding.
        self.begun = self._noted = True
        self._deadline = time.monotonic() + (self.timeout if self._run_command() else 0)

    def root_ended(self) -> None:
        """Give the descendants of a root that has ended their time."""
        if not self.begun:
            # What the root stood for may live on without it: a container whose docker client was killed.
            self._run_command()
        self._drain_since = time.monotonic()
        if self._killed_since is None:
            asked = self._settle() + ASKED_GRACE if self._looks.are_taken else 0
            grace = max(min(DRAIN_GRACE, self.timeout), asked)
            if self._tree.stopper:
                grace = max(grace, self.timeout)
            deadline = self._drain_since + grace
            self._deadline = deadline if self._limit is None else min(deadline, self._limit)

    def command_ended(self, code: int) -> None:
        """Go on after the stop command."""
        self._tree.stopper = 0
        if self._killed_since is not None:
            self._send(event="stop_command", problem=f"did not end within {self.timeout:g} s")
        elif code != 0:
            self._send(event="stop_command", problem=f"ended with exit code {code}")
        if self._tree.root_exited:
            self._drain_since = time.monotonic()
        elif code == 0 and self._names_root():
            # It has asked the root in its own way; SIGTERM at once would cut short what that does then.
            self._ask_rest_at = self._part_of_time(time.monotonic())
            self._root_unasked = True
        else:
            self._ask_root()

    def _ask_root(self) -> None:
        """Ask the root to end; part-way through its time all below it, if it is a wrapper that does not pass it on."""
        held_back = self._tree.holds_signal_back()
        self._tree.terminate_root()
        now = time.monotonic()
        self._ask_rest_at = now if held_back else self._part_of_time(now)

    def _part_of_time(self, now: float) -> float:
        """Return the moment at which a part of the time is over that is left to end."""
        left = max(0.0, (now if self._deadline is None else self._deadline) - now)
        return now + left * _PART_OF_TIME

    def _names_root(self) -> bool:
        return self.command is not None and any(map(_PID.search, self.command))

    def ask_rest_when_due(self) -> None:
        """Ask what is below a root that has not ended in part of its time."""
        due = self._ask_rest_at
        if due is None or time.monotonic() < due:
            return
        self._ask_rest_at = None
        if self._tree.root_exited or self._killed_since is not None:
            return
        if self._root_unasked:
            self._root_unasked = False
            self._ask_root()
        else:
            self._tree.ask_below_root()

    def drain(self) -> None:
        """See the descendants off that their root has left behind."""
        now = time.monotonic()
        if self._drain_since is None or self._killed_since is not None or self._tree.stopper:
            return
        if now - self._drain_since < self._settle():
            return
        left = self._tree.processes()
        if not self._drain_asked:
            self._drain_asked = True
            if self._orderly:
                self._note_left(left)
            for process in left:
                send_signal(process, self._tree.stop_signal)
        if not all(ignores_sigterm(process.pid) for process in left):
            self._stubborn_since = None
        elif self._stubborn_since is None:
            self._stubborn_since = now
        elif now - self._stubborn_since > STUBBORN_GRACE:
            self._deadline = now

    def kill_when_due(self) -> None:
        """Kill all that is left when its time is up."""
        if self._deadline is None or time.monotonic() < self._deadline or not self._tree.root:
            return
        frozen = self._tree.freeze_all()
        if self._killed_since is None:
            self._looks.look_at_frozen(frozen)
        # Who forks faster than one can look may not be caught at first.
        if not self.survivors:
            helpers = self._tree.helpers(frozen)
            tree = [process for process in frozen if process.pid not in helpers]
            # Of a chain of forks most have ended meanwhile.
            tree = [process for process in tree if is_alive(process.pid, process.start)] or tree
            self._note_left(tree)
            self.survivors = {(process.pid, process.start): describe(process) for process in tree}
        for process in frozen:
            send_signal(process, signal.SIGKILL)
        if self._killed_since is None:
            self._killed_since = time.monotonic()

    def is_over(self) -> bool:
        """Return whether nothing is left to do: all processes have ended, or do not end even by SIGKILL."""
        if self._killed_since is not None and time.monotonic() - self._killed_since > KILL_LIMIT:
            return True
        if not self._tree.root:
            return self.begun
        return self._tree.root_exited and self._tree.childless

    def pace(self) -> float | None:
        """Return the seconds between two looks at processes that end now, or None if none do."""
        if self._killed_since is not None:
            return 0.02
        if self._drain_since is not None and self._drain_asked:
            return 0.1
        return None

    def moments(self) -> list[float]:
        """Return when something is to be done even if nothing happens."""
        moments = []
        if self._drain_since is not None and not self._tree.stopper:
            moments.append(self._drain_since + self._settle())
        if self._ask_rest_at is not None:
            moments.append(self._ask_rest_at)
        if self._deadline is not None:
            moments.append(self._deadline)
        return moments

    def _run_command(self) -> bool:
        """Start the command that stops what is not our descendant; return whether there is one."""
        if self.command is None:
            return False
        if (self._tree.root_exited or self._tree.root <= 0) and self._names_root():
            # Its number may be somebody else's by now.
            return False
        try:
            command = [_with_pid(word, self._tree.root) for word in self.command]
            child = subprocess.Popen(
                command, env=self.env, cwd=self.cwd, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except (OSError, ValueError) as error:
            self._send(event="stop_command", problem=getattr(error, "strerror", None) or str(error))
            return False
        self._tree.stopper = child.pid
        child.returncode = 0  # reaped by the loop, never by Popen
        return True

    def _settle(self) -> float:
        """Return for how many seconds descendants are left to themselves after their root's end."""
        # Without debug mode nobody asks whether they would have gone by themselves.
        patient = self._looks.are_taken and self._orderly and self._limit is None
        return min(DRAIN_GRACE, self.timeout) if patient else SETTLE

    def _note_left(self, processes: Sequence[Process]) -> None:
        if self._noted or not processes:
            return
        self._noted = True
        since = "of the request to stop" if self._drain_since is None else "of the server's end"
        seconds = self.timeout if self._drain_since is None else self._settle()
        self._looks.note_left(processes, f"{seconds:g} s {since}")


def _with_pid(word: bytes, pid: int) -> bytes:
    """Return a word of the stop command with the root's pid for ``{pid}``; ``\\{pid}`` is ``{pid}`` itself."""
    return _PID.sub(str(pid).encode(), word).replace(b"\\{pid}", b"{pid}")
