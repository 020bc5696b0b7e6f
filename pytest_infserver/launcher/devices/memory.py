"""Whether the memory of devices is back near what it was before a server used them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pytest_infserver.launcher.devices.visible import Device
from pytest_infserver.system.gpus import Gpu, NoTelemetry, read_gpus
from pytest_infserver.system.secrets import find_secrets
from pytest_infserver.system.text import one_line

TOLERANCE = 512 << 20
"""Bytes by which a device's memory may differ and still leave room for the next server."""
_STEP = 0.1
_MAX_COMMAND = 80
_noting = threading.Lock()
_owed: dict[str, Gpu] = {}
"""UUIDs of the devices that this process has released before their memory was back, each as it was before."""
_MAX_READ = 64 * 1024


@dataclass(frozen=True)
class MemoryBefore:
    """The memory of some devices at one moment.

    Attributes:
        gpus: UUID to the device as it was; those of which nothing is known are missing.
    """

    gpus: Mapping[str, Gpu]

    @classmethod
    def of(cls, devices: Iterable[Device]) -> MemoryBefore:
        """Look at devices now, or where memory is owed, as they were before that was taken; see `note_owed`."""
        keys = {device.key for device in devices}
        if not keys:
            return cls({})
        try:
            now = {gpu.uuid: gpu for gpu in read_gpus() if gpu.uuid in keys and gpu.used is not None}
        except NoTelemetry:
            return cls({})
        with _noting:
            # What the one before has not given back is not this one's beginning.
            return cls({uuid: _owed.get(uuid, gpu) for uuid, gpu in now.items()})

    def note_owed(self) -> None:
        """Remember, for whoever gets these devices next, what is not back yet."""
        left = {gpu.uuid for gpu, _ in self._left()}
        with _noting:
            for uuid, gpu in self.gpus.items():
                if uuid in left:
                    _owed[uuid] = gpu
                else:
                    _owed.pop(uuid, None)

    def without(self, uuids: Collection[str]) -> MemoryBefore:
        """Return the memory of the other devices."""
        return MemoryBefore({uuid: gpu for uuid, gpu in self.gpus.items() if uuid not in uuids})

    def wait_until_back(self, timeout: float = 30.0) -> str | None:
        """Wait until each device's memory is back near what it was.

        Args:
            timeout: Limit in seconds; the memory of an ended process comes back later than its end.

        Returns:
            Which device still holds how much for whom, or None if all is back or nobody can tell.
        """
        deadline = time.monotonic() + timeout
        while True:
            left = self._left()
            if not left:
                return None
            if time.monotonic() >= deadline:
                return "; ".join(_words(gpu, growth, self.gpus[gpu.uuid]) for gpu, growth in left)
            time.sleep(_STEP)

    def _left(self) -> list[tuple[Gpu, int]]:
        if not self.gpus:
            return []
        try:
            now = [gpu for gpu in read_gpus() if gpu.uuid in self.gpus]
        except NoTelemetry:
            return []
        grown = [(gpu, (gpu.used or 0) - (self.gpus[gpu.uuid].used or 0)) for gpu in now]
        return [(gpu, growth) for gpu, growth in grown if growth > TOLERANCE]


def _words(gpu: Gpu, growth: int, before: Gpu) -> str:
    text = f"{gpu} holds {growth >> 20} MiB more than before"
    holders = gpu.processes or {}
    # Somebody who was there already may have grown: without newcomers it is one of them.
    new = [pid for pid in holders if pid not in (before.processes or {})] or list(holders)
    if not new:
        return f"{text}; the driver does not say for which process"
    return f"{text}, for {', '.join(describe_process(pid) for pid in new)}"


def describe_process(pid: int) -> str:
    """Return a process as "pid 4711 (its command)", as far as it can be seen."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        words = process.cmdline()
        # One line, whatever a script on the command line looks like.
        command = " ".join(one_line(" ".join(words), find_secrets({}, words), _MAX_READ).split())
        return f"pid {pid} ({command[:_MAX_COMMAND] or one_line(process.name())})"
    return f"pid {pid}"
