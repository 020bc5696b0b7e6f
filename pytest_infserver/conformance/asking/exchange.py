"""One request and its answer, each within a limit of time and size; the server may be anything."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import select
import shlex
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.body import TooLong, bounded_response
from pytest_infserver.system.http.fetch import Limits, parse_json

_HEAD = 64 * 1024
"""Bytes that an answer may have beyond its body."""
_PIECE = 64 * 1024
_CONTINUE_SECONDS = 1.0
"""How long curl waits for 100 Continue before it sends the body all the same."""
_SHOWN_BODY = 400
_TLS_SECONDS = 3.0


class NoAnswer(Exception):
    """There was no whole answer; the text says why, in words that follow what was asked."""


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        method: Such as POST.
        path: Path and query, below the server's base path.
        body: JSON, or bytes that are sent as they are; None for no body.
        headers: Sent beside those that each request has.
        chunked: Whether the body goes in chunks, without a length.
        expects: Whether the server is asked for 100 Continue before the body.
        with_key: Whether the server's key is sent along.
    """

    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    chunked: bool = False
    expects: bool = False
    with_key: bool = True

    @property
    def data(self) -> bytes | None:
        """The body as it is sent."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body, ensure_ascii=False).encode()

    def all_headers(self, address: Address) -> dict[str, str]:
        """Return what is sent along to a server."""
        headers = dict(address.headers) if self.with_key else {}
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        if self.expects:
            headers["Expect"] = "100-continue"
        return {**headers, **self.headers}

    def curl(self, address: Address) -> str:
        """Return the command that asks the same; the key is a variable in it, and no secret."""
        words = ["curl", "-sS", "-i"]
        if self.method == "HEAD":
            words.append("-I")
        elif self.method != ("GET" if self.body is None else "POST"):
            words += ["-X", self.method]
        if address.uds is not None:
            words += ["--unix-socket", address.uds]
        words.append(address_without_password(address, self.path))
        headers = self.all_headers(address)
        key = headers.pop("Authorization", None)
        shown = [shlex.quote(word) for word in words]
        if key is not None:
            shown.append('-H "Authorization: Bearer $API_KEY"')
        if self.chunked:
            headers["Transfer-Encoding"] = "chunked"
        shown += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items()]
        if self.body is not None:
            text = (self.data or b"").decode("utf-8", "replace")
            if len(text) > _SHOWN_BODY * 10:
                shown.append(f"-d @BODY  # {len(text)} characters: {text[:80]}...")
            else:
                shown.append(f"-d {shlex.quote(text)}")
        return " ".join(shown)


def address_without_password(address: Address, path: str) -> str:
    """Return the URL of a path without a name and password in it."""
    return address.url_for(path).replace(address.userinfo, "", 1) if address.userinfo else address.url_for(path)


@dataclass(frozen=True)
class Answer:
    """What the server said.

    Attributes:
        request: What was asked.
        status: The status.
        headers: By their names in small letters; of one that is repeated the last.
        body: The whole body.
        kept_open: Whether the server lets its connection be used again.
    """

    request: Request
    status: int
    headers: Mapping[str, str]
    body: bytes
    kept_open: bool = False

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    @property
    def short(self) -> str:
        """Status and the beginning of the body, for messages."""
        text = " ".join(self.text.split())
        return f"{self.status}: {text[:_SHOWN_BODY]}{'...' if len(text) > _SHOWN_BODY else ''}"

    def json(self) -> Any:
        """Return the value of the body.

        Raises:
            AssertionError: It is not JSON.
        """
        try:
            return parse_json(self.body)
        except (ValueError, RecursionError):
            raise AssertionError(f"the answer is not JSON: {self.short}") from None


class Stream:
    """An answer that is read as it comes."""

    def __init__(self, request: Request, response: http.client.HTTPResponse, limits: Limits) -> None:
        """Read nothing yet.

        Args:
            request: What was asked.
            response: The answer, whose status and headers have been read.
            limits: What reading may cost; whoever has opened the connection counts the time.
        """
        self.request = request
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self._response = response
        self._limits = limits
        self._read = 0

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it comes.

        Raises:
            NoAnswer: It did not come to its end within the limits.
        """
        try:
            while piece := self._response.read1(_PIECE):
                self._read += len(piece)
                if self._read > self._limits.max_bytes:
                    raise TooLong
                yield piece
            if self._response.length:
                raise http.client.IncompleteRead(b"", self._response.length)
        except (OSError, http.client.HTTPException, TooLong, ValueError) as error:
            raise NoAnswer(f"{why(error, self._limits)} (after {self._read} bytes of the body)") from None

    def answer(self) -> Answer:
        """Return the whole answer.

        Raises:
            NoAnswer: As `pieces`.
        """
        body = b"".join(self.pieces())
        return Answer(self.request, self.status, self.headers, body, not self._response.will_close)


@contextlib.contextmanager
def opened(
    address: Address, request: Request, limits: Limits, connection: http.client.HTTPConnection | None = None
) -> Iterator[Stream]:
    """Send a request and yield its answer when status and headers are there.

    Args:
        address: Where the server is.
        request: What is asked.
        limits: For all of it, reading included.
        connection: One to use, which stays open; None for one of its own.

    Raises:
        NoAnswer: There is none.
    """
    deadline = time.monotonic() + limits.seconds
    used = connection
    try:
        try:
            if used is None:
                used = address.http_connection(limits.seconds)
            response = _sent(used, address, request, deadline, limits)
        except (OSError, http.client.HTTPException, TooLong, ValueError) as error:
            raise NoAnswer(why(error, limits) + _hint(address, error)) from None
        with contextlib.closing(response):
            yield Stream(request, response, limits)
    finally:
        if connection is None and used is not None:
            with contextlib.suppress(OSError):
                used.close()


def send(
    address: Address, request: Request, limits: Limits, connection: http.client.HTTPConnection | None = None
) -> Answer:
    """Send a request and return the whole answer; as `opened`."""
    with opened(address, request, limits, connection) as stream:
        return stream.answer()


def _sent(
    connection: http.client.HTTPConnection, address: Address, request: Request, deadline: float, limits: Limits
) -> http.client.HTTPResponse:
    data = request.data
    target = address.url_for(request.path).removeprefix(address.origin)
    connection.response_class = functools.partial(  # type: ignore[assignment]
        bounded_response, deadline, limits.max_bytes + _HEAD
    )
    try:
        if request.expects and data is not None:
            _ask_before_body(connection, request.method, target, data, request.all_headers(address))
        elif request.chunked and data is not None:
            headers = {**request.all_headers(address), "Transfer-Encoding": "chunked"}
            middle = len(data) // 2
            pieces = iter((data[:middle], data[middle:]))
            connection.request(request.method, target, body=pieces, headers=headers, encode_chunked=True)
        else:
            connection.request(request.method, target, body=data, headers=request.all_headers(address))
    except (BrokenPipeError, ConnectionResetError):
        # A server may refuse a body before it has read it, and close: its answer is there all the same.
        if data is None:
            raise
    return connection.getresponse()


def _ask_before_body(
    connection: http.client.HTTPConnection, method: str, target: str, data: bytes, headers: Mapping[str, str]
) -> None:
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
        connection.putheader(name, value)
    connection.endheaders()
    select.select([connection.sock], [], [], _CONTINUE_SECONDS)
    connection.send(data)


def why(error: Exception, limits: Limits) -> str:
    """Return why there was no answer, without anything that the server or the user's key could have put there."""
    if isinstance(error, TimeoutError):
        return f"had no whole answer within {limits.seconds:g} s"
    if isinstance(error, TooLong):
        return f"was answered with more than {limits.max_bytes} bytes"
    if isinstance(error, ConnectionRefusedError):
        return "was refused: nobody listens there"
    if isinstance(error, http.client.RemoteDisconnected):
        return "had no answer: the server closed the connection"
    if isinstance(error, ssl.SSLError):
        return f"failed: TLS: {error.reason or type(error).__name__}"
    if isinstance(error, OSError):
        return f"failed: {error.strerror or type(error).__name__}"
    if isinstance(error, http.client.HTTPException):
        return f"was answered with something that is not whole HTTP ({type(error).__name__})"
    return f"failed: {type(error).__name__}"


def _hint(address: Address, error: Exception) -> str:
    if isinstance(error, (ConnectionRefusedError, TimeoutError, TooLong)):
        return ""
    if address.scheme == "http" and speaks_tls(address):
        return f"; it speaks TLS: write {address.url.replace('http://', 'https://', 1)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "; its certificate is not trusted: name it by SSL_CERT_FILE, or by 'tls: {ca: FILE}' in the YAML"
    if address.scheme == "https" and isinstance(error, ssl.SSLError):
        return "; does it speak plain HTTP? Then write http://"
    return ""


def speaks_tls(address: Address) -> bool:
    """Return whether a server answers a TLS handshake."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with address.connect(_TLS_SECONDS) as plain, context.wrap_socket(plain, server_hostname=address.host):
            return True
    except (OSError, ValueError):
        return False
