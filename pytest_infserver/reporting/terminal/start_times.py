"""How long the servers' last starts took, from one run to the next."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.pool.wait_report import start_key

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

KEY = "infserver/start_seconds"
"""Where in pytest's cache."""
_MOST = 500
_LONGEST = 1e6


class StartTimes:
    """Remembers them in pytest's own cache, if there is one."""

    def __init__(self, config: pytest.Config) -> None:
        """Read nothing yet."""
        self._config = config
        self._known: dict[str, float] | None = None

    def last(self, kind: str) -> float | None:
        """Return how many seconds the last start of a server took, or None if that is not known.

        Args:
            kind: The server's `start_key`.
        """
        if self._known is None:
            self._known = self._read()
        return self._known.get(kind)

    def remember(self, servers: Iterable[InferenceServer]) -> None:
        """Note the last starts of some servers, if they have had one; it never fails."""
        took = {
            start_key(server): round(server.start_seconds, 1)
            for server in servers
            if server.start_seconds is not None and server.launches and not server.attached
        }
        if not took:
            return
        # Another run may have written meanwhile.
        known = self._read()
        if any(known.get(key) != seconds for key, seconds in took.items()):
            kept = {key: seconds for key, seconds in known.items() if key not in took}
            self._write(dict([*kept.items(), *took.items()][-_MOST:]))

    def _read(self) -> dict[str, float]:
        cache = getattr(self._config, "cache", None)
        try:
            found = None if cache is None else cache.get(KEY, None)
        except Exception:
            # It is a file that anybody may have changed.
            return {}
        return {key: value for key, value in found.items() if _is_time(value)} if isinstance(found, dict) else {}

    def _write(self, known: dict[str, float]) -> None:
        cache = getattr(self._config, "cache", None)
        try:
            with warnings.catch_warnings():
                # That the cache cannot be written is said by pytest, for its own part.
                warnings.simplefilter("ignore")
                if cache is not None:
                    cache.set(KEY, known)
        except Exception:
            return


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _LONGEST
