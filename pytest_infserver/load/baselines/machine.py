"""Which machine this is, as far as its speed goes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

from pytest_infserver.system.gpus import NoTelemetry, read_gpus
from pytest_infserver.system.machine import cores, memory


@functools.cache
def _machine() -> str:
    gpus: list[str] = []
    with contextlib.suppress(NoTelemetry):
        gpus = sorted(gpu.name for gpu in read_gpus())
    found = {"cpu": _cpu(), "cores": cores(), "memory_gb": round(memory() / 1e9), "gpus": gpus}
    return json.dumps({**found, "system": f"{platform.system()} {platform.machine()}"})


def machine() -> dict[str, Any]:
    """Return what makes this machine as fast as it is."""
    found: dict[str, Any] = json.loads(_machine())
    return found


def driver() -> str | None:
    """Return the version of the GPU driver, where it can be told."""
    with contextlib.suppress(OSError):
        found = re.search(r"Kernel Module\s+([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
        return found[1] if found else None
    return None


def machine_key() -> str:
    """Return a short hash of it."""
    return hashlib.sha256(_machine().encode()).hexdigest()[:8]


def in_words(told: dict[str, Any]) -> str:
    """Return a machine in words."""
    gpus = f", {', '.join(told['gpus'])}" if told.get("gpus") else ""
    return f"{told.get('cpu') or 'unknown CPU'}, {told.get('cores')} cores, {told.get('memory_gb')} GB{gpus}"


def _cpu() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()
