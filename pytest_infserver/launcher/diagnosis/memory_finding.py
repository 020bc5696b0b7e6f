"""What the kernel had to do with a server's end, where memory ran out."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum


class Whom(Enum):
    """Whom the kernel has killed."""

    ROOT = "root"
    PART = "part"
    SOMEBODY = "somebody"


@dataclass(frozen=True)
class Finding:
    """What the kernel has done.

    Attributes:
        whom: The server's root process, another one of the server, or one of which nothing says whose it was.
        lines: In words; what to do, too, where the server is concerned.
    """

    whom: Whom
    lines: tuple[str, ...]

    def end(self, how: str, code: int | None) -> str:
        """Return how the server ended, with what the kernel had to do with it.

        Args:
            how: The same without.
            code: Its exit code, if it has ended by itself.
        """
        if self.whom is Whom.SOMEBODY:
            return how
        if self.whom is Whom.PART:
            return f"{how} after the kernel had killed one of its processes for memory"
        if code == -signal.SIGKILL:
            return "was killed by the kernel for memory (SIGKILL)"
        return f"{how}, killed by the kernel for memory"
