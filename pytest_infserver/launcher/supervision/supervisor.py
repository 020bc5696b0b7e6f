"""The parent process of one server: reports its exit at once, stops its whole tree, outlives its owner.

Runs under ``python -I -S`` and imports only the standard library and modules of ours that do so too: it starts in some
20 ms and cannot be broken by the environment of the server or of the owner. The owner is the process
that uses `pytest_infserver.launcher.supervision.supervised_process`; both talk in JSON lines over one socket.

To the supervisor: {"do": "launch", "argv", "env", "stop_timeout", "stop_command", "private_tmpdir", "control_socket",
"info", "pid_file", "scratch", "work_folder", "cwd", "stop_signal",
"fails_with_child"}, then {"do": "ready"}, {"do": "stop", "timeout", "by"}, {"do": "keep",
"seconds"}, {"do": "update", "info"}. From it: {"event": "launched", "pid", "start", "supervisor", "supervisor_start",
"control_socket", "cgroup"} or {"event": "failed", "message"}, then {"event": "exited", "code", "max_rss", "stopped_by",
"background"}, {"event": "child_died", "pid", "command", "signal"},
{"event": "stop_command", "problem"} if that failed, {"event": "kept", "ok"} as answer to "keep", and last {"event":
"gone", "survivors", "stuck", "leaks"}. The words of the commands and of the environment are bytes, sent as latin-1:
the two processes may differ in their encodings. The server's output goes where the supervisor's own goes.

Other processes of the same user ask at its control socket (`control_socket`): {"do": "describe"}, {"do": "stop",
"timeout"}, {"do": "take_over", "fingerprint", "stop_timeout", "info"}. The last one is for a server that is kept: its
owner has let go of it without ending it, and who takes it over is its owner from then on; the connection becomes the
channel. A kept server that nobody takes over is stopped when its time is up.

Above the supervisor stands a fork of it, the `guard` (Linux). If the supervisor is killed, its whole tree falls to the
guard, which ends it.

This file is the loop, and what it does for the owner. `server_tree` knows the server's processes, `stopping` ends them,
`looks` watches what they hold in debug mode, `answers` speaks to other processes, `leftover_files` removes files.
"""

from __future__ import annotations

import ctypes
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.supervision.answers import Answers
from pytest_infserver.launcher.supervision.guard import await_supervisor, become_subreaper, fork_guard
from pytest_infserver.launcher.supervision.leftover_files import LeftoverFiles
from pytest_infserver.launcher.supervision.ownership import OWNER_INTERVAL, Ownership
from pytest_infserver.launcher.supervision.signals import WakeUp
from pytest_infserver.launcher.supervision.stopping import Stop
from pytest_infserver.launcher.supervision.tree.child_watch import ChildWatch, describe_death
from pytest_infserver.launcher.supervision.tree.looks import Looks
from pytest_infserver.launcher.supervision.tree.server_tree import ServerTree, describe
from pytest_infserver.system.processes.own_cgroup import (
    cgroup_made_by,
    enter_cgroup,
    is_in_cgroup,
    kill_cgroup,
    make_cgroup,
    remove_cgroup,
    start_of,
)
from pytest_infserver.system.processes.owner import Owner
from pytest_infserver.system.processes.table import descendants

if TYPE_CHECKING:
    from pytest_infserver.launcher.leaks.tracker import Tracker

CGROUP_LIMIT = 2.0
"""Seconds in which what the kernel kills must be gone; a process in the middle of a driver's call may take longer."""
LONGEST_SLEEP = 3600.0
"""Seconds: poll() cannot sleep for a month."""
_NAME = "infserver"
"""What the processes are called; no name of ours says pytest, see `program`."""
_PR_SET_NAME = 15


class Supervisor:
    """Owns one server process and everything that descends from it.

    Attributes:
        ownership: The owner, and what is said to it.
    """

    def __init__(self, channel: socket.socket, owner: Owner, tracker: Tracker | None = None) -> None:
        """Take charge; nothing is launched yet.

        Args:
            channel: Leads to the owner.
            owner: The process whose end is the server's end too.
            tracker: Debug mode: follows what the server's processes hold.
        """
        self.ownership = Ownership(channel, owner)
        self._tree = ServerTree()
        self._looks = Looks(self._tree, tracker)
        self._stop = Stop(self._tree, self._looks, self.ownership.send)
        self._answers = Answers(self._tree, self._stop, self.ownership)
        self._files = LeftoverFiles()
        self._wakeup = WakeUp()
        self._children = ChildWatch(self._tree)
        self._fails_with_child = False

    def run(self) -> None:
        """Live until the whole tree has ended."""
        while not self._stop.is_over():
            patience = self._patience()
            sleep = None if patience is None else min(patience, LONGEST_SLEEP) * 1000
            readable = {handle for handle, _ in self._poller().poll(sleep)}
            if self.ownership.has_said_something(readable):
                self._receive()
            elif self.ownership.kept_until is not None:
                self._end_keeping_when_due(self.ownership.kept_until)
            elif self.ownership.has_ended(readable):
                self.lose_owner()
            self._answers.attend(readable)
            self._wakeup.clear()
            self._looks.note_alarm(readable)
            if self._wakeup.told_to_end:
                self._stop.begin()
            self._reap()
            self._note_child_deaths(readable)
            self._looks.look_when_due()
            self._stop.ask_rest_when_due()
            self._stop.drain()
            self._stop.kill_when_due()
        # Without a child there is nothing below one: no need to go through all processes of the machine.
        left = [] if self._tree.childless else [describe(process) for process in descendants(os.getpid())]
        self._files.remove(owner_gone=self.ownership.owner_gone)
        if self._tree.cgroup is not None:
            kill_cgroup(self._tree.cgroup, CGROUP_LIMIT)
        survivors = list(self._stop.survivors.values())
        leaks = self._looks.finish([process["pid"] for process in left])
        self.ownership.send(event="gone", survivors=survivors, stuck=left, leaks=leaks)
        self._answers.close({"gone": not left, "survivors": len(survivors)})

    def end_at_once(self) -> None:
        """Kill the whole tree, and live until it has ended."""
        self._stop.begin(0)
        self.run()

    def lose_owner(self) -> None:
        """Go on without an owner that has ended, or has closed the channel."""
        if self.ownership.kept_until is not None:
            self.ownership.close()
        elif not self.ownership.owner_gone:
            self.ownership.owner_gone = True
            self._stop.begin_without_owner()

    def _poller(self) -> select.poll:
        # Not select.select(): the owner may have given us a descriptor above 1023.
        poller = select.poll()
        poller.register(self._wakeup.handle, select.POLLIN)
        self._children.register(poller)
        alarm = self._looks.alarm
        if alarm is not None:
            poller.register(alarm, select.POLLIN)
        self.ownership.register(poller)
        if self._answers.control_socket is not None:
            self._answers.control_socket.register(poller)
        return poller

    def _patience(self) -> float | None:
        now = time.monotonic()
        pace = self._stop.pace()
        if pace is not None:
            return pace
        moments = self._stop.moments()
        if self.ownership.kept_until is not None and not self._stop.begun:
            moments.append(self.ownership.kept_until)
        if self.ownership.is_looked_for():
            moments.append(now + OWNER_INTERVAL)
        if self._answers.control_socket is not None:
            moments += self._answers.control_socket.moments()
        moments += self._looks.moments()
        return max(0.0, min(moments) - now) if moments else None

    def _receive(self) -> None:
        messages = self.ownership.receive()
        if messages is None:
            self.lose_owner()
            return
        for message in messages:
            action = message.pop("do")
            if action == "launch":
                self._launch(**message)
            elif action == "ready":
                if not self._tree.ready:
                    self._children.begin()
                self._tree.ready = True
                self._looks.look()
            elif action == "stop":
                if not self._stop.begun and not self._tree.root_exited:
                    self._stop.by = message.get("by")
                self._stop.begin(message["timeout"])
            elif action == "update":
                self._answers.info.update(message["info"])
            elif action == "keep":
                self._keep(message["seconds"])

    def _keep(self, seconds: float) -> None:
        """Let the server outlive its owner, if somebody else can find it then."""
        # What a server in debug mode leaves behind is told to the owner that started it.
        possible = not self._looks.are_taken and self._answers.control_socket is not None and self._tree.ready
        if possible and not self._stop.begun and not self._tree.root_exited:
            self.ownership.keep(seconds)
        self.ownership.send(event="kept", ok=self.ownership.kept_until is not None)

    def _end_keeping_when_due(self, until: float) -> None:
        if time.monotonic() >= until and not self._stop.begun:
            self._stop.begin()

    def _launch(
        self,
        argv: list[str],
        env: dict[str, str],
        stop_timeout: float,
        stop_command: list[str] | None,
        private_tmpdir: bool,
        control_socket: str | None,
        info: dict[str, Any],
        pid_file: str | None,
        scratch: str | None,
        work_folder: str | None,
        cwd: str | None = None,
        stop_signal: int = signal.SIGTERM,
        fails_with_child: bool = False,
    ) -> None:
        self._fails_with_child = fails_with_child
        self._stop.timeout = stop_timeout
        self._answers.info = info
        self._tree.pid_file = pid_file
        self._files = LeftoverFiles(scratch, work_folder)
        self._tree.stop_signal = stop_signal
        self._stop.cwd = None if cwd is None else cwd.encode("latin-1")
        if stop_command is not None:
            self._stop.command = _encoded(stop_command)
        self._stop.env = self._environment(env, private_tmpdir)
        if not self._go_below_a_guard():
            return
        self._tree.cgroup = cgroup = make_cgroup(self._answers.guard)
        try:
            child = subprocess.Popen(
                _encoded(argv),
                env=self._stop.env,
                cwd=self._stop.cwd,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # This process has one thread: nothing can be locked in its child.
                preexec_fn=None if cgroup is None else functools.partial(enter_cgroup, cgroup),
            )
        except (OSError, ValueError) as error:
            self.ownership.send(event="failed", message=getattr(error, "strerror", None) or str(error))
            self._stop.begin()
            return
        self._tree.root = child.pid
        if cgroup is not None and not is_in_cgroup(child.pid, cgroup):
            remove_cgroup(cgroup)
            self._tree.cgroup = None
        child.returncode = 0  # reaped below, never by Popen
        if control_socket is not None:
            self._answers.open(control_socket)
        self.ownership.send(event="launched", **self._answers.identity())

    def _environment(self, env: Mapping[str, str], private_tmpdir: bool) -> dict[bytes, bytes]:
        encoded = {name.encode("latin-1"): value.encode("latin-1") for name, value in env.items()}
        tmpdir = self._looks.tmpdir if private_tmpdir else None
        return encoded if tmpdir is None else {**encoded, b"TMPDIR": os.fsencode(tmpdir)}

    def _go_below_a_guard(self) -> bool:
        """Fork, and leave the parent behind as guard; return whether this is the process that supervises."""
        # Without a handle only a child of the owner sees its end: then there is no guard between them.
        child = fork_guard() if sys.platform == "linux" and self.ownership.owner.handle is not None else None
        if child:
            start = start_of(child)
            await_supervisor(child, self._wakeup.listen)
            self._tree.cgroup = cgroup_made_by(child, start)
            self._end_what_has_fallen_to_the_guard()
            return False
        if child == 0:
            self._answers.guard = os.getppid()
            self._wakeup.listen()
        return True

    def _end_what_has_fallen_to_the_guard(self) -> None:
        self._looks.note_blindness("what the server held before its supervisor was killed")
        self._tree.root, self._tree.root_exited = -1, True
        self.ownership.send(event="exited", code=None, max_rss=0, stopped_by=None)
        self._stop.begin_after_kill()

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._tree.childless = True
                return
            self._tree.childless = False
            if pid == 0:
                return
            if pid == self._tree.root:
                self._root_ended(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
            elif pid == self._tree.stopper:
                self._stop.command_ended(os.waitstatus_to_exitcode(status))
            else:
                self._children.note_reaped(pid, status)

    def _note_child_deaths(self, readable: set[int]) -> None:
        if self._stop.begun or self._tree.root_exited:
            # From now on they end because their server does.
            self._children.close()
            return
        for death in self._children.deaths(readable):
            self.ownership.send(event="child_died", **death)
            if self._fails_with_child and not self._stop.begun:
                self._stop.by = f"this run (on_child_death: fail) after its {describe_death(death)}"
                self._stop.begin()

    def _root_ended(self, code: int, max_rss: int) -> None:
        self._tree.root_exited = True
        if self._tree.pid_file is not None and 128 < code <= 128 + signal.SIGRTMAX:
            # How nsys and shells say by which signal the engine was killed.
            code = 128 - code
        bytes_used = max_rss if sys.platform == "darwin" else max_rss * 1024
        background = self._left_in_background() if code == 0 else None
        self.ownership.send(
            event="exited", code=code, max_rss=bytes_used, stopped_by=self._stop.by, background=background
        )
        self._stop.root_ended()

    def _left_in_background(self) -> int | None:
        """Return the pid of a process that a root which has ended has left behind, or None."""
        left = [] if self._stop.begun else self._tree.processes()
        if self._tree.ready:
            # A worker outlives who has served for a moment, in its session or not; a daemon has its own, and serves.
            left = [process for process in left if _is_daemon(process.pid, self._tree.root)]
        return left[0].pid if left else None


def _is_daemon(pid: int, root: int | None) -> bool:
    """Return whether a process has left its root's session, and accepts connections."""
    # Imported here because most servers leave nothing.
    from pytest_infserver.system.proc_net import listeners, socket_inodes

    try:
        sockets = socket_inodes(pid) if os.getsid(pid) != root else set()
        return any(listener.inode in sockets for listener in listeners(pid))
    except OSError:
        return False


def _encoded(words: Sequence[str]) -> list[bytes]:
    return [word.encode("latin-1") for word in words]


def supervise(supervisor: Supervisor) -> None:
    """Run a supervisor to its end; if it fails itself, end the tree: nobody else would."""
    try:
        supervisor.run()
    except Exception as error:
        # As the module traceback does, which takes 2 ms to import.
        sys.excepthook(type(error), error, error.__traceback__)
        supervisor.end_at_once()


def make_tracker(owner_pid: int, tmpdir: str) -> Tracker:
    """Return what follows the server in debug mode; imported here because nobody else pays for it."""
    from pytest_infserver.launcher.leaks.tracker import Tracker

    return Tracker(owner_pid, tmpdir)


def main() -> None:
    """Run with the arguments SOCKET_FD OWNER_PID [TMPDIR]; the last one means debug mode."""
    channel, owner = socket.socket(fileno=int(sys.argv[1])), Owner(int(sys.argv[2]))
    become_subreaper()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, _NAME.encode(), 0, 0, 0)
    # An owner that ignores SIGCHLD passes that on, and the end of a child would get lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    tracker = make_tracker(owner.pid, sys.argv[3]) if len(sys.argv) > 3 else None
    supervise(Supervisor(channel, owner, tracker))
    # Skips the interpreter's shutdown: the owner waits for this end.
    os._exit(0)
