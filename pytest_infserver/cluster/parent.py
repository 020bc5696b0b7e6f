"""Notices that the process is gone which has started this one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

_LOOK_INTERVAL = 1.0


def watch_parent(parent: int, leave: Callable[[], object]) -> None:
    """Begin to watch, in a thread of its own.

    Args:
        parent: Process id of the parent.
        leave: Called when it is gone.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_INTERVAL)
        leave()

    threading.Thread(target=watch, name="infserver-parent", daemon=True).start()
