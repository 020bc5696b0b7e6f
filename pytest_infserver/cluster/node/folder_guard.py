"""Removes a server's folder on its node if the actor was killed while there was no supervisor that does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import os, sys
os.read(0, 1)
import fcntl, glob, shutil, time
folder = sys.argv[1]

def is_free():
    for path in [folder + "/.lock", *glob.glob(glob.escape(folder) + "/logs/*/.lock")]:
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            # Kept, it would itself be in the way of the next look.
            os.close(handle)
    return True

for _ in range(3000):
    if is_free():
        # Once more if somebody who is about to end has written there meanwhile.
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            break
    time.sleep(0.1)
"""
"""Waits for the end of its standard input. Whoever uses the folder then holds one of its locks, and removes it, unless
that ends before it hears of the actor's end: a server may take minutes to stop."""


def guard(folder: Path) -> subprocess.Popen[bytes] | None:
    """Start a process that outlives this one, which holds the other end of its standard input.

    Args:
        folder: The folder; this process has locked its file ``.lock``.
    """
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        # What it is for is rare, and the next server on the node removes it, too.
        return None
