"""The signals that a supervisor gets: they wake its loop, and none of them ends it."""

from __future__ import annotations

import contextlib
import os
import signal


class WakeUp:
    """A pipe that becomes readable with each signal.

    Attributes:
        handle: The pipe's end to watch.
        told_to_end: Whether a signal has asked this process to end.
    """

    def __init__(self) -> None:
        """Listen in this process."""
        self.told_to_end = False
        self.handle = self.listen()
        # Blocked signals are inherited: without SIGCHLD no exit is seen, and the server needs its SIGTERM.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def listen(self) -> int:
        """Listen from now on with a pipe that no other process has: after a fork both have the same one.

        Returns:
            The pipe's end to watch.
        """
        self.handle, wakeup_write = os.pipe()
        os.set_blocking(self.handle, False)
        os.set_blocking(wakeup_write, False)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        _survive_strays()
        return self.handle

    def clear(self) -> None:
        """Read what the signals so far have written."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.handle, 4096)

    def _on_signal(self, *_: object) -> None:
        # The rest is done by the loop, which the signal wakes.
        self.told_to_end = True


def _survive_strays() -> None:
    """Do nothing on signals that a server sends to its parent, whoever that is by now."""
    for number in (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        # Not SIG_IGN, which the server would inherit.
        signal.signal(number, lambda *_: None)
