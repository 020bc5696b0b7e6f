"""GPU memory: by process where the driver's process ids are ours, else by how much of each device is in use."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.disk.locks import take_shared_lock
from pytest_infserver.system.disk.places import shared_lock_file
from pytest_infserver.system.gpus import Gpu, NoTelemetry, read_gpus
from pytest_infserver.system.processes.table import is_alive, read_process

RELEASE_LIMIT = 10.0
"""Seconds that the driver gets to take the memory of an ended process back: it comes later than the end."""
TOLERANCE = 64 << 20
"""Bytes by which a device's memory may differ without meaning anything."""
_HOST_PID_NAMESPACE = "pid:[4026531836]"
_STEP = 0.1


class GpuMemory:
    """One server's share of the GPUs' memory, from before its launch on.

    Attributes:
        lock_fds: Locks on the devices that are judged by how much is in use; the server's supervisor must hold them.
    """

    def __init__(self) -> None:
        self.lock_fds: list[int] = []
        self._reasons: dict[str, None] = {}
        self._before: dict[str, Gpu] = {}
        self._pids_are_ours = _pids_are_ours()
        try:
            gpus = read_gpus()
        except NoTelemetry as reason:
            self._reasons[str(reason)] = None
            return
        self._before = {gpu.uuid: gpu for gpu in gpus if self._by_process(gpu) or self._lock(gpu)}

    @property
    def not_checked(self) -> str | None:
        """What cannot be told, with the reason, or None."""
        return f"GPU memory: {'; '.join(self._reasons)}" if self._reasons else None

    def release(self) -> None:
        """Close our copies of the locks; they last while the supervisor holds its own."""
        while self.lock_fds:
            os.close(self.lock_fds.pop())

    def left(self, processes: Mapping[tuple[int, str], str]) -> list[Finding]:
        """Return what is still in use now that the server's processes are gone.

        Args:
            processes: (pid, start) of each to its command line.
        """
        # The locks ended with the supervisor: whoever has taken one since then may use the device by now.
        self.release()
        for gpu in list(self._before.values()):
            if not self._by_process(gpu) and not self._lock(gpu):
                del self._before[gpu.uuid]
        try:
            return self._wait_for_release(processes) if self._before else []
        finally:
            self.release()

    def _wait_for_release(self, processes: Mapping[tuple[int, str], str]) -> list[Finding]:
        deadline = time.monotonic() + RELEASE_LIMIT
        while True:
            try:
                now = {gpu.uuid: gpu for gpu in read_gpus()}
            except NoTelemetry as reason:
                self._reasons[str(reason)] = None
                return []
            judged = [self._judge(before, now.get(uuid), processes) for uuid, before in self._before.items()]
            found = [finding for finding in judged if finding is not None]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(_STEP)

    def _judge(self, before: Gpu, now: Gpu | None, processes: Mapping[tuple[int, str], str]) -> Finding | None:
        if now is not None and self._by_process(before) and now.processes is not None:
            return _held_by(now, now.processes, processes)
        if now is not None and not self._by_process(before) and now.used is not None and before.used is not None:
            return _grown(now, now.used - before.used, before)
        self._reasons[f"the driver does not tell about {before} any more"] = None
        return None

    def _by_process(self, gpu: Gpu) -> bool:
        return self._pids_are_ours and gpu.processes is not None

    def _lock(self, gpu: Gpu) -> bool:
        """Make sure that no other server's memory is taken for this one's; return whether ``gpu`` can be judged."""
        if gpu.used is None:
            self._reasons[f"the driver does not tell how much of {gpu} is in use"] = None
            return False
        try:
            lock = take_shared_lock(shared_lock_file(f"gpu-{gpu.uuid}.lock"))
        except OSError as error:
            self._reasons[f"{gpu} cannot be locked: {error}"] = None
            return False
        if lock is None:
            self._reasons[f"another server uses {gpu}, and its memory cannot be told by process here"] = None
            return False
        self.lock_fds.append(lock)
        return True


def _pids_are_ours() -> bool:
    # NVML gives the ids of the driver's namespace, which is the first one of the machine.
    try:
        return os.readlink("/proc/self/ns/pid") == _HOST_PID_NAMESPACE  # noqa: PTH115
    except OSError:
        return False


def _held_by(gpu: Gpu, sizes: Mapping[int, int], processes: Mapping[tuple[int, str], str]) -> Finding | None:
    held = {pid: command for (pid, start), command in processes.items() if pid in sizes and not _is_another(pid, start)}
    if not held:
        return None
    total = sum(sizes[pid] for pid in held)
    size = f"{total >> 20} MiB still held" if total else "still in use"
    largest = max(held, key=lambda pid: sizes[pid])
    return Finding("gpu", str(gpu), f"{size} {RELEASE_LIMIT:g} s after the end", largest, held[largest])


def _is_another(pid: int, start: str) -> bool:
    return read_process(pid) is not None and not is_alive(pid, start)


def _grown(gpu: Gpu, growth: int, before: Gpu) -> Finding | None:
    if growth <= TOLERANCE:
        return None
    # Where the driver hides all processes from a container the list is empty, and says nothing.
    if gpu.processes and before.processes is not None and gpu.processes.keys() <= before.processes.keys():
        # Nobody is there who was not there before the server: somebody else has grown.
        return None
    return Finding("gpu", str(gpu), f"{growth >> 20} MiB more in use than before the start")
