"""What a launch has made."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_infserver.launcher.diagnosis.out_of_memory import OutOfMemoryWatch
from pytest_infserver.launcher.leaks.check import LeakCheck
from pytest_infserver.launcher.supervision.supervised_process import ServerProcess


@dataclass(frozen=True)
class Launched:
    """A server's process, and what watches it.

    Attributes:
        process: The process.
        memory_watch: Knows what the kernel had to do with its end.
        leak_check: Debug mode: finds what it leaves behind.
    """

    process: ServerProcess
    memory_watch: OutOfMemoryWatch
    leak_check: LeakCheck | None = None
