"""How many files, sockets and the like a process has open."""

from __future__ import annotations

import gc
import os
import sys

FD_FOLDER = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"


def open_descriptors() -> int:
    """Return the number of descriptors that this process has open; what nobody refers to any more is closed first."""
    gc.collect()
    return len(os.listdir(FD_FOLDER))
