"""Servers that sleep while others of the run use their GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.operations.sleeping import as_start, fall_asleep, wake_up
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_NEWS = 1.0
"""Seconds in which the news of a death comes, when a request was not answered."""


class Sleepers:
    """Puts servers to sleep and wakes them; one that has not obeyed once is not asked again."""

    def __init__(self, tell: Callable[[str], object], *, wanted: bool) -> None:
        """Begin with all awake.

        Args:
            tell: Gets what did not go well.
            wanted: Whether any server is to be put to sleep.
        """
        self._tell = tell
        self._wanted = wanted
        self._unwilling: set[str] = set()
        self._naps: Counter[tuple[str, str]] = Counter()

    def may_sleep(self, server: InferenceServer, room_for: InferenceServer) -> bool:
        """Return whether a server can be put to sleep to make room for another one."""
        if not self._wanted or server.name in self._unwilling or not server.running:
            return False
        # One that was taken over has locks on its GPUs that nobody can share, and debug mode counts their memory. Where
        # both have the same port only one of them can be there.
        has_own_gpus = bool(server.device_keys) and not server.runtime.status.taken_over and not server.debug_mode
        port = server.settings.port
        takes_turns = port is not None and port == room_for.settings.port
        return has_own_gpus and not takes_turns and asked(server).sleep_requests is not None

    def sleeps(self, server: InferenceServer, room_for: str) -> bool:
        """Put a server to sleep, and return whether it sleeps; without the pool's lock."""
        with as_start(server.runtime, "falling asleep"):
            try:
                fall_asleep(server.runtime, level=1)
            except InferenceServerError as error:
                # Of its death it is told anyway, and at the end of the run nobody has asked it to sleep.
                if server.running and not server.runtime.start_is_cancelled():
                    self._unwilling.add(server.name)
                    self._tell(f"{error}; it is stopped to make room for {room_for}")
                return False
        self._naps[server.name, room_for] += 1
        return True

    def wakes(self, server: InferenceServer) -> bool:
        """Wake a server, and return whether it is well; without the pool's lock."""
        with as_start(server.runtime, "waking up"):
            try:
                wake_up(server.runtime)
                answer = server.runtime.ask_health()
                problem = None if answer.ok else f"{server}: when it was woken, its health check {answer}"
            except InferenceServerError as error:
                server.wait_death(_NEWS)
                problem = server.why_died() or str(error)
            if problem is not None and not server.runtime.start_is_cancelled():
                self._unwilling.add(server.name)
                self._tell(f"{problem}; it was asleep, and is started anew")
        return problem is None

    def told(self) -> Sequence[str]:
        """Return once, in words, who has slept for whom."""
        naps, self._naps = self._naps, Counter()
        return [
            f"{name} was put to sleep {count} {'time' if count == 1 else 'times'} to make room for {other}"
            for (name, other), count in naps.items()
        ]
