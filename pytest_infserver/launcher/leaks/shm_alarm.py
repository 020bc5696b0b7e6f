"""Tells at once that somebody has made an object in /dev/shm, so that its holder is seen while it lives."""

from __future__ import annotations

import contextlib
import ctypes
import os

from pytest_infserver.launcher.leaks.shm import FOLDER

_IN_CREATE = 0x100


def open_alarm() -> int | None:
    """Return a descriptor that becomes readable with each new object; None if the kernel gives none.

    It is an inotify instance, of which a user has 128: without one new objects are seen by polling alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if descriptor >= 0:
            if libc.inotify_add_watch(descriptor, FOLDER.encode(), _IN_CREATE) >= 0:
                return descriptor
            os.close(descriptor)
    return None


def quiet_alarm(descriptor: int) -> None:
    """Make an alarm ready for the next object."""
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 1 << 16):
            pass
