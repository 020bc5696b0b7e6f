"""How much memory processes use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from pytest_infserver.system.processes.table import read_file


def resident_memory(pids: Iterable[int]) -> int:
    """Return the resident memory of processes in bytes; what they share is counted for each."""
    if os.path.isdir("/proc/self"):  # noqa: PTH112
        # The second field of statm, in pages.
        fields = (read_file(f"/proc/{pid}/statm", 128).split() for pid in pids)
        return sum(int(field[1]) for field in fields if len(field) > 1) * os.sysconf("SC_PAGE_SIZE")
    import psutil

    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_info().rss
    return total
