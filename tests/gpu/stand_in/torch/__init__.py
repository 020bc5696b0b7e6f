"""What `torch_server.py` needs of torch, where there is no GPU.

What is allocated is noted in the file that the stand-in of NVIDIA's library reads: see nvml_stub.c.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

TOTAL = 64 << 30
CONTEXT = 300 << 20
"""Bytes that a process takes by using the device at all."""
uint8 = "uint8"
_contexts: set[int] = set()


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError."""


def _note(size: int) -> None:
    with Path(os.environ["NVML_STUB"]).open("a") as file:
        file.write(f"holder {os.getpid()} {size}\n")


class Tensor:
    """Memory of the device."""

    def __init__(self, size: int) -> None:
        self._size, self._owner = size, os.getpid()
        if self._owner not in _contexts:
            _contexts.add(self._owner)
            _note(CONTEXT)
        _note(size)

    def __del__(self) -> None:
        if os.getpid() == self._owner:
            _note(-self._size)

    def __reduce__(self) -> tuple[Any, ...]:
        # Whoever opens a handle holds no memory of its own.
        return Tensor, (0,)


def empty(size: int, dtype: str, device: str = "cpu", pin_memory: bool = False) -> object:
    """Return so many bytes: memory of the host is not counted here."""
    if device == "cpu":
        return object()
    if size > TOTAL:
        gib = 1 << 30
        raise OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {size / gib:.2f} GiB. GPU 0 has a total capacity of"
            f" {TOTAL / gib:.2f} GiB of which {TOTAL / gib:.2f} GiB is free."
        )
    return Tensor(size)


class cuda:
    """As torch.cuda."""

    @staticmethod
    def device_count() -> int:
        """Return how many devices this process sees."""
        return len([label for label in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",") if label])

    @staticmethod
    def empty_cache() -> None:
        """Keep nothing."""
