"""GPU memory: by process where the driver's process ids are ours, else by how much of each device is in use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection

from pytest_infserver.launcher.gpus import Gpu, NoTelemetry, read_gpus
from pytest_infserver.launcher.leaks.finding import Finding
from pytest_infserver.launcher.places import shared_dir, take_shared_lock
from pytest_infserver.launcher.processes import is_alive, read_process

RELEASE_LIMIT = 10.0
"""Seconds that the driver gets to take the memory of an ended process back: it comes later than the end."""
TOLERANCE = 64 << 20
"""Bytes by which a device's memory may differ without meaning anything."""
_HOST_PID_NAMESPACE = "pid:[4026531836]"
_STEP = 0.1


class GpuMemory:
    """One server's share of the GPUs' memory, from before its launch on.

    Attributes:
        not_checked: Why it cannot be told, or None.
        lock_fds: Locks on the devices that are judged by how much is in use; the server's supervisor must hold them.
    """

    def __init__(self) -> None:
        self.not_checked: str | None = None
        self.lock_fds: list[int] = []
        self._before: dict[str, Gpu] = {}
        try:
            gpus = read_gpus()
        except NoTelemetry as reason:
            self.not_checked = f"GPU memory: {reason}"
            return
        self._by_process = _pids_are_ours() and all(gpu.processes is not None for gpu in gpus)
        if not self._by_process:
            gpus = [gpu for gpu in gpus if self._lock(gpu)]
        self._before = {gpu.uuid: gpu for gpu in gpus}

    def release(self) -> None:
        """Close our copies of the locks; they last while the supervisor holds its own."""
        while self.lock_fds:
            os.close(self.lock_fds.pop())

    def left(self, processes: Collection[tuple[int, str]]) -> list[Finding]:
        """Return what is still in use now that the server's processes, (pid, start) each, are gone."""
        if self.not_checked is not None or not self._before:
            return []
        judge: Callable[[Gpu], Finding | None]
        if self._by_process:
            pids = {pid for pid, start in processes if not _is_another(pid, start)}
            judge = lambda gpu: _held_by(gpu, pids)  # noqa: E731
        else:
            judge = lambda gpu: _grown(gpu, self._before[gpu.uuid])  # noqa: E731
        deadline = time.monotonic() + RELEASE_LIMIT
        while True:
            try:
                now = [gpu for gpu in read_gpus() if gpu.uuid in self._before]
            except NoTelemetry as reason:
                self.not_checked = f"GPU memory: {reason}"
                return []
            found = [finding for finding in map(judge, now) if finding is not None]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(_STEP)

    def _lock(self, gpu: Gpu) -> bool:
        folder = shared_dir()
        lock = None if folder is None else take_shared_lock(folder / f"gpu-{gpu.uuid}.lock")
        if lock is None:
            self.not_checked = f"GPU memory: another server uses {gpu}, and process ids mean nothing in this container"
            return False
        self.lock_fds.append(lock)
        return True


def _pids_are_ours() -> bool:
    # NVML gives the ids of the driver's namespace, which is the first one of the machine.
    try:
        return os.readlink("/proc/self/ns/pid") == _HOST_PID_NAMESPACE  # noqa: PTH115
    except OSError:
        return False


def _is_another(pid: int, start: str) -> bool:
    return read_process(pid) is not None and not is_alive(pid, start)


def _held_by(gpu: Gpu, pids: Collection[int]) -> Finding | None:
    held = {pid: size for pid, size in (gpu.processes or {}).items() if pid in pids}
    if not held:
        return None
    size = f"{sum(held.values()) >> 20} MiB still held" if any(held.values()) else "still in use"
    return Finding("gpu", str(gpu), f"{size} {RELEASE_LIMIT:g} s after the end", pid=next(iter(held)))


def _grown(gpu: Gpu, before: Gpu) -> Finding | None:
    growth = gpu.used - before.used
    if growth <= TOLERANCE:
        return None
    known = gpu.processes is not None and before.processes is not None
    if known and not set(gpu.processes or ()) - set(before.processes or ()):
        # Nobody is there who was not there before the server: somebody else has grown.
        return None
    return Finding("gpu", str(gpu), f"{growth >> 20} MiB more in use than before the start")
