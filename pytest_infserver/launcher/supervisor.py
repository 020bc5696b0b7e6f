"""The parent process of one server: reports its exit at once, stops its whole tree, outlives its owner.

Runs under ``python -I -S`` and imports only the standard library and modules of ours that do so too: it starts in some
20 ms and cannot be broken by the environment of the server or of the owner. The owner is the process
that uses `pytest_infserver.launcher.process`; both talk in JSON lines over one socket.

To the supervisor: {"do": "launch", "argv", "env", "stop_timeout", "stop_command", "private_tmpdir", "door", "info",
"pid_file", "scratch", "work_folder"}, then {"do": "ready"}, {"do": "stop", "timeout", "by"}, {"do": "keep", "seconds"},
{"do": "update", "info"}. From it: {"event": "launched", "pid", "start", "supervisor", "supervisor_start", "door"} or
{"event": "failed", "message"}, then {"event": "exited", "code", "max_rss", "stopped_by"}, {"event": "stop_command",
"problem"} if that failed, {"event": "kept", "ok"} as answer to "keep", and last {"event": "gone", "survivors", "stuck",
"leaks"}. The words of the commands and of the environment are bytes, sent as latin-1: the two processes may differ in
their encodings. The server's output goes where the supervisor's own goes.

Other processes of the same user ask at its door (`pytest_infserver.launcher.door`): {"do": "describe"}, {"do": "stop",
"timeout"}, {"do": "take_over", "fingerprint", "stop_timeout", "info"}. The last one is for a server that is kept: its
owner has let go of it without ending it, and who takes it over is its owner from then on; the connection becomes the
channel. A kept server that nobody takes over is stopped when its time is up.

Above the supervisor stands a fork of it, the guard (Linux). If the supervisor is killed, its whole tree falls to the
guard, which ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.door import Door, Visitor
from pytest_infserver.launcher.owner import Owner
from pytest_infserver.launcher.processes import (
    Process,
    command_line,
    descendants,
    find_process,
    handles_sigterm,
    ignores_sigterm,
    is_alive,
    read_file,
    read_process,
    send_signal,
    wait_until_stopped,
)

if TYPE_CHECKING:
    from pytest_infserver.launcher.leaks.tracker import Tracker

STARTUP_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL while the server is not ready: vLLM 0.32 ignores SIGTERM then."""
DRAIN_GRACE = 5.0
"""Seconds that descendants get after their root has ended: those of vLLM 0.32 need up to 2.6."""
SETTLE = 0.05
"""Seconds after the root's end at which descendants that are still there get a SIGTERM of their own."""
STUBBORN_GRACE = 0.5
"""Seconds that descendants get when all that are left ignore SIGTERM. Not zero: Python's resource tracker
ignores it, cleans shared memory up once the others are gone, and ends then."""
KILL_LIMIT = 10.0
"""Seconds after which processes that survive SIGKILL (uninterruptible sleep) are given up."""
ASKED_GRACE = 2.0
"""Debug mode: seconds that what outlived its root gets to end after a SIGTERM, so that it can clean up."""
OWNER_INTERVAL = 1.0
"""Seconds between two looks for the owner where the system cannot tell of its end (no pidfd)."""
OWNER_GONE_GRACE = 1.0
"""Seconds beyond stop_timeout at which all is killed when the owner is gone."""
FREEZE_LIMIT = 0.2
"""Debug mode: seconds that processes get to stand still before what they hold is looked at."""
LOOK_INTERVAL = 0.5
"""Debug mode: seconds between two looks at what the server's processes hold."""
LOOK_SHARE = 20
"""Debug mode: looks take at most one part in so many of one core's time."""
ALARM_SHARE = 4
"""The same while new objects appear in /dev/shm all the time."""
MAX_SECONDS = 1e9
"""No request asks for a longer time."""
LONGEST_SLEEP = 3600.0
"""Seconds: poll() cannot sleep for a month."""

HOME_VARIABLE = "INFSERVER_SUPERVISOR_HOME"
"""Names the folder that the package is imported from: under -I nothing of ours can be found otherwise."""
PROGRAM = f"""\
import os, sys
sys.path.append(os.environ["{HOME_VARIABLE}"])
__import__("py" "test_infserver.launcher.supervisor", fromlist=["main"]).main()
"""
"""What Python runs. No command line of ours may say what is in two parts here: people end a run that hangs by
``pkill -9 -f pytest``, and then somebody must be left to stop the servers."""

_NAME = "infserver"
"""What the processes are called, for the same reason."""
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """Owns one server process and everything that descends from it."""

    def __init__(self, channel: socket.socket, owner: Owner, tracker: Tracker | None = None) -> None:
        """Take charge; nothing is launched yet.

        Args:
            channel: Leads to the owner.
            owner: The process whose end is the server's end too.
            tracker: Debug mode: follows what the server's processes hold.
        """
        self.channel = channel
        self.owner = owner
        self.owner_gone = False
        self.tracker = tracker
        self.next_look = self.earliest_look = 0.0
        self.inbox = b""
        self.told_to_end = False
        self.root = 0
        self.root_exited = False
        self.childless = False
        self.ready = False
        self.stop_timeout = 30.0
        self.stopping = False
        self.orderly = False  # asked to stop with all that it needs to do so by itself
        self.deadline: float | None = None  # when what is left is killed
        self.drain_since: float | None = None  # when the root ended
        self.drain_asked = False
        self.noted = False  # debug mode: which processes were left
        self.stubborn_since: float | None = None
        self.killed_since: float | None = None
        self.limit: float | None = None  # no deadline is later than this
        self.survivors: dict[tuple[int, str], dict[str, Any]] = {}
        self.stop_command: Sequence[bytes] | None = None
        self.stopper = 0  # the running stop command
        self.env: Mapping[bytes, bytes] = {}
        self.guard: int | None = None
        self.door: Door | None = None
        self.info: dict[str, Any] = {}  # what the owner says of the server
        self.pid_file: str | None = None  # if the root is a profiler, where the engine below it has left its pid
        self.scratch: str | None = None  # a folder that goes with the server
        self.work_folder: str | None = None  # the owner's, if nobody is to have it when that is gone
        self.kept_until: float | None = None  # while there is no owner
        self.stopped_by: str | None = None
        self.waiting: list[Visitor] = []  # until the server is gone
        self._listen_to_signals()
        # Blocked signals are inherited: without SIGCHLD no exit is seen, and the server needs its SIGTERM.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def run(self) -> None:
        """Live until the whole tree has ended."""
        while not self._finished():
            patience = self._patience()
            sleep = None if patience is None else min(patience, LONGEST_SLEEP) * 1000
            readable = {handle for handle, _ in self._poller().poll(sleep)}
            if self.channel.fileno() in readable:
                self._receive()
            elif self.kept_until is not None:
                self._end_keeping_when_due(self.kept_until)
            elif self.owner.handle in readable or (self.owner.handle is None and self.owner.is_gone()):
                self._lose_owner()
            self._attend(readable)
            with contextlib.suppress(BlockingIOError):
                os.read(self.wakeup_read, 4096)
            if self.tracker is not None and self.tracker.alarm in readable:
                self.next_look = min(self.next_look, self.earliest_look)
            if self.told_to_end:
                self.begin_stop()
            self._reap()
            self._look_when_due()
            self._drain()
            self._kill_when_due()
        left = [describe(process) for process in descendants(os.getpid())]
        self._remove_scratch()
        leaks = None if self.tracker is None else self.tracker.finish([process["pid"] for process in left])
        self._send(event="gone", survivors=list(self.survivors.values()), stuck=left, leaks=leaks)
        self._close_door({"gone": not left, "survivors": len(self.survivors)})

    def begin_stop(self, timeout: float | None = None) -> None:
        """Ask the root to end; it and its descendants are killed after ``timeout`` seconds."""
        timeout = self.stop_timeout if timeout is None else timeout
        if not self.ready and self.stop_command is None:
            timeout = min(timeout, STARTUP_GRACE)
        if self.stopping:
            if self.deadline is not None:
                self.deadline = min(self.deadline, time.monotonic() + timeout)
            return
        self.stopping = True
        self.orderly = self.ready and not self.root_exited
        with self._standing_still():
            self._look()
            deadline = time.monotonic() + timeout
            self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)
            if self.root and not self.root_exited and not self._run_stop_command():
                self._terminate_root()

    @contextlib.contextmanager
    def _standing_still(self) -> Iterator[None]:
        """Debug mode: let a server do nothing meanwhile that SIGTERM ends on the spot.

        One that handles SIGTERM goes on: whichever of its threads woke first would get the signal, and Python, for
        one, then leaves a first thread asleep that waits for it.
        """
        stands = self.tracker is not None and self.root and not handles_sigterm(self._engine())
        tree = self._tree() if stands else []
        for process in tree:
            send_signal(process, signal.SIGSTOP)
        wait_until_stopped(tree, FREEZE_LIMIT)
        try:
            yield
        finally:
            for process in tree:
                send_signal(process, signal.SIGCONT)

    def _terminate_root(self) -> None:
        engine = self._engine()
        if engine != self.root:
            # A profiler ends with its engine, and not the other way round.
            process = read_process(engine)
            if process is not None:
                send_signal(process, signal.SIGTERM)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Only we reap the root, so that its pid is still its own.
            os.kill(self.root, signal.SIGTERM)

    def _engine(self) -> int:
        """Return the engine's process: the root, or what a profiler there has started."""
        if self.pid_file is not None:
            text = read_file(self.pid_file, 32).strip()
            # Whoever wrote it: only a process of ours is signalled.
            if text.isdigit() and any(process.pid == int(text) for process in self._tree()):
                return int(text)
        return self.root

    def _remove_scratch(self) -> None:
        folders = [self.scratch, self.work_folder if self.owner_gone else None]
        for folder in filter(None, folders):
            import shutil

            shutil.rmtree(folder, ignore_errors=True)

    def _run_stop_command(self) -> bool:
        """Start the command that stops what is not our descendant; tell whether there is one."""
        if self.stop_command is None:
            return False
        try:
            child = subprocess.Popen(self.stop_command, env=self.env, stdin=subprocess.DEVNULL, start_new_session=True)
        except (OSError, ValueError) as error:
            self._send(event="stop_command", problem=getattr(error, "strerror", None) or str(error))
            return False
        self.stopper = child.pid
        child.returncode = 0  # reaped below, never by Popen
        return True

    def _stop_command_ended(self, code: int) -> None:
        self.stopper = 0
        if self.killed_since is not None:
            self._send(event="stop_command", problem=f"did not end within {self.stop_timeout:g} s")
        elif code != 0:
            self._send(event="stop_command", problem=f"ended with exit code {code}")
        if self.root_exited:
            self.drain_since = time.monotonic()
        else:
            self._terminate_root()

    def _listen_to_signals(self) -> None:
        self.wakeup_read, wakeup_write = os.pipe()
        os.set_blocking(self.wakeup_read, False)
        os.set_blocking(wakeup_write, False)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        _survive_strays()

    def _go_below_a_guard(self) -> bool:
        """Fork, and leave the parent behind as guard; tell whether this is the process that supervises."""
        # Without a handle only a child of the owner sees its end: then there is no guard between them.
        child = _fork() if sys.platform == "linux" and self.owner.handle is not None else None
        if child:
            self._guard(child)
            return False
        if child == 0:
            # Whoever kills the guard's process group does not kill this process with it.
            os.setsid()
            become_subreaper()
            self.guard = os.getppid()
            self._listen_to_signals()
        return True

    def _guard(self, child: int) -> None:
        """Wait for the supervisor's end; if it was killed, its tree has fallen to this process: end it."""

        def pass_on(number: int, _: object) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, pass_on)
        # Not reaped: until nothing is passed on any more the pid must be the child's.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        self._listen_to_signals()
        if os.waitpid(child, 0)[1] == 0:
            os._exit(0)
        if self.tracker is not None:
            self.tracker.note_blindness("what the server held before its supervisor was killed")
        self.root, self.root_exited = -1, True
        self._send(event="exited", code=None, max_rss=0, stopped_by=None)
        self._look()
        # Nobody has asked these processes to end: that they are there is no finding.
        self.stopping = self.noted = True
        self.deadline = time.monotonic() + (self.stop_timeout if self._run_stop_command() else 0)

    def _on_signal(self, *_: object) -> None:
        # The rest is done by run(), which the signal wakes.
        self.told_to_end = True

    def _lose_owner(self) -> None:
        if self.kept_until is not None:
            self.channel.close()
        elif not self.owner_gone:
            self.owner_gone = True
            self.limit = time.monotonic() + self.stop_timeout + OWNER_GONE_GRACE
            self.begin_stop()

    def _tree(self) -> list[Process]:
        """Return the server's processes."""
        below = descendants(os.getpid())
        helpers = self._helpers(below)
        return [process for process in below if process.pid not in helpers]

    def _helpers(self, below: Sequence[Process]) -> set[int]:
        """Return which of our descendants belong to the stop command."""
        helpers = {self.stopper} if self.stopper else set()
        for process in below:
            # Parents come before their children.
            if process.parent in helpers:
                helpers.add(process.pid)
        return helpers

    def _look(self) -> None:
        if self.tracker is None or not self.root:
            return
        begin = time.process_time()
        self.tracker.prepare()
        self.tracker.look(self._tree())
        cost = time.process_time() - begin
        self.earliest_look = time.monotonic() + cost * ALARM_SHARE
        self.next_look = time.monotonic() + max(LOOK_INTERVAL, cost * LOOK_SHARE)

    def _look_when_due(self) -> None:
        if time.monotonic() >= self.next_look:
            self._look()

    def _poller(self) -> select.poll:
        # Not select.select(): the owner may have given us a descriptor above 1023.
        poller = select.poll()
        poller.register(self.wakeup_read, select.POLLIN)
        # Not before the next look is allowed: the alarm would wake us all the time.
        if self.tracker is not None and self.tracker.alarm is not None and time.monotonic() >= self.earliest_look:
            poller.register(self.tracker.alarm, select.POLLIN)
        if not self.owner_gone:
            if self.channel.fileno() != -1:
                poller.register(self.channel, select.POLLIN)
            if self.owner.handle is not None and self.kept_until is None:
                poller.register(self.owner.handle, select.POLLIN)
        if self.door is not None:
            self.door.register(poller)
        return poller

    def _finished(self) -> bool:
        if self.killed_since is not None and time.monotonic() - self.killed_since > KILL_LIMIT:
            return True
        if not self.root:
            return self.stopping
        return self.root_exited and self.childless

    def _patience(self) -> float | None:
        now = time.monotonic()
        if self.killed_since is not None:
            return 0.02
        if self.drain_since is not None and self.drain_asked:
            return 0.1
        moments = []
        if self.drain_since is not None and not self.stopper:
            moments.append(self.drain_since + self._settle())
        if self.deadline is not None:
            moments.append(self.deadline)
        if self.kept_until is not None:
            if not self.stopping:
                moments.append(self.kept_until)
        elif self.owner.handle is None:
            moments.append(now + OWNER_INTERVAL)
        if self.door is not None:
            moments += self.door.moments()
        if self.tracker is not None and self.root:
            moments.append(self.next_look)
            if self.tracker.alarm is not None and now < self.earliest_look:
                moments.append(self.earliest_look)
        return max(0.0, min(moments) - now) if moments else None

    def _settle(self) -> float:
        """Return for how many seconds descendants are left to themselves after their root's end."""
        # Without debug mode nobody asks whether they would have gone by themselves.
        patient = self.tracker is not None and self.orderly and not self.owner_gone
        return min(DRAIN_GRACE, self.stop_timeout) if patient else SETTLE

    def _receive(self) -> None:
        try:
            data = self.channel.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._lose_owner()
            return
        *lines, self.inbox = (self.inbox + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            action = message.pop("do")
            if action == "launch":
                self._launch(**message)
            elif action == "ready":
                self.ready = True
                self._look()
            elif action == "stop":
                if not self.stopping and not self.root_exited:
                    self.stopped_by = message.get("by")
                self.begin_stop(message["timeout"])
            elif action == "update":
                self.info.update(message["info"])
            elif action == "keep":
                self._keep(message["seconds"])

    def _keep(self, seconds: float) -> None:
        """Let the server outlive its owner, if somebody else can find it then."""
        # What a server in debug mode leaves behind is told to the owner that started it.
        possible = self.tracker is None and self.door is not None and self.ready
        if possible and not self.stopping and not self.root_exited:
            self.kept_until = time.monotonic() + min(seconds, MAX_SECONDS)
        self._send(event="kept", ok=self.kept_until is not None)

    def _end_keeping_when_due(self, until: float) -> None:
        if time.monotonic() >= until and not self.stopping:
            self.begin_stop()

    def _attend(self, readable: set[int]) -> None:
        """Answer who comes to the door; nothing that happens there may harm the server."""
        if self.door is None:
            return
        try:
            for visitor, question in self.door.serve(readable):
                self._reply(self.door, visitor, question)
        except Exception:
            traceback.print_exc()
            self._close_door({})

    def _reply(self, door: Door, visitor: Visitor, question: Mapping[str, Any]) -> None:
        if question["do"] == "describe":
            door.answer(visitor, self._description())
        elif question["do"] == "stop":
            if not self.stopping and not self.root_exited:
                self.stopped_by = f"`infserver stop` (pid {visitor.peer.pid})"
            self.waiting.append(visitor)
            self.begin_stop(_seconds(question.get("timeout")))
        elif question["do"] == "take_over":
            self._hand_over(door, visitor, question)
        else:
            door.answer(visitor, {"event": "failed", "message": "not understood"})

    def _hand_over(self, door: Door, visitor: Visitor, question: Mapping[str, Any]) -> None:
        """Make a visitor the owner of a kept server."""
        free = self.kept_until is not None and not self.stopping and not self.root_exited
        # Without a pid, as from another container, nobody would see its end.
        if not free or question.get("fingerprint") != self.info.get("fingerprint") or visitor.peer.pid <= 0:
            door.answer(visitor, {"event": "failed", "message": "it is not free, or not what was asked for"})
            return
        owner = Owner(visitor.peer.pid, is_parent=False)
        answer = {"event": "taken_over", "guard": self._living_guard(), **self._identity()}
        channel = door.hand_over(visitor, answer)
        if channel is None:
            owner.forget()
            return
        self.channel.close()
        self.owner.forget()
        self.channel, self.owner, self.inbox, self.kept_until = channel, owner, b"", None
        self.stop_timeout = _seconds(question.get("stop_timeout")) or self.stop_timeout
        if isinstance(question.get("info"), dict):
            self.info.update(question["info"])

    def _living_guard(self) -> int | None:
        return self.guard if self.guard == os.getppid() else None

    def _description(self) -> dict[str, Any]:
        state = "stopping" if self.stopping or self.root_exited else "running" if self.ready else "starting"
        kept = self.kept_until is not None
        root = read_process(self.root)
        return {
            "info": self.info,
            "root": self.root,
            "root_start": None if root is None else root.start,
            "supervisor": os.getpid(),
            "owner": None if kept else self.owner.pid,
            "state": "kept" if kept and state == "running" else state,
            "left": None if self.kept_until is None else max(0.0, self.kept_until - time.monotonic()),
            "stop_timeout": self.stop_timeout,
        }

    def _open_door(self, folder: str) -> None:
        try:
            self.door = Door(folder)
        except OSError as error:
            # In the server's log: it runs all the same.
            print(f"infserver: nobody can ask about this server: {folder}: {error}", file=sys.stderr)  # noqa: T201

    def _close_door(self, answer: Mapping[str, Any]) -> None:
        door, self.door = self.door, None
        if door is not None:
            for visitor in self.waiting:
                door.answer(visitor, answer)
            door.close()

    def _launch(
        self,
        argv: list[str],
        env: dict[str, str],
        stop_timeout: float,
        stop_command: list[str] | None,
        private_tmpdir: bool,
        door: str | None,
        info: dict[str, Any],
        pid_file: str | None,
        scratch: str | None,
        work_folder: str | None,
    ) -> None:
        self.stop_timeout = stop_timeout
        self.info = info
        self.pid_file = pid_file
        self.scratch = scratch
        self.work_folder = work_folder
        if stop_command is not None:
            self.stop_command = [word.encode("latin-1") for word in stop_command]
        self.env = {name.encode("latin-1"): value.encode("latin-1") for name, value in env.items()}
        if private_tmpdir and self.tracker is not None and self.tracker.tmpdir is not None:
            self.env = {**self.env, b"TMPDIR": os.fsencode(self.tracker.tmpdir)}
        if not self._go_below_a_guard():
            return
        try:
            child = subprocess.Popen(
                [word.encode("latin-1") for word in argv],
                env=self.env,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._send(event="failed", message=getattr(error, "strerror", None) or str(error))
            self.begin_stop()
            return
        self.root = child.pid
        child.returncode = 0  # reaped below, never by Popen
        if door is not None:
            self._open_door(door)
        self._send(event="launched", **self._identity())

    def _identity(self) -> dict[str, Any]:
        """Return which processes an owner has to do with: a pid alone may be another one's by the time it is used."""
        root, me = find_process(self.root), find_process(os.getpid())
        return {
            "pid": self.root,
            "start": None if root is None else root.start,
            "supervisor": os.getpid(),
            "supervisor_start": None if me is None else me.start,
            "door": None if self.door is None else self.door.path,
        }

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            self.childless = False
            if pid == 0:
                return
            if pid == self.root:
                self._root_ended(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
            elif pid == self.stopper:
                self._stop_command_ended(os.waitstatus_to_exitcode(status))

    def _root_ended(self, code: int, max_rss: int) -> None:
        self.root_exited = True
        if self.pid_file is not None and 128 < code <= 128 + signal.SIGRTMAX:
            # How nsys and shells say by which signal the engine was killed.
            code = 128 - code
        bytes_used = max_rss if sys.platform == "darwin" else max_rss * 1024
        self._send(event="exited", code=code, max_rss=bytes_used, stopped_by=self.stopped_by)
        if not self.stopping:
            # What the root stood for may live on without it: a container whose docker client was killed.
            self._run_stop_command()
        self.drain_since = time.monotonic()
        if self.killed_since is None:
            grace = max(min(DRAIN_GRACE, self.stop_timeout), self._settle() + ASKED_GRACE if self.tracker else 0)
            if self.stopper:
                grace = max(grace, self.stop_timeout)
            self._set_deadline(self.drain_since + grace)

    def _set_deadline(self, deadline: float) -> None:
        self.deadline = deadline if self.limit is None else min(deadline, self.limit)

    def _drain(self) -> None:
        """See the descendants off that their root has left behind."""
        now = time.monotonic()
        if self.drain_since is None or self.killed_since is not None or self.stopper:
            return
        if now - self.drain_since < self._settle():
            return
        left = self._tree()
        if not self.drain_asked:
            self.drain_asked = True
            if self.orderly:
                self._note_left(left)
            for process in left:
                send_signal(process, signal.SIGTERM)
        if not all(ignores_sigterm(process.pid) for process in left):
            self.stubborn_since = None
        elif self.stubborn_since is None:
            self.stubborn_since = now
        elif now - self.stubborn_since > STUBBORN_GRACE:
            self.deadline = now

    def _kill_when_due(self) -> None:
        if self.deadline is None or time.monotonic() < self.deadline or not self.root:
            return
        # Stopped processes cannot fork: freeze until no new one appears, then kill them all.
        frozen: dict[tuple[int, str], Process] = {}
        for _ in range(20):
            below = {(process.pid, process.start): process for process in descendants(os.getpid())}
            new = [process for key, process in below.items() if key not in frozen]
            if not new:
                break
            for process in new:
                send_signal(process, signal.SIGSTOP)
            frozen = {**below, **frozen}
        if self.tracker is not None and self.killed_since is None:
            # What they hold when they stand still is all that they leave.
            wait_until_stopped(frozen.values(), FREEZE_LIMIT)
            self.tracker.look([*frozen.values()])
        # Who forks faster than one can look may not be caught at first.
        if not self.survivors:
            helpers = self._helpers(list(frozen.values()))
            tree = [process for process in frozen.values() if process.pid not in helpers]
            # Of a chain of forks most have ended meanwhile.
            tree = [process for process in tree if is_alive(process.pid, process.start)] or tree
            self._note_left(tree)
            self.survivors = {(process.pid, process.start): describe(process) for process in tree}
        for process in frozen.values():
            send_signal(process, signal.SIGKILL)
        if self.killed_since is None:
            self.killed_since = time.monotonic()

    def _note_left(self, processes: Sequence[Process]) -> None:
        if self.noted or not processes:
            return
        self.noted = True
        since = "of the request to stop" if self.drain_since is None else "of the server's end"
        seconds = self.stop_timeout if self.drain_since is None else self._settle()
        if self.tracker is not None:
            self.tracker.note_left(processes, self.root, f"{seconds:g} s {since}")

    def _send(self, **message: Any) -> None:
        if self.owner_gone:
            # A fork of it may hold the channel open, and nobody reads what would fill it.
            return
        with contextlib.suppress(OSError):
            self.channel.sendall(json.dumps(message).encode() + b"\n")


def describe(process: Process) -> dict[str, Any]:
    """Return what a person wants to know about a process that should have ended."""
    return {"pid": process.pid, "command": command_line(process.pid)}


def _seconds(value: object) -> float | None:
    """Return a time that a visitor has asked for, or None if that is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS:
        return None
    return float(value)


def _survive_strays() -> None:
    """Do nothing on signals that a server sends to its parent, whoever that is by now."""
    for number in (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        # Not SIG_IGN, which the server would inherit.
        signal.signal(number, lambda *_: None)


def become_subreaper() -> None:
    """Adopt every descendant whose own parent ends (Linux; elsewhere they go to pid 1)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def supervise(supervisor: Supervisor) -> None:
    """Run a supervisor to its end; if it fails itself, end the tree: nobody else would."""
    try:
        supervisor.run()
    except Exception:
        traceback.print_exc()
        supervisor.begin_stop(0)
        supervisor.run()


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


def _fork() -> int | None:
    try:
        return os.fork()
    except OSError:
        # Better without a guard than without a server.
        return None
