"""Small processes that hold things, as a server's do."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from pytest_infserver.launcher.leaks.holdings import Holdings, read_holdings
from pytest_infserver.system.processes.table import Process, read_process

NOBODY = 65534
LIMIT = 60
_PREAMBLE = f"""
import os, signal, sys
signal.alarm({LIMIT})

def say(*words):
    print(*words, flush=True)

def wait():
    sys.stdin.readline()
"""
SHM = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]

def hold(path, how="both", flags=os.O_RDWR | os.O_CREAT):
    '''Hold a file by its descriptor, by a mapping (Python's own mmap keeps a descriptor too) or by both.'''
    descriptor = os.open(path, flags, 0o600)
    if flags & os.O_CREAT:
        os.ftruncate(descriptor, 4096)
    if how != "fd":
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if flags & os.O_RDWR else 0)
        assert libc.mmap(None, 4096, protection, mmap.MAP_SHARED, descriptor, 0) != 2**64 - 1
    if how == "mapping":
        os.close(descriptor)
"""
"""Defines ``hold(path, how)``."""


BECOME_NOBODY = f"""
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
"""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="is looked for on Linux only")
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root may start processes of another user")


class Holder:
    """A Python process that runs ``code`` and then waits until it is let go."""

    def __init__(self, code: str, *arguments: object, pass_fds: Sequence[int] = (), cwd: str | None = None) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", f"{_PREAMBLE}\n{code}\nsay('up')\nwait()", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            cwd=cwd,
        )
        self.pid = self._child.pid
        self.said: list[str] = []
        self._read_until("up")

    def _read_until(self, word: str) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.strip() == word:
                return
            self.said.append(line.strip())
        raise AssertionError(f"it ended with {self._child.wait()}")

    @property
    def process(self) -> Process:
        found = read_process(self.pid)
        assert found is not None
        return found

    @property
    def holdings(self) -> Holdings:
        return read_holdings(self.process)

    def go_on(self, until: str) -> None:
        """Let its next ``wait()`` return; come back when it has said ``until``."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        self._read_until(until)

    def end(self) -> None:
        self._child.kill()
        self._child.communicate()


@contextlib.contextmanager
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two ends over which processes hand each other descriptors."""
    left, right = socket.socketpair()
    with left, right:
        yield left, right


SEND = """
import array, socket
def send(end, *descriptors):
    '''Pass open files on to another process.'''
    sender = socket.socket(fileno=end)
    sender.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
"""
"""Defines ``send(end, *descriptors)``."""
RECEIVE = """
import array, socket
def receive(end):
    receiver = socket.socket(fileno=end)
    (level, kind, data), = receiver.recvmsg(1, socket.CMSG_SPACE(4))[1]
    return array.array("i", data)[0]
"""
"""Defines ``receive(end)``."""


def send(end: socket.socket, descriptor: int) -> None:
    """Pass an open file on to another process."""
    end.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
