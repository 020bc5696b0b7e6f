"""The parent process of one server: reports its exit at once, stops its whole tree, outlives its owner.

Runs as a stand-alone script under ``python -I -S`` and imports only the standard library, so that it starts in
some 20 ms and cannot be broken by the environment of the server or of the owner. The owner is the process that
uses `pytest_infserver.launcher.process`; both talk in JSON lines over one socket.

To the supervisor: {"do": "launch", "argv", "env", "cwd", "stop_timeout"}, then {"do": "ready"},
{"do": "stop", "timeout"}. From it: {"event": "launched", "pid"} or {"event": "failed", "message"}, then
{"event": "exited", "code", "max_rss"}, and last {"event": "gone", "survivors", "stuck"}. The words of the command,
its environment and directory are bytes, sent as latin-1: the two processes may differ in their encodings.
The server's output goes where the supervisor's own goes.
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
from typing import Any, NamedTuple

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
OWNER_INTERVAL = 1.0
"""Seconds between two looks for the owner where the system cannot tell of its end (no pidfd)."""

_PR_SET_CHILD_SUBREAPER = 36


class Process(NamedTuple):
    """A process that cannot be confused with a later one of the same pid."""

    pid: int
    parent: int
    start: str
    zombie: bool


def list_processes() -> list[Process]:
    """Return all processes of the machine that this one may see."""
    if not os.path.isdir("/proc/self"):  # noqa: PTH112 (pathlib costs start-up time)
        return _list_processes_by_ps()
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                # The command name may hold spaces and parentheses: fields count from the last one.
                fields = file.read().rpartition(b")")[2].split()
                # A process whose first thread has ended looks like a zombie while its other threads run.
                zombie = fields[0] in (b"Z", b"X") and int(fields[17]) < 2
                found.append(Process(int(name), int(fields[1]), fields[19].decode(), zombie))
    return found


def _list_processes_by_ps() -> list[Process]:
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,stat=,lstart="], stdout=subprocess.PIPE) as ps:
        output = ps.communicate()[0]
    rows = [line.split(None, 3) for line in output.decode("utf-8", "replace").splitlines()]
    found = [Process(int(row[0]), int(row[1]), row[3], row[2].startswith("Z")) for row in rows if len(row) == 4]
    return [process for process in found if process.pid != ps.pid]


def descendants(root: int) -> list[Process]:
    """Return the processes below ``root``, parents first, zombies left out."""
    children: dict[int, list[Process]] = {}
    for process in list_processes():
        children.setdefault(process.parent, []).append(process)
    found, queue = [], [root]
    while queue:
        for child in children.get(queue.pop(), []):
            queue.append(child.pid)
            if not child.zombie:
                found.append(child)
    return found


def send_signal(process: Process, number: int) -> None:
    """Signal a process unless it has ended, even if its pid has been given to another one since."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
            os.kill(process.pid, number)
            return
        try:
            handle = os.pidfd_open(process.pid)
        except OSError:
            if process in list_processes():
                os.kill(process.pid, number)
            return
        try:
            with open(f"/proc/{process.pid}/stat", "rb") as file:  # noqa: PTH123
                if file.read().rpartition(b")")[2].split()[19].decode() == process.start:
                    signal.pidfd_send_signal(handle, number)
        except FileNotFoundError:
            pass
        finally:
            os.close(handle)


def ignores_sigterm(process: Process) -> bool:
    """Tell whether SIGTERM cannot end this process (Linux; elsewhere the answer is no)."""
    with contextlib.suppress(OSError), open(f"/proc/{process.pid}/status", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"SigIgn:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def describe(process: Process) -> dict[str, Any]:
    """Return what a person wants to know about a process that should have ended."""
    command = ""
    with contextlib.suppress(OSError), open(f"/proc/{process.pid}/cmdline", "rb") as file:  # noqa: PTH123
        command = " ".join(file.read(400).replace(b"\0", b" ").decode("utf-8", "replace").split())
    return {"pid": process.pid, "command": command}


class Supervisor:
    """Owns one server process and everything that descends from it."""

    def __init__(self, channel: socket.socket, owner_pid: int) -> None:
        self.channel = channel
        self.inbox = b""
        self.owner_pid = owner_pid
        self.owner_handle: int | None = None
        self.owner_gone = False
        self.root = 0
        self.root_exited = False
        self.childless = False
        self.ready = False
        self.stop_timeout = 30.0
        self.stopping = False
        self.deadline: float | None = None  # when what is left is killed
        self.drain_since: float | None = None  # when the root ended
        self.drain_asked = False
        self.stubborn_since: float | None = None
        self.killed_since: float | None = None
        self.survivors: dict[tuple[int, str], dict[str, Any]] = {}
        self.wakeup_read, wakeup_write = os.pipe()
        os.set_blocking(self.wakeup_read, False)
        os.set_blocking(wakeup_write, False)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self.begin_stop())
        # Blocked signals are inherited: without SIGCHLD no exit is seen, and the server needs its SIGTERM.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._watch_owner()

    def run(self) -> None:
        """Live until the whole tree has ended."""
        while not self._finished():
            patience = self._patience()
            readable = {handle for handle, _ in self._poller().poll(None if patience is None else patience * 1000)}
            if self.channel.fileno() in readable:
                self._receive()
            elif self.owner_handle in readable or os.getppid() != self.owner_pid:
                self._lose_owner()
            with contextlib.suppress(BlockingIOError):
                os.read(self.wakeup_read, 4096)
            self._reap()
            self._drain()
            self._kill_when_due()
        left = [describe(process) for process in descendants(os.getpid())]
        self._send(event="gone", survivors=list(self.survivors.values()), stuck=left)

    def begin_stop(self, timeout: float | None = None) -> None:
        """Ask the root to end; it and its descendants are killed after ``timeout`` seconds."""
        timeout = self.stop_timeout if timeout is None else timeout
        if not self.ready:
            timeout = min(timeout, STARTUP_GRACE)
        if self.stopping:
            if self.deadline is not None:
                self.deadline = min(self.deadline, time.monotonic() + timeout)
            return
        self.stopping = True
        self.deadline = time.monotonic() + timeout
        if self.root and not self.root_exited:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # Only we reap the root, so that its pid is still its own.
                os.kill(self.root, signal.SIGTERM)

    def _watch_owner(self) -> None:
        # A forked child of the owner holds the socket open too: only the pid tells of the owner's end.
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self.owner_handle = os.pidfd_open(self.owner_pid)
        if os.getppid() != self.owner_pid:
            self._lose_owner()

    def _lose_owner(self) -> None:
        if not self.owner_gone:
            self.owner_gone = True
            self.begin_stop()

    def _poller(self) -> select.poll:
        # Not select.select(): the owner may have given us a descriptor above 1023.
        poller = select.poll()
        poller.register(self.wakeup_read, select.POLLIN)
        if not self.owner_gone:
            poller.register(self.channel, select.POLLIN)
            if self.owner_handle is not None:
                poller.register(self.owner_handle, select.POLLIN)
        return poller

    def _finished(self) -> bool:
        if self.killed_since is not None and time.monotonic() - self.killed_since > KILL_LIMIT:
            return True
        if not self.root:
            return self.stopping
        return self.root_exited and self.childless

    def _patience(self) -> float | None:
        if self.killed_since is not None:
            return 0.02
        if self.drain_since is not None:
            return 0.1 if self.drain_asked else SETTLE
        if self.deadline is not None:
            return max(0.0, self.deadline - time.monotonic())
        return OWNER_INTERVAL if self.owner_handle is None else None

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
            elif action == "stop":
                self.begin_stop(message["timeout"])

    def _launch(self, argv: list[str], env: dict[str, str], cwd: str | None, stop_timeout: float) -> None:
        self.stop_timeout = stop_timeout
        try:
            child = subprocess.Popen(
                [word.encode("latin-1") for word in argv],
                env={name.encode("latin-1"): value.encode("latin-1") for name, value in env.items()},
                cwd=None if cwd is None else cwd.encode("latin-1"),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._send(event="failed", message=getattr(error, "strerror", None) or str(error))
            self.begin_stop()
            return
        self.root = child.pid
        child.returncode = 0  # reaped below, never by Popen
        self._send(event="launched", pid=child.pid)

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

    def _root_ended(self, code: int, max_rss: int) -> None:
        self.root_exited = True
        bytes_used = max_rss if sys.platform == "darwin" else max_rss * 1024
        self._send(event="exited", code=code, max_rss=bytes_used)
        self.drain_since = time.monotonic()
        if self.killed_since is None:
            self.deadline = self.drain_since + min(DRAIN_GRACE, self.stop_timeout)

    def _drain(self) -> None:
        """See the descendants off that their root has left behind."""
        now = time.monotonic()
        if self.drain_since is None or self.killed_since is not None or now - self.drain_since < SETTLE:
            return
        left = descendants(os.getpid())
        if not self.drain_asked:
            self.drain_asked = True
            for process in left:
                send_signal(process, signal.SIGTERM)
        if not all(ignores_sigterm(process) for process in left):
            self.stubborn_since = None
        elif self.stubborn_since is None:
            self.stubborn_since = now
        elif now - self.stubborn_since > STUBBORN_GRACE:
            self.deadline = now

    def _kill_when_due(self) -> None:
        if self.deadline is None or time.monotonic() < self.deadline or not self.root:
            return
        # Stopped processes cannot fork: freeze until no new one appears, then kill them all.
        frozen: set[Process] = set()
        for _ in range(20):
            new = [process for process in descendants(os.getpid()) if process not in frozen]
            if not new:
                break
            for process in new:
                send_signal(process, signal.SIGSTOP)
            frozen.update(new)
        for process in frozen:
            if self.killed_since is None:
                self.survivors[process.pid, process.start] = describe(process)
            send_signal(process, signal.SIGKILL)
        if self.killed_since is None:
            self.killed_since = time.monotonic()

    def _send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):
            self.channel.sendall(json.dumps(message).encode() + b"\n")


def become_subreaper() -> None:
    """Adopt every descendant whose own parent ends (Linux; elsewhere they go to pid 1)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main() -> None:
    """Run as ``supervisor.py SOCKET_FD OWNER_PID``."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    become_subreaper()
    supervisor = Supervisor(channel, int(sys.argv[2]))
    try:
        supervisor.run()
    except Exception:
        # Nobody else would end the tree.
        traceback.print_exc()
        supervisor.begin_stop(0)
        supervisor.run()
    # Skips the interpreter's shutdown: the owner waits for this end.
    os._exit(0)


if __name__ == "__main__":
    main()
