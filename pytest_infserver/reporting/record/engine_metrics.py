"""What engines count: tokens, requests and errors, read from their Prometheus endpoints before and after a test.

- ``prompt_tokens``: of prompts, those included that came from a cache.
- ``generated_tokens``: that were made, whether anybody has read them or not.
- ``requests``: that the engine has finished. One with ``n`` answers counts as several.
- ``errors``: answers with an HTTP status of 400 or more; refused requests are no ``requests``.

They are those of the whole server: what other tests do with it at the same time counts too. vLLM 0.32, SGLang 0.5.23
and llama.cpp count before the client has the end of an answer, so one reading after a test is enough; only vLLM's
status of a stream may come 25 ms late. What an engine still does for a client that has gone counts when it happens.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.system.http.body import Connection

_TIMEOUT = 2.0
"""Seconds for one reading."""
_SLOW = 1.0
"""Seconds after which a reading counts as slow."""
_SLOW_READINGS = 2
"""After so many a launch is not asked again. One is forgiven: the first one of SGLang takes 0.8 s, the others 5 ms."""
_MAX_BYTES = 8 * 1024 * 1024
"""For one answer; that of vLLM has 70 KB for each of its data parallel engines."""
_MAX_LINES = 5000
"""Of counters in one answer; parsing them takes some 50 ms."""

# A namespace of one word, as in vllm:, lmdeploy: and trtllm_.
_SPACE = r"(?:(?!(?:un)?cached_)[a-zA-Z0-9]+[:_])?"
_NAMES = {
    # llama.cpp counts cached tokens apart.
    "prompt_tokens": rf"{_SPACE}(?:prompt|input)_tokens_total|llamacpp:prompt_tokens_cached_total",
    "generated_tokens": rf"{_SPACE}(?:(?:generation|generated|completion|output)_tokens|tokens_predicted)_total",
    "requests": rf"{_SPACE}(?:request_success|num_requests)_total",
    # prometheus-fastapi-instrumentator, which vLLM uses; SGLang.
    "errors": rf"{_SPACE}http_(?:requests|responses)_total",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _NAMES.items()}
_LINE = re.compile(rf"\n((?:{'|'.join(_NAMES.values())})[{{ \t][^\n]*)(?=\n)".encode())
_STATUS_LABELS = ("status", "status_code", "code")
_PATH_LABELS = ("handler", "endpoint", "path")
# This package asks for these itself.
_OWN_PATHS = ("/health", "/metrics")

# vLLM has a second application behind /metrics that takes a selection: a reading takes it 0.5 ms instead of 3.5 ms.
_VLLM_SIGN = b"\nvllm:generation_tokens_total{"
_VLLM_SELECTION = "/?" + "&".join(
    f"name[]={name}"
    for name in (
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "http_requests_total",
    )
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Name and labels to value."""


@dataclass(frozen=True)
class Counters:
    """A server's counters at one moment.

    Attributes:
        launches: How often the server had been launched.
        lines: The lines of the counters, as the server has written them. They are parsed when they are needed.
    """

    launches: int
    lines: bytes


def difference(before: Counters | None, after: Counters | None) -> dict[str, float] | None:
    """Return what a server has counted between two readings.

    If it was started again meanwhile, what it has counted since.

    Args:
        before: The first reading.
        after: The second one.

    Returns:
        ``prompt_tokens``, ``generated_tokens``, ``requests`` and ``errors``, without those that this engine does not
        count; None if nothing is known.
    """
    if before is None or after is None:
        return None
    try:
        old = _parsed(before.lines) if before.launches == after.launches else {}
        new = _parsed(after.lines)
    except Exception:
        # No import of the parser, or lines that are no samples: whatever a server writes must not harm a test.
        return None
    if any(value < old.get(key, 0) for key, value in new.items()) or old.keys() - new.keys():
        # Counters never go down: a server that others run was started again.
        old = {}
    totals: dict[str, float] = {}
    for key, value in new.items():
        counted = _counted_as(*key)
        if counted is not None:
            name, counts = counted
            totals[name] = totals.get(name, 0) + (value - old.get(key, 0) if counts else 0)
    found = {name: totals[name] for name in _NAMES if math.isfinite(totals.get(name, math.nan))}
    return {name: int(total) if float(total).is_integer() else total for name, total in found.items()} or None


@functools.lru_cache(maxsize=32)  # a reading after a test is often equal to that before the next one
def _parsed(lines: bytes) -> Samples:
    from prometheus_client.parser import text_string_to_metric_families

    found: Samples = {}
    for family in text_string_to_metric_families(lines.decode("utf-8", "replace")):
        for sample in family.samples:
            if 0 <= sample.value < math.inf:
                key = sample.name, tuple(sorted(sample.labels.items()))
                found[key] = found.get(key, 0) + sample.value
    return found


def _counted_as(name: str, labels: tuple[tuple[str, str], ...]) -> tuple[str, bool] | None:
    """Return which counter a sample belongs to and whether it adds to it; None if to none."""
    counter = next((counter for counter, pattern in _PATTERNS.items() if pattern.fullmatch(name)), None)
    if counter != "errors":
        return None if counter is None else (counter, True)
    values = dict(labels)
    status = next((values[label] for label in _STATUS_LABELS if label in values), None)
    if status is None:
        return None
    path = next((values[label] for label in _PATH_LABELS if label in values), "")
    return counter, status[:1] in ("4", "5") and not path.startswith(_OWN_PATHS)


class EngineMetrics:
    """Reads the counters of servers; one for each process.

    A reading is quick, small and never fails. A server that has no metrics is asked once for each launch, since every
    question stands in its log, and one that is slow to tell them twice.
    """

    def __init__(self) -> None:
        self._sources: dict[InferenceServer, _Source] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._parser_is_there: bool | None = None

    def read(self, server: InferenceServer) -> Counters | None:
        """Return a server's counters now, or None if there are none; at most 2 s.

        Args:
            server: A server; one that does not run has none.
        """
        if self._parser_is_there is None:
            self._parser_is_there = importlib.util.find_spec("prometheus_client") is not None
        if not self._parser_is_there or not server.running:
            return None
        if os.getpid() != self._pid:
            # After a fork the connections are the parent's, and the lock may be held for ever.
            self._lock, self._pid = threading.Lock(), os.getpid()
            self.close()
        # Whatever goes wrong with a server's metrics, the test is about something else.
        with self._lock, contextlib.suppress(Exception):
            return self._source(server).read()
        return None

    def close(self) -> None:
        """Close all connections; a later reading opens them again."""
        sources, self._sources = self._sources, {}
        for source in sources.values():
            source.close()

    def _source(self, server: InferenceServer) -> _Source:
        source = self._sources.get(server)
        if source is None or source.launches != server.launches:
            for other in [one for one in self._sources if one is server or not one.running]:
                self._sources.pop(other).close()
            source = self._sources[server] = _Source(server)
        return source


class _Source:
    """The metrics endpoint of one launch of a server."""

    def __init__(self, server: InferenceServer) -> None:
        from pytest_infserver.launcher.user_code import asked
        from pytest_infserver.system.http.body import Connection

        self.launches = server.launches
        path = server.settings.endpoints.get("metrics") or asked(server).endpoint_paths.get("metrics", "/metrics")
        address = asked(server).address
        if "metrics" in address.ports:
            address = address.at("metrics")
        parts = urlsplit(address.url_for(path))
        self._target = parts.path + (f"?{parts.query}" if parts.query else "")
        self._may_select = not parts.query and not parts.path.endswith("/")
        self._selects = False
        self._slow_readings = 0
        # A server of one's own may serve one connection after the other: an idle one would keep others waiting.
        keep = "metrics" in asked(server).endpoint_paths or parts.scheme == "https"
        self._connection: Connection | None = Connection(address, address.headers, keep=keep)

    def read(self) -> Counters | None:
        if self._connection is None:
            return None
        begin = time.monotonic()
        lines = None
        with contextlib.suppress(Exception):
            lines = self._lines(self._connection, begin + _TIMEOUT)
        slow = time.monotonic() - begin > _SLOW
        self._slow_readings += slow
        if self._slow_readings == _SLOW_READINGS or (lines is None and not slow):
            self.close()
            self._connection = None
        return None if lines is None else Counters(self.launches, lines)

    def _lines(self, connection: Connection, deadline: float) -> bytes | None:
        if self._selects:
            status, body = self._get(connection, self._target + _VLLM_SELECTION, deadline)
            if status == 200 and _VLLM_SIGN in body:
                return _filtered(body)
            # Several API servers cannot select.
            self._selects = self._may_select = False
        status, body = self._get(connection, self._target, deadline)
        if status != 200:
            return None
        self._selects = self._may_select and _VLLM_SIGN in body
        return _filtered(body)

    @staticmethod
    def _get(connection: Connection, target: str, deadline: float) -> tuple[int, bytes]:
        status, body = connection.get(target, deadline - time.monotonic(), _MAX_BYTES)
        return status, b"\n" + body

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _filtered(body: bytes) -> bytes | None:
    """Return the lines of an answer that count; None if it does not look like metrics, or has too many of them."""
    lines: list[bytes] = _LINE.findall(body)
    # An engine that has counted nothing yet may have none.
    if len(lines) > _MAX_LINES or not (lines or b"\n# TYPE " in body):
        return None
    return b"".join(line + b"\n" for line in lines)
