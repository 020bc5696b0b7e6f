"""The GPUs of the machine, as NVML (nvidia-ml-py) or amdsmi shows them. Imported only where somebody asks."""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One GPU at one moment.

    Attributes:
        uuid: Its identity, which outlasts restarts.
        index: Its number in the driver's own order.
        name: Its model.
        used: Memory in use, in bytes, or None if the driver does not say: NVIDIA's GB10 has none of its own.
        processes: Process id to bytes of its memory (0 where the driver does not say), or None if the driver does
            not name them. The ids are those of the driver's own pid namespace.
        amd: Whether it is AMD's, which has an environment variable of its own.
    """

    uuid: str
    index: int
    name: str
    used: int | None
    processes: Mapping[int, int] | None
    amd: bool = False

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


class NoTelemetry(Exception):
    """Nothing on this machine tells about GPUs; the message says why."""


def read_gpus() -> list[Gpu]:
    """Return all GPUs as they are now.

    Raises:
        NoTelemetry: There is no library that could tell, or it fails.
    """
    reader = _reader()
    if isinstance(reader, str):
        raise NoTelemetry(reader)
    try:
        return reader()
    except Exception as error:
        raise NoTelemetry(f"{type(error).__name__}: {_words(error)}") from None


_connecting = threading.Lock()
"""Of two threads that put something else in the place of sys.stdout, the later one puts back the other one's."""


def _reader() -> Callable[[], list[Gpu]] | str:
    """Return what reads the GPUs, or why nothing can."""
    with _connecting:
        return _connect()


@functools.cache
def _connect() -> Callable[[], list[Gpu]] | str:
    reasons = []
    # A broken driver raises whatever it likes; none of it may end a test run.
    for name, connect in (("nvidia-ml-py", _connect_nvml), ("amdsmi", _connect_amdsmi)):
        try:
            return connect()
        except ImportError:
            reasons.append(f"{name} is not installed")
        except Exception as error:
            reasons.append(f"{name}: {_words(error) or type(error).__name__}")
    return "; ".join(reasons)


def _connect_nvml() -> Callable[[], list[Gpu]]:
    import pynvml

    pynvml.nvmlInit()

    def processes(handle: Any) -> Mapping[int, int] | None:
        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
            return None
        return _by_pid((entry.pid, entry.usedGpuMemory or 0) for entry in running)

    def used(handle: Any) -> int | None:
        with contextlib.suppress(pynvml.NVMLError_NotSupported):
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        return None

    def read() -> list[Gpu]:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = _text(pynvml.nvmlDeviceGetName(handle))
            found.append(Gpu(_text(pynvml.nvmlDeviceGetUUID(handle)), index, name, used(handle), processes(handle)))
        return found

    return read


def _connect_amdsmi() -> Callable[[], list[Gpu]]:
    try:
        # amdsmi 7.0 prints that its library is missing, and then falls over a name that it has not set.
        with contextlib.redirect_stdout(io.StringIO()):
            import amdsmi
    except KeyError:
        raise OSError("libamd_smi.so cannot be loaded") from None
    amdsmi.amdsmi_init()

    def processes(handle: Any) -> Mapping[int, int] | None:
        try:
            running = amdsmi.amdsmi_get_gpu_process_list(handle)
        except amdsmi.AmdSmiException:
            return None
        return _by_pid((entry["pid"], entry["memory_usage"]["vram_mem"]) for entry in running)

    def used(handle: Any) -> int | None:
        with contextlib.suppress(amdsmi.AmdSmiException):
            return int(amdsmi.amdsmi_get_gpu_memory_usage(handle, amdsmi.AmdSmiMemoryType.VRAM))
        return None

    def name(handle: Any) -> str:
        with contextlib.suppress(amdsmi.AmdSmiException):
            return str(amdsmi.amdsmi_get_gpu_asic_info(handle)["market_name"])
        return "AMD"

    def read() -> list[Gpu]:
        return [
            Gpu(
                amdsmi.amdsmi_get_gpu_device_uuid(handle),
                index,
                name(handle),
                used(handle),
                processes(handle),
                amd=True,
            )
            for index, handle in enumerate(amdsmi.amdsmi_get_processor_handles())
        ]

    return read


def _by_pid(sizes: Iterable[tuple[int, int]]) -> Mapping[int, int]:
    # On a partitioned GPU a process comes once for each part.
    found: Counter[int] = Counter()
    for pid, size in sizes:
        found[pid] += size
    return found


def _words(error: Exception) -> str:
    # amdsmi's texts have several lines.
    return " ".join(str(error).split())


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
