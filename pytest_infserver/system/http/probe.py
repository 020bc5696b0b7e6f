"""One bounded HTTP question: what status does this URL answer?"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from pytest_infserver.system.http.address import Address, request_target
from pytest_infserver.system.http.trust import BadAuthority

_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})\b")
_MAX_STATUS_LINE = 4096
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK = re.compile(rb"(?:\A|\r\n)0+(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n\Z")
_LOCATION = re.compile(rb"\r\nlocation: *([^\r\n]+)", re.IGNORECASE)
_NO_BODY = (204, 304)
_TRUST = "name its authority with 'tls: {ca: FILE}', or write 'tls: {verify: false}'"
_MAYBE_TLS = ": does it speak TLS?"
_PLAIN_HTTP = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_WANTS_CERTIFICATE = ("CERTIFICATE", "HANDSHAKE_FAILURE", "UNKNOWN_CA", "EOF")
_HTTP2 = re.compile(rb"\x00..\x04.\x00\x00\x00\x00", re.DOTALL)
"""How each HTTP/2 connection begins: a frame of settings."""
_STEP = 0.02
_MAX_BODY = 64 * 1024
_EXCERPT = 200
_NOWHERE = Address()


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: The HTTP status, or None when there was none.
        problem: Why there was none, or what else there is to say of the answer.
        seconds: How long it took.
        good: Whether it is what was hoped for; None if the status says so, which is a 2xx then.
        refused: Whether nobody was there to be asked.
    """

    status: int | None
    problem: str
    seconds: float
    good: bool | None = None
    refused: bool = False

    @property
    def ok(self) -> bool:
        """Whether it is what was hoped for."""
        if self.good is not None:
            return self.good
        return self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        if self.status is None:
            return self.problem
        return f"answered {self.status}{f': {self.problem}' if self.problem else ''}"


def shown_seconds(seconds: float) -> str:
    """Return a time as text, as exact as people want it."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


def ask(
    url: str,
    timeout: float,
    headers: dict[str, str] | None = None,
    pointless: Callable[[], bool] = lambda: False,
    address: Address = _NOWHERE,
    post: bytes | None = None,
    whole: bool = False,
) -> Answer:
    """GET ``url`` or POST to it, and read no more than the status line, or the whole answer.

    The whole question ends after ``timeout`` seconds, also when the server sends a byte now and then. Proxies of
    the environment are not used: they would be asked for 127.0.0.1. Redirects are told and not followed.

    Args:
        url: What to ask for.
        timeout: Limit in seconds.
        headers: Sent with the request.
        pointless: Asked now and then; when it says so, the answer is not waited for any more.
        address: Where the server is reached: its unix socket, and whom to trust.
        post: JSON to send.
        whole: Read the whole answer: one that is 2xx and reports an error in its JSON is not good.
    """
    begin = time.monotonic()
    status, problem, refused, good = None, "", False, None
    try:
        parts = urlsplit(url)
        with contextlib.closing(address.http_connection(timeout, url)) as connection:
            sent = {"Connection": "close", **(headers or {})}
            if post is not None:
                sent["Content-Type"] = "application/json"
            target = request_target(parts.path, parts.query)
            connection.request("GET" if post is None else "POST", target, body=post, headers=sent)
            wait = _Wait(connection, begin + timeout, pointless)
            status, problem = _read_status(wait, secure=parts.scheme == "https")
            if status is not None:
                problem = _rest(wait, status, whole)
                good = False if problem else None
    except BadAuthority as error:
        problem = f"cannot be asked: {error}"
    except ssl.SSLCertVerificationError as error:
        problem = f"has a certificate that is not trusted ({error.verify_message}): {_TRUST}"
    except ssl.SSLError as error:
        problem = _tls_problem(error)
    except TimeoutError:
        # Where the status line was there, the rest did not come.
        within = f"within {shown_seconds(timeout)} s"
        what = "gave no answer" if status is None else f"answered {status}, but its answer did not end"
        problem = f"{what} {within}"
        status = None
    except ConnectionRefusedError:
        what = "the port is not open" if address.uds is None else "nobody listens on the socket"
        problem, refused = f"refused the connection ({what})", True
    except FileNotFoundError:
        problem, refused = "refused the connection (there is no such socket)", True
    except (OSError, http.client.HTTPException) as error:
        problem = f"failed: {getattr(error, 'strerror', None) or error or type(error).__name__}"
        if isinstance(error, ConnectionResetError) and urlsplit(url).scheme == "http":
            problem += _MAYBE_TLS
    except ValueError:
        # Its text is not shown: it may quote a header, and that a secret.
        problem = "cannot be asked: its URL, or a header of the request, is not valid"
    return Answer(status, problem, time.monotonic() - begin, good=good, refused=refused)


class _Wait:
    """Reads an answer in short steps, within limits."""

    def __init__(self, connection: http.client.HTTPConnection, deadline: float, pointless: Callable[[], bool]) -> None:
        self._connection = connection
        self._deadline = deadline
        self._pointless = pointless
        self.received = b""

    def more(self, limit: int) -> bool:
        """Read some bytes; return whether there may be more."""
        while len(self.received) < limit:
            left = self._deadline - time.monotonic()
            if left <= 0 or self._pointless():
                raise TimeoutError
            self._connection.sock.settimeout(min(left, _STEP))
            try:
                data = self._connection.sock.recv(4096)
            except TimeoutError:
                continue
            self.received += data
            return bool(data)
        return False

    def read_head(self) -> None:
        """Read all headers, or as many as there may be."""
        while b"\r\n\r\n" not in self.received and self.more(_MAX_BODY):
            pass

    def read_rest(self) -> bytes:
        """Read until the answer is complete, or up to a limit, and return its body."""
        while not self._is_complete() and self.more(_MAX_BODY):
            pass
        return self.body

    @property
    def body(self) -> bytes:
        """What has come of the body so far."""
        head, _, body = self.received.partition(b"\r\n\r\n")
        return _unchunked(body) if _CHUNKED.search(head) else body

    def _is_complete(self) -> bool:
        head, blank, body = self.received.partition(b"\r\n\r\n")
        if not blank:
            return False
        if _CHUNKED.search(head):
            return _LAST_CHUNK.search(body) is not None
        length = _LENGTH.search(head)
        return length is not None and len(body) >= int(length.group(1))


def _unchunked(body: bytes) -> bytes:
    """Return what chunks have in them, as far as they are there."""
    found = b""
    while (size := re.match(rb"([0-9a-fA-F]{1,8})[^\r\n]*\r\n", body)) is not None:
        count, begin = int(size.group(1), 16), size.end()
        found += body[begin : begin + count]
        body = body[begin + count + 2 :]
    return found


def _rest(wait: _Wait, status: int, whole: bool) -> str:
    """Read what else is of interest in an answer; return what there is to say of it, "" if it is just good."""
    if 300 <= status < 400:
        with contextlib.suppress(OSError):
            wait.read_head()
        location = _LOCATION.search(wait.received)
        return f"a redirect to {_excerpt(location.group(1))}, which is not followed" if location else ""
    if not whole or status in _NO_BODY:
        return ""
    if 200 <= status < 300:
        error = _error_in(wait.read_rest())
        return f"with an error: {_excerpt(error)}" if error else ""
    with contextlib.suppress(OSError):
        wait.read_rest()
    return _excerpt(wait.body)


def _error_in(body: bytes) -> bytes:
    """Return what JSON, or an event of a stream of JSON, reports as an error; b"" if there is none."""
    texts = [line[5:] for line in body.splitlines() if line.startswith(b"data:")] or [body]
    for text in texts:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        error = found.get("error") if isinstance(found, dict) else None
        if (isinstance(error, (str, dict)) and error) or (isinstance(found, dict) and found.get("object") == "error"):
            return text.strip()
    return b""


def _excerpt(text: bytes) -> str:
    """Return the beginning of what an answer says."""
    return " ".join(text[: 4 * _EXCERPT].decode("utf-8", "replace").split())[:_EXCERPT]


def _read_status(wait: _Wait, secure: bool) -> tuple[int | None, str]:
    while b"\n" not in wait.received and wait.more(_MAX_STATUS_LINE):
        pass
    match = _STATUS_LINE.match(wait.received)
    if match:
        return int(match.group(1)), ""
    if not wait.received:
        return None, f"closed the connection without an answer{'' if secure else _MAYBE_TLS}"
    if _HTTP2.match(wait.received):
        return (
            None,
            "answered in HTTP/2 only: a gRPC server is asked with 'ready: {grpc: true}', others with '{tcp: true}'",
        )
    hint = _MAYBE_TLS if wait.received[:1] == b"\x15" else ""
    return None, f"answered something that is not HTTP{hint}"


def _tls_problem(error: ssl.SSLError) -> str:
    """Return why nobody is asked by TLS, and what helps."""
    reason = error.reason or ""
    if reason in _PLAIN_HTTP:
        return f"does not speak TLS as it is asked to ({reason}): is it 'http' instead of 'https'?"
    if "UNRECOGNIZED_NAME" in reason:
        return f"has no certificate for the host by which it is asked ({reason}): name that as 'host', or in 'url'"
    if isinstance(error, ssl.SSLEOFError) or any(word in reason for word in _WANTS_CERTIFICATE):
        return (
            f"ended the TLS handshake ({reason or 'end of file'}): where it wants a certificate of its clients, ask"
            " with 'ready: {tcp: true}'"
        )
    return f"does not speak TLS as it is asked to ({reason or error})"
