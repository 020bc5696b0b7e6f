"""A session of `requests` that reaches a server wherever its address is."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from pytest_infserver.system.http.address import Address

_CONNECT_LIMIT = 30.0


class ServerSession(requests.Session):
    """A session for one server; a path stands for a URL of it. Proxies of the environment are not used."""

    def __init__(self, address: Address, now: Callable[[], Address]) -> None:
        """Send nothing yet.

        Args:
            address: Where the server is reached.
            now: Returns where that is now: a restart may move it.
        """
        super().__init__()
        self.trust_env = False
        self._now = now
        self._address = address
        self.headers.update(address.headers)
        self.mount(f"{address.origin}/", _Adapter(address))

    @property
    def base_url(self) -> str:
        """The URL of the server."""
        return self._now().url

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request; see `requests.Session.request`.

        Args:
            method: As there.
            url: As there, or a path on the server.
            *args: As there.
            **kwargs: As there.
        """
        text = url.decode() if isinstance(url, bytes) else url
        absolute = text
        if "://" not in text:
            address = self._now()
            if address.origin != self._address.origin:
                self._address = address
                self.mount(f"{address.origin}/", _Adapter(address))
            absolute = address.url_for(text)
        return super().request(method, absolute, *args, **kwargs)


def session_for(address: Address, now: Callable[[], Address] | None = None) -> ServerSession:
    """Return a session for a server, with its key and its certificates; it is the caller's to close.

    Args:
        address: Where the server is reached.
        now: Returns where that is now, if it may move.
    """
    return ServerSession(address, now or (lambda: address))


class _Adapter(HTTPAdapter):
    """Connects as an address says."""

    def __init__(self, address: Address) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools use the address's TLS settings."""
        address = self._address
        if address.scheme == "https":
            # A copy: urllib3 changes it.
            kwargs["ssl_context"] = address.new_context()
            kwargs["assert_hostname"] = None if address.verify and address.check_hostname else False
        super().init_poolmanager(*args, **kwargs)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Load no further authorities: the address says whom to trust."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pool for a request."""
        return self._at_socket(super().get_connection_with_tls_context(*args, **kwargs))

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pool for a request, for requests before 2.32."""
        return self._at_socket(super().get_connection(*args, **kwargs))

    def _at_socket(self, pool: Any) -> Any:
        if self._address.uds is not None:
            address, kind = self._address, pool.ConnectionCls
            if not issubclass(kind, _AtSocket):
                pool.ConnectionCls = type("AtSocket", (_AtSocket, kind), {"address": address})
        return pool

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request."""
        kwargs["verify"] = self._address.verify
        return super().send(request, *args, **kwargs)


class _AtSocket:
    """What makes a connection of urllib3 go to a unix socket."""

    address: Address
    timeout: Any

    def _new_conn(self) -> socket.socket:
        limit = self.timeout if isinstance(self.timeout, (int, float)) else _CONNECT_LIMIT
        connection = self.address.connect(limit)
        connection.settimeout(self.timeout if isinstance(self.timeout, (int, float)) else None)
        return connection
