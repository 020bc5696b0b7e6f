"""The GPUs of the machine, as NVML (nvidia-ml-py) or amdsmi shows them. Imported only where somebody asks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One GPU at one moment.

    Attributes:
        uuid: Its identity, which outlasts restarts.
        index: Its number in the driver's own order.
        name: Its model.
        used: Memory in use, in bytes.
        processes: Process id to bytes of its memory (0 where the driver does not say), or None if the driver does
            not name them. The ids are those of the driver's own pid namespace.
    """

    uuid: str
    index: int
    name: str
    used: int
    processes: Mapping[int, int] | None

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
        raise NoTelemetry(f"{type(error).__name__}: {error}") from None


@functools.cache
def _reader() -> Callable[[], list[Gpu]] | str:
    """Return what reads the GPUs, or why nothing can."""
    reasons = []
    # A broken driver raises whatever it likes; none of it may end a test run.
    for name, connect in (("nvidia-ml-py", _connect_nvml), ("amdsmi", _connect_amdsmi)):
        try:
            return connect()
        except ImportError:
            reasons.append(f"{name} is not installed")
        except Exception as error:
            reasons.append(f"{name}: {str(error) or type(error).__name__}")
    return "; ".join(reasons)


def _connect_nvml() -> Callable[[], list[Gpu]]:
    import pynvml

    pynvml.nvmlInit()

    def processes(handle: Any) -> Mapping[int, int] | None:
        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except pynvml.NVMLError:
            return None
        return {entry.pid: entry.usedGpuMemory or 0 for entry in running}

    def read() -> list[Gpu]:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            used = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
            name = _text(pynvml.nvmlDeviceGetName(handle))
            found.append(Gpu(_text(pynvml.nvmlDeviceGetUUID(handle)), index, name, used, processes(handle)))
        return found

    return read


def _connect_amdsmi() -> Callable[[], list[Gpu]]:
    import amdsmi

    amdsmi.amdsmi_init()

    def processes(handle: Any) -> Mapping[int, int] | None:
        try:
            running = amdsmi.amdsmi_get_gpu_process_list(handle)
        except amdsmi.AmdSmiException:
            return None
        return {entry["pid"]: entry["memory_usage"]["vram_mem"] for entry in running}

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
                int(amdsmi.amdsmi_get_gpu_memory_usage(handle, amdsmi.AmdSmiMemoryType.VRAM)),
                processes(handle),
            )
            for index, handle in enumerate(amdsmi.amdsmi_get_processor_handles())
        ]

    return read


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
