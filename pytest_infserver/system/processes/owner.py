"""The owner of a server as its supervisor sees it; imports only the standard library, as that does."""

from __future__ import annotations

import contextlib
import os


class Owner:
    """The process that uses the server.

    Attributes:
        handle: Descriptor that becomes readable at its end; None where the system has none.
    """

    def __init__(self, pid: int, is_parent: bool = True) -> None:
        """Remember it.

        Args:
            pid: Its pid.
            is_parent: Whether it is the parent of this process.
        """
        self.pid = pid
        self.is_parent = is_parent
        self.handle: int | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self.handle = os.pidfd_open(pid)
        if self.is_gone():
            # It ended before we looked: the handle may be another process's.
            self.forget()

    def is_gone(self) -> bool:
        """Return whether it has ended; a parent is to be asked about before there is a guard between."""
        if self.is_parent:
            return os.getppid() != self.pid
        try:
            # Its connection ends with it, too: a pid that is given away again does no harm.
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def forget(self) -> None:
        """Close what is open for it."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None
