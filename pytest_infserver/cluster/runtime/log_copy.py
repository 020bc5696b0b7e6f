"""The copy of a log that is written on a node of a cluster, also where a full disk loses a part of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class LogCopy:
    """Knows where a byte of the original stands in the copy; may be asked by several threads.

    Attributes:
        received: How many bytes of the original have come, whether they could be written or not.
    """

    def __init__(self, output: int | None, base: int, on_loss: Callable[[OSError], object]) -> None:
        """Begin it.

        Args:
            output: Descriptor that appends to the copy, closed by `close`; None if there is none, then all is lost.
            base: Size of the copy's file now: earlier lives of the server are in it.
            on_loss: Called the first time that something cannot be written, as on a full disk.
        """
        self.received = 0
        self._output = output
        self._base = base
        self._on_loss: Callable[[OSError], object] | None = on_loss
        self._lost: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def take(self, part: bytes, start: int) -> None:
        """Append what is new in a part of the original.

        Args:
            part: This part.
            start: Where it begins in the original.
        """
        # Two threads may have asked with the same in hand.
        new = part[self.received - start :]
        written, problem = self._write(new)
        with self._lock:
            end = self.received + len(new)
            if written < len(new):
                self._lose(self.received + written, end)
            self.received = end
        if problem is not None and self._on_loss is not None:
            on_loss, self._on_loss = self._on_loss, None
            on_loss(problem)

    def place(self, offset: int) -> int:
        """Return where a byte of the original stands in the file of the copy, or would if it were not lost."""
        with self._lock:
            if self._lost and self._lost[-1][1] == self.received:
                # As long as nothing can be written what has not come yet is going to be lost, too.
                offset = min(offset, self.received)
            return self._base + offset - sum(max(0, min(offset, end) - start) for start, end in self._lost)

    def close(self) -> None:
        """Close the descriptor: what comes from now on is lost."""
        output, self._output = self._output, None
        if output is not None:
            os.close(output)

    def _write(self, data: bytes) -> tuple[int, OSError | None]:
        """Write as much of some bytes as can be; return how many, and what was in the way of the others."""
        done = 0
        try:
            while self._output is not None and done < len(data):
                done += os.write(self._output, memoryview(data)[done:])
        except OSError as error:
            return done, error
        return done, None

    def _lose(self, start: int, end: int) -> None:
        if self._lost and self._lost[-1][1] == start:
            start = self._lost.pop()[0]
        self._lost.append((start, end))
