"""One bounded HTTP question: what status does this URL answer?"""

from __future__ import annotations

import contextlib
import http.client
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})\b")
_MAX_STATUS_LINE = 4096
_STEP = 0.02


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: The HTTP status, or None when there was none.
        problem: Why there was none.
        seconds: How long it took.
    """

    status: int | None
    problem: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the status is a 2xx."""
        return self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        return self.problem if self.status is None else f"answered {self.status}"


def shown_seconds(seconds: float) -> str:
    """Return a time as text, as exact as people want it."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


def ask(
    url: str,
    timeout: float,
    headers: dict[str, str] | None = None,
    pointless: Callable[[], bool] = lambda: False,
) -> Answer:
    """GET ``url`` and read no more than the status line.

    The whole question ends after ``timeout`` seconds, also when the server sends a byte now and then. Proxies of
    the environment are not used: they would be asked for 127.0.0.1.

    Args:
        url: What to ask for.
        timeout: Limit in seconds.
        headers: Sent with the request.
        pointless: Asked now and then; when it says so, the answer is not waited for any more.
    """
    begin = time.monotonic()
    status, problem = None, ""
    try:
        parts = urlsplit(url)
        https = parts.scheme == "https"
        connection = (http.client.HTTPSConnection if https else http.client.HTTPConnection)(
            parts.hostname or "", parts.port, timeout=timeout
        )
        with contextlib.closing(connection):
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Connection": "close", **(headers or {})})
            status, problem = _read_status(connection, begin + timeout, pointless)
    except TimeoutError:
        problem = f"gave no answer within {shown_seconds(timeout)} s"
    except ConnectionRefusedError:
        problem = "refused the connection (the port is not open)"
    except (OSError, http.client.HTTPException) as error:
        problem = f"failed: {getattr(error, 'strerror', None) or error or type(error).__name__}"
    except ValueError:
        # Its text is not shown: it may quote a header, and that a secret.
        problem = "cannot be asked: its URL, or a header of the request, is not valid"
    return Answer(status, problem, time.monotonic() - begin)


def _read_status(
    connection: http.client.HTTPConnection, deadline: float, pointless: Callable[[], bool]
) -> tuple[int | None, str]:
    received = b""
    while b"\n" not in received and len(received) < _MAX_STATUS_LINE:
        left = deadline - time.monotonic()
        if left <= 0 or pointless():
            raise TimeoutError
        connection.sock.settimeout(min(left, _STEP))
        try:
            data = connection.sock.recv(_MAX_STATUS_LINE)
        except TimeoutError:
            continue
        if not data:
            break
        received += data
    match = _STATUS_LINE.match(received)
    if match:
        return int(match.group(1)), ""
    return (
        None,
        "closed the connection without an answer" if not received else "answered something that is not HTTP",
    )
