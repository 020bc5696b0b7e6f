"""What a pool is told at its beginning: whom it tells, and what the user wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

MAX_RESTARTS = 3
"""How often a server that died is started again in one run."""


@dataclass(frozen=True)
class Hooks:
    """Whom the pool tells about its servers.

    Attributes:
        started: Gets each server that has become ready.
        stopping: Gets it before it is stopped.
        stopped: Gets it when it is gone.
    """

    started: Callable[[InferenceServer], object]
    stopping: Callable[[InferenceServer], object]
    stopped: Callable[[InferenceServer], object]


@dataclass(frozen=True)
class Policy:
    """What the user wants of the pool.

    Attributes:
        prelaunch: Whether servers are started before a test asks for them.
        restarts: How often a server that died is started again.
        keep: Seconds that servers live on after their last use; None stops them.
        share_gpu: Whether an idle server that can sleep does so, instead of being stopped, when another needs its GPUs.
    """

    prelaunch: bool = True
    restarts: int = MAX_RESTARTS
    keep: float | None = None
    share_gpu: bool = False
