"""How large the machine is: the container's share of it, where there is one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cores() -> float:
    """Return how many cores this process may use."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        count = min(count, int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError):
        # cgroup v1; -1 is no limit.
        quota_us = int((_CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        if quota_us > 0:
            count = min(count, quota_us / int((_CGROUP / "cpu/cpu.cfs_period_us").read_text()))
    return count


def memory() -> int:
    """Return how much memory this process may use, in bytes."""
    # Not by /proc/meminfo, which some containers do not have.
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            size = min(size, int((_CGROUP / file).read_text()))
    return size
