"""The owner's side of one supervised server process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_infserver.launcher.supervision import limits, program
from pytest_infserver.launcher.supervision.exit import Exit as Exit
from pytest_infserver.launcher.supervision.exit import Survivor as Survivor
from pytest_infserver.launcher.supervision.exit import survivors
from pytest_infserver.launcher.supervision.last_seen import LastSeen
from pytest_infserver.launcher.supervision.tree.child_watch import describe_death
from pytest_infserver.system.disk.files import read_start
from pytest_infserver.system.environment import environment
from pytest_infserver.system.processes.foreign import ForeignProcess, leave_behind, reap_left_behind
from pytest_infserver.system.processes.own_cgroup import kill_cgroup
from pytest_infserver.system.processes.table import kill_session, signal_process

logger = logging.getLogger("pytest_infserver")

_NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
_JOIN_LIMIT = 2.0
_ANSWER_LIMIT = 5.0
"""Seconds that the supervisor gets beyond what it gives the server's processes."""
_GRACES = limits.DRAIN_GRACE + limits.ASKED_GRACE + limits.KILL_LIMIT


@dataclass(frozen=True)
class Launch:
    """What is launched.

    Attributes:
        argv: The command; never passed to a shell.
        env: The whole environment of the server.
        log_fd: File descriptor for its output.
        stop_timeout: Seconds that the server gets to end when this process is gone.
        keep_fds: Descriptors (locks) that the supervisor holds as long as it lives.
        stop_command: Command that stops what is not a descendant of the server's root, or None.
        tmpdir: Debug mode, in which the supervisor follows what the server holds: the temporary directory that it
            makes for the server, and removes. None without debug mode.
        private_tmpdir: Whether the server gets that directory as its TMPDIR.
        control_socket: Private folder for the socket on which others may ask about the server, or None.
        info: What they are told.
        pid_file: Where the engine leaves its process id, if the command is that of a profiler which starts it.
        scratch: A folder that the supervisor removes at the end, or None.
        work_folder: One that it removes at the end if its owner is gone by then, or None.
        cwd: Where the command is run; where this process is if None.
        stop_signal: What asks it to end.
        fails_with_child: Whether it is ended when one of its processes has been killed by a signal.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    log_fd: int
    stop_timeout: float
    keep_fds: Sequence[int] = ()
    stop_command: Sequence[str] | None = None
    tmpdir: str | None = None
    private_tmpdir: bool = True
    control_socket: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    pid_file: str | None = None
    scratch: str | None = None
    work_folder: str | None = None
    cwd: str | None = None
    stop_signal: int = signal.SIGTERM
    fails_with_child: bool = False


class LaunchFailed(Exception):
    """The command could not be executed."""


class ServerProcess:
    """One launch of a server: made, launched once, stopped once.

    Attributes:
        child_deaths: Which of its processes were killed by a signal while it was in use, and when.
        on_child_death: Gets each of these texts as it comes, in a thread of its own.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self.exit: Exit | None = None
        self.exit_at: float | None = None
        self.survivors: tuple[Survivor, ...] = ()
        self.leaks: Mapping[str, Any] | None = None
        self.stop_problem: str | None = None
        self.child_deaths: list[tuple[float, str]] = []
        self.on_child_death: Callable[[str], object] = lambda death: None
        self.supervisor_pid: int | None = None
        self.control_socket: str | None = None
        # When these two began: their numbers may be somebody else's by now.
        self._start: str | None = None
        self._cgroup: str | None = None
        self._supervisor_start: str | None = None
        self._supervisor: subprocess.Popen[bytes] | ForeignProcess | None = None
        self._kept: bool | None = None
        self._left = False
        self._pid_file: str | None = None
        self._channel: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self._last_seen = LastSeen()
        self._changed = threading.Condition()
        self._failure: str | None = None
        self._gone = False
        self._let_go = False

    def launch(self, launch: Launch, timeout: float = 30.0) -> None:
        """Start the supervisor and the server under it.

        Args:
            launch: What is launched.
            timeout: Seconds until the supervisor must have answered.

        Raises:
            LaunchFailed: The command could not be executed.
        """
        try:
            message = {
                "argv": [_wire(word) for word in launch.argv],
                "env": {_wire(name): _wire(value) for name, value in launch.env.items()},
                "stop_timeout": launch.stop_timeout,
                "stop_command": launch.stop_command and [_wire(word) for word in launch.stop_command],
                "private_tmpdir": launch.private_tmpdir,
                "control_socket": launch.control_socket,
                "info": dict(launch.info),
                "pid_file": launch.pid_file,
                "scratch": launch.scratch,
                "work_folder": launch.work_folder,
                "cwd": None if launch.cwd is None else _wire(launch.cwd),
                "stop_signal": int(launch.stop_signal),
                "fails_with_child": launch.fails_with_child,
            }
            self._pid_file = launch.pid_file
            reap_left_behind()
            self._start_supervisor(launch)
        except (OSError, UnicodeError) as error:
            raise LaunchFailed(str(error)) from None
        self._send(do="launch", **message)
        with self._changed:
            self._changed.wait_for(lambda: self.pid or self._failure or self._gone, timeout)
        if not self.pid:
            raise LaunchFailed(self._failure or "the supervisor process did not start")

    def _start_supervisor(self, launch: Launch) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            for end in (self._channel, theirs):
                # Whatever socket.setdefaulttimeout() says: hours may pass between two messages.
                end.settimeout(None)
            # Before the supervisor, so that stop() can rely on it wherever an interrupt comes.
            self._start_reader(self._channel)
            with _inheritable(theirs.fileno(), *launch.keep_fds) as handles:
                debug = [] if launch.tmpdir is None else [launch.tmpdir]
                self._supervisor = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", program.PROGRAM, str(handles[0]), str(os.getpid()), *debug],
                    env={**environment(), program.HOME_VARIABLE: program.home()},
                    stdin=subprocess.DEVNULL,
                    stdout=launch.log_fd,
                    stderr=launch.log_fd,
                    pass_fds=handles,
                    start_new_session=True,
                )
        self.supervisor_pid = self._supervisor.pid

    def _start_reader(self, channel: socket.socket) -> None:
        self._reader = threading.Thread(target=self._read, args=(channel,), name="infserver-supervisor", daemon=True)
        self._reader.start()

    def take_over(self, channel: socket.socket, question: Mapping[str, object], timeout: float = 5.0) -> bool:
        """Become the owner of a kept server, instead of `launch`; return whether that went well.

        Args:
            channel: Connection to the control socket of its supervisor.
            question: What identifies the server.
            timeout: Seconds until the supervisor must have answered.
        """
        channel.settimeout(None)
        self._channel = channel
        self._start_reader(channel)
        self._send(do="take_over", **question)
        with self._changed:
            self._changed.wait_for(lambda: self.pid or self._failure or self._gone, timeout)
        if self.pid is None:
            self.close()
        return self.pid is not None

    def keep(self, seconds: float, timeout: float = 5.0) -> bool:
        """Let go of the server without ending it; return whether that went well.

        Args:
            seconds: When nobody has taken it over in that time, its supervisor stops it.
            timeout: Seconds until the supervisor must have answered.
        """
        self._send(do="keep", seconds=seconds)
        with self._changed:
            self._changed.wait_for(lambda: self._kept is not None or self._gone, timeout)
        if not self._kept:
            return False
        self._left = True
        self.close()
        if isinstance(self._supervisor, subprocess.Popen):
            leave_behind(self._supervisor)
        self._supervisor = None
        return True

    def update(self, info: Mapping[str, Any]) -> None:
        """Change what others are told about the server."""
        self._send(do="update", info=dict(info))

    def look(self) -> None:
        """Remember what runs now, for the case that its supervisor and guard are both killed."""
        if self.supervisor_pid is not None and self.exit is None:
            self._last_seen.look(self.supervisor_pid)

    def mark_ready(self) -> None:
        """Tell the supervisor that the server now obeys SIGTERM, so that it gets its full time to end."""
        self._send(do="ready")

    @property
    def engine_pid(self) -> int | None:
        """The engine's process: below a profiler another one than that which was launched."""
        if self._pid_file is None:
            return self.pid
        try:
            return int(read_start(self._pid_file, 32))
        except (OSError, ValueError):
            return self.pid

    @property
    def cut_short(self) -> bool:
        """Whether somebody else has killed the server or its supervisor, so that it could not end in order."""
        if self.exit is None or self.exit.code is None:
            return True
        return self.exit.code == -signal.SIGKILL and self.pid not in {survivor.pid for survivor in self.survivors}

    def wait_exit(self, timeout: float) -> Exit | None:
        """Wait until the root process has ended; return how, or None after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.exit is not None, timeout)
            return self.exit

    def stop_for(self, who: str, timeout: float) -> bool:
        """End the whole tree for somebody who does not own it; return whether it is gone.

        Args:
            who: Who has asked for it, as `Exit` tells.
            timeout: Seconds between SIGTERM and SIGKILL.
        """
        self._send(do="stop", timeout=timeout, by=who)
        with self._changed:
            return self._changed.wait_for(lambda: self._gone, timeout + _GRACES + _ANSWER_LIMIT)

    def stop(self, timeout: float) -> None:
        """End the whole tree: SIGTERM, ``timeout`` seconds, SIGKILL. Returns when it is gone."""
        if self._supervisor is None or self._left:
            self.close()
            return
        try:
            self._send(do="stop", timeout=timeout)
            limit = timeout + _GRACES + _ANSWER_LIMIT
            with self._changed:
                gone = self._changed.wait_for(lambda: self._gone, limit)
            if not gone:
                self._kill_supervisor()
            self._supervisor.wait()
            # It still has to end the root of a supervisor that was killed.
            self._join_reader()
        finally:
            self.close()

    def _kill_supervisor(self) -> None:
        """Kill a supervisor that does not answer; its guard, or else `_supervisor_lost`, ends the tree."""
        assert self._supervisor is not None
        if self.supervisor_pid is not None and self.supervisor_pid != self._supervisor.pid:
            if self._supervisor_start is not None:
                signal_process(self.supervisor_pid, self._supervisor_start, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._supervisor.wait(limits.KILL_LIMIT + _ANSWER_LIMIT)
        self._supervisor.kill()

    def close(self) -> None:
        """Let go: the supervisor sees it and ends the tree by itself."""
        if self._channel is not None:
            self._let_go = True
            # Wakes our own reader, which close() alone does not.
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
            self._channel.close()
            self._join_reader()
        if isinstance(self._supervisor, ForeignProcess):
            self._supervisor.close()

    def _join_reader(self) -> None:
        if self._reader is not None and self._reader.is_alive():
            self._reader.join(_JOIN_LIMIT)

    def _send(self, **message: object) -> None:
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.sendall(json.dumps(message).encode() + b"\n", _NO_SIGNAL)

    def _read(self, channel: socket.socket) -> None:
        # ValueError: the last message of a supervisor that was killed may be half a message.
        with contextlib.suppress(OSError, ValueError), channel.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                self._handle(message)
                if message["event"] == "child_died":
                    self._tell_child_death(self.child_deaths[-1][1])
        with self._changed:
            lost = self.pid if not self._gone and not self._let_go else None
        # Not under the lock: what is killed may take its time to go.
        how = self._supervisor_lost(lost) if lost else None
        with self._changed:
            if how is not None and self.exit is None:
                self.exit_at = time.monotonic()
                self.exit = how
            self._gone = True
            self._changed.notify_all()

    def _tell_child_death(self, death: str) -> None:
        try:
            self.on_child_death(death)
        except Exception:
            # The news of the server's own end must still be read.
            logger.exception("on_child_death failed: %s", death)

    def _handle(self, message: dict[str, Any]) -> None:
        with self._changed:
            event = message["event"]
            if event == "launched":
                self._note_launch(message)
            elif event == "taken_over":
                guard = message["guard"]
                self._supervisor = ForeignProcess(*filter(None, (guard, message["supervisor"])))
                self._note_launch(message)
            elif event == "kept":
                self._kept = message["ok"]
                # From now on the end of the channel says nothing about the server.
                self._let_go = self._let_go or message["ok"]
            elif event == "failed":
                self._failure = str(message["message"])
            elif event == "exited":
                self.exit_at = time.monotonic()
                self.exit = Exit(
                    message["code"], message["max_rss"], message["stopped_by"], background=message.get("background")
                )
            elif event == "child_died":
                self.child_deaths.append((time.monotonic(), describe_death(message)))
            elif event == "stop_command":
                self.stop_problem = message["problem"]
            elif event == "gone":
                self.survivors = survivors(message["survivors"], message["stuck"])
                self.leaks = message["leaks"]
                self._gone = True
            self._changed.notify_all()

    def _note_launch(self, message: Mapping[str, Any]) -> None:
        # The supervisor may be of another version of this package, and not tell when they began.
        self._cgroup = message.get("cgroup")
        self._start, self._supervisor_start = message.get("start"), message.get("supervisor_start")
        self.pid, self.supervisor_pid, self.control_socket = (
            message["pid"],
            message["supervisor"],
            message.get("control_socket"),
        )

    def _supervisor_lost(self, pid: int) -> Exit:
        """Kill what is known of a server whose supervisor and guard are gone; return how it has ended."""
        if self._start is not None:
            kill_session(pid, self._start)
        seen = self._last_seen.kill()
        all_ended = self._cgroup is not None and kill_cgroup(self._cgroup, limits.KILL_LIMIT)
        return Exit(None, 0, last_seen=None if all_ended else seen)


def _wire(text: str) -> str:
    return os.fsencode(text).decode("latin-1")


@contextlib.contextmanager
def _inheritable(*descriptors: int) -> Iterator[list[int]]:
    """Duplicate descriptors above 2: where stdin is closed ours are low, and the child's own would replace them."""
    with contextlib.ExitStack() as stack:
        copies = []
        for descriptor in descriptors:
            copies.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3))
            stack.callback(os.close, copies[-1])
        yield copies
