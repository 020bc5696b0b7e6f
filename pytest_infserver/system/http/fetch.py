"""One whole HTTP request to a server that may be hostile: a deadline, a size, no other host, no code of the answer.

What is asked for is asked of one origin (scheme, host and port): a redirect to another one is not followed, so that no
key gets there. No compression is offered, and none is undone, so that a small answer stays small. Proxies and netrc of
the environment are not used.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from pytest_infserver.system.http.address import Address, parse_address, request_target
from pytest_infserver.system.http.body import Connection, Reply, TooLong
from pytest_infserver.system.http.probe import shown_seconds

MAX_DEPTH = 64
"""How deep JSON may be nested; an OpenAPI document of an engine has some 15 levels."""
_MAX_REDIRECTS = 3
_SAME_METHOD = frozenset({307, 308})
_AS_GET = frozenset({301, 302, 303})
_PORTS = {"http": 80, "https": 443}
_TOKEN = re.compile(rb'"[^"]*"?|[\[{]|[\]}]')
"""A text without escapes, an opening and a closing bracket; a repeated group would take memory for each character."""


class NoReply(Exception):
    """There was no answer that could be used; the text says why, in words that follow what was asked."""


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        seconds: For all of it, redirects included, also when the server sends a byte now and then.
        max_bytes: For the body of the answer.
    """

    seconds: float
    max_bytes: int


def fetch(
    url: str,
    limits: Limits,
    *,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    body: bytes | None = None,
    address: Address | None = None,
) -> Reply:
    """Send a request and return the whole answer, whatever its status.

    Args:
        url: What to ask for.
        limits: What it may cost.
        headers: Sent with each request, which goes to the URL's own host and port only.
        method: The request's method.
        body: What is sent, or None.
        address: How the URL's host is reached, such as by a unix socket; None for a plain connection.

    Raises:
        NoReply: There was no such answer.
    """
    deadline = time.monotonic() + limits.seconds
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            reply = _once(url, Limits(left, limits.max_bytes), dict(headers or {}), method, body, address)
            target = _redirect(url, reply, method)
            if target is None:
                return reply
            url = target
    except NoReply:
        raise
    except Exception as error:
        raise NoReply(_why(error, limits)) from None
    raise NoReply(f"was sent on more than {_MAX_REDIRECTS} times")


def _once(
    url: str, limits: Limits, headers: dict[str, str], method: str, body: bytes | None, address: Address | None
) -> Reply:
    parts = urlsplit(url)
    target = request_target(parts.path, parts.query)
    return Connection(address or parse_address(url), headers, keep=False).send(
        method, target, body, limits.seconds, limits.max_bytes
    )


def _redirect(url: str, reply: Reply, method: str) -> str | None:
    """Return where an answer sends the same request on to, or None.

    Raises:
        NoReply: To another host or port, or with another method.
    """
    if reply.location is None or reply.status not in _SAME_METHOD | _AS_GET:
        return None
    target = urljoin(url, reply.location)
    if _origin(urlsplit(target)) != _origin(urlsplit(url)):
        raise NoReply("was sent on to another host or port, where nothing of ours is sent")
    if method != "GET" and reply.status in _AS_GET:
        raise NoReply(f"was sent on with status {reply.status}, which drops what was sent")
    return target


def _origin(parts: SplitResult) -> tuple[str, str, int | None]:
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def _why(error: Exception, limits: Limits) -> str:
    if isinstance(error, TimeoutError):
        return f"had no whole answer within {shown_seconds(limits.seconds)} s"
    if isinstance(error, TooLong):
        return f"was answered with more than {limits.max_bytes} bytes"
    if isinstance(error, OSError):
        return f"failed: {error.strerror or error or type(error).__name__}"
    if isinstance(error, http.client.HTTPException):
        return f"was answered with something that is not whole HTTP ({type(error).__name__})"
    if isinstance(error, ValueError):
        # Its text is not shown: it may quote a header, and that a secret.
        return "cannot be sent: its URL, or a header, is not valid"
    return f"failed: {type(error).__name__}"


def parse_json(body: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of JSON from a foreign program.

    Args:
        body: The text, in UTF-8.
        max_depth: How deep it may be nested: deeper JSON costs Python its stack, and where somebody has raised the
            limit of that the process.

    Raises:
        ValueError: It is no JSON, or nested too deeply.
    """
    if _is_deeper(body, max_depth):
        raise ValueError(f"nested deeper than {max_depth} levels")
    return json.loads(body.decode("utf-8"))


def _is_deeper(body: bytes, max_depth: int) -> bool:
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return False
    depth = 0
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    for match in _TOKEN.finditer(plain):
        first = match.group()[:1]
        if first == b'"':
            continue
        depth += 1 if first in b"[{" else -1
        if depth > max_depth:
            return True
    return False
