"""Where a server is reached: one value for everybody who talks to it."""

from __future__ import annotations

import dataclasses
import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from pytest_infserver.system.http.trust import new_context, tls_context

_DEFAULT_PORTS = {"http": 80, "https": 443}
_IN_TARGETS = "/%:@!$&'()*+,;=~?[]"
"""What a path or query may have in it as it is; percent-encoded parts are left alone."""


@dataclass(frozen=True)
class Address:
    """Where a server is reached, and what a request to it needs.

    Attributes:
        scheme: ``http`` or ``https``.
        host: Name or address of the host.
        port: The port. It means nothing where there is a unix socket.
        uds: Path of the unix socket on which the server listens instead of a port, or None. One that begins with a
            zero byte is a name of Linux's that is in no file system.
        base_path: What all of its paths begin with, without a slash at the end; "" if there is nothing.
        ports: Its further ports, by name.
        ca: File of the certificates to trust, which may be the server's own; None for those of the system.
        verify: Whether its certificate is checked.
        check_hostname: Whether the certificate must name the host.
        api_key: The key that it wants, or None.
        userinfo: What stands before the host in a URL, with the ``@``; "" if there is nothing.
        key_source: Where that key was configured, in words, or why it is not known; "" if none was configured.
    """

    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = 80
    uds: str | None = None
    base_path: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    ca: str | None = None
    verify: bool = True
    check_hostname: bool = True
    api_key: str | None = field(default=None, repr=False)
    key_source: str = ""
    userinfo: str = field(default="", repr=False)

    @property
    def origin(self) -> str:
        """The URL without a path. Of a unix socket it is ``http://localhost``, for a client that uses the socket."""
        if self.uds is not None:
            return f"{self.scheme}://localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS.get(self.scheme) else f":{self.port}"
        return f"{self.scheme}://{self.userinfo}{host}{port}"

    @property
    def url(self) -> str:
        """The URL with the base path, without a slash at the end."""
        return self.origin + self.base_path

    @property
    def shown_uds(self) -> str | None:
        """The unix socket as people write it."""
        return None if self.uds is None else self.uds.replace("\0", "@")

    @property
    def headers(self) -> dict[str, str]:
        """What each request brings along: the key, if there is one."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    @property
    def context(self) -> ssl.SSLContext | None:
        """The TLS settings, or None where TLS is not spoken.

        Raises:
            OSError: The file of certificates cannot be read.
        """
        if self.scheme != "https":
            return None
        return tls_context(self.ca, verify=self.verify, check_hostname=self.check_hostname)

    def new_context(self) -> ssl.SSLContext:
        """Return TLS settings that the caller may change.

        Raises:
            OSError: The file of certificates cannot be read.
        """
        return new_context(self.ca, verify=self.verify, check_hostname=self.check_hostname)

    def url_for(self, *parts: str) -> str:
        """Return the URL of a path, given in one or several parts.

        A path that begins with the base path already gets it only once.
        """
        path = "/" + "/".join(part.strip("/") for part in parts[:-1] if part.strip("/"))
        last = parts[-1].lstrip("/") if parts else ""
        path = f"{path.rstrip('/')}/{last}"
        base = self.base_path
        if base and (path == base or path.startswith((f"{base}/", f"{base}?"))):
            base = ""
        return self.origin + base + path

    def at(self, name: str) -> Address:
        """Return the same address at one of the further ports, where paths have no base path."""
        return dataclasses.replace(self, port=self.ports[name], uds=None, base_path="")

    def covers(self, url: str) -> bool:
        """Return whether a URL is one of this address."""
        return url == self.origin or url.startswith((f"{self.origin}/", f"{self.origin}?"))

    def shown(self, url: str) -> str:
        """Return a URL as people need it: with the socket, where there is one."""
        return f"{url} (unix socket {self.shown_uds})" if self.uds is not None and self.covers(url) else url

    def connect(self, timeout: float) -> socket.socket:
        """Return an open connection to the port or the unix socket; there is no TLS on it.

        Raises:
            OSError: There is none.
        """
        if self.uds is None:
            return socket.create_connection((self.host, self.port), timeout)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(self.uds)
        except BaseException:
            connection.close()
            raise
        return connection

    def http_connection(self, timeout: float, url: str | None = None) -> http.client.HTTPConnection:
        """Return a connection for HTTP requests; it is opened with the first one.

        Args:
            timeout: Limit of each of its steps in seconds.
            url: Where to, if that may be somewhere else than here.

        Raises:
            OSError: The file of certificates cannot be read.
            ValueError: The URL is not valid.
        """
        if self.uds is not None and (url is None or self.covers(url)):
            return _UnixConnection(self, timeout)
        parts = urlsplit(self.origin if url is None else url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            context = tls_context(self.ca, verify=self.verify, check_hostname=self.check_hostname)
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        return http.client.HTTPConnection(host, port, timeout=timeout)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, address: Address, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address
        self._limit = timeout

    def connect(self) -> None:
        """Connect to the socket."""
        connection = self._address.connect(self._limit)
        context = self._address.context
        self.sock = connection if context is None else context.wrap_socket(connection, server_hostname="localhost")


def request_target(path: str, query: str) -> str:
    """Return what a request names: path and query, with what may not stand in them percent-encoded."""
    target = (path or "/") + (f"?{query}" if query else "")
    return quote(target, safe=_IN_TARGETS)


def parse_address(url: str) -> Address:
    """Return the address that a URL stands for, its path as base path.

    Raises:
        ValueError: The URL is not valid.
    """
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 80)
    before, at, _ = parts.netloc.rpartition("@")
    base_path = parts.path.rstrip("/")
    return Address(parts.scheme, parts.hostname or "", port, base_path=base_path, userinfo=before + at)
