"""OpenAI clients of a server."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_infserver.errors import InferenceServerError, UserCodeError
from pytest_infserver.launcher.startup.ports import is_loopback
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    import openai
    import requests

    from pytest_infserver.launcher.spec import ServerSpec


def make_client(server: ServerSpec, **settings: Any) -> openai.OpenAI:
    """Return a client whose requests go to ``server``.

    It does not retry, so that a test sees the server's failures, and for a server on this machine it uses no proxy
    of the environment.

    Args:
        server: A server with an OpenAI-compatible API under ``/v1``.
        **settings: Arguments of ``openai.OpenAI`` that replace ours.

    Raises:
        InferenceServerError: The package openai is not installed.
    """
    _require_openai()
    import openai

    return openai.OpenAI(**{**_settings(server), "http_client": _http_client(server), **settings})


def make_async_client(server: ServerSpec, **settings: Any) -> openai.AsyncOpenAI:
    """Return the asynchronous twin of `make_client`, which may be used in one event loop after another.

    Raises:
        InferenceServerError: The package openai is not installed.
    """
    _require_openai()
    import openai

    return openai.AsyncOpenAI(**{**_settings(server), "http_client": _async_http_client(server), **settings})


def _require_openai() -> None:
    if importlib.util.find_spec("openai") is None:
        raise InferenceServerError("a client needs the package openai: pip install 'pytest-infserver[openai]'")


def _settings(server: ServerSpec) -> dict[str, Any]:
    key = asked(server).api_key or (os.environ.get("OPENAI_API_KEY") if server.attached else None)
    return {"base_url": server.url_for("/v1"), "api_key": key or "none-needed", "max_retries": 0}


def make_session(server: ServerSpec) -> requests.Session:
    """Return a session whose requests go to ``server``; a path stands for a URL of it.

    Raises:
        InferenceServerError: Its certificates cannot be used.
    """
    from pytest_infserver.system.http.session import session_for

    try:
        return session_for(asked(server).address, lambda: server.address)
    except (UserCodeError, OSError) as error:
        raise InferenceServerError(f"inference_session: {error}") from None


def _http_client(server: ServerSpec) -> Any:
    import openai

    class Client(openai.DefaultHttpxClient):
        """A client that leaves no open connection behind when nobody closes it."""

        def __del__(self) -> None:
            if not self.is_closed:
                self.close()

    return Client(**client_settings(server))


def _async_http_client(server: ServerSpec) -> Any:
    from pytest_infserver.launcher.clients.any_loop_client import any_loop_client

    return any_loop_client(**client_settings(server, is_async=True))


def client_settings(server: ServerSpec, *, is_async: bool = False) -> dict[str, Any]:
    """Return how a client of httpx reaches a server."""
    # Not httpx by name: newer versions of openai bring another package in its place.
    import openai

    client = next(one for one in openai.DefaultHttpxClient.__mro__ if one.__name__ == "Client")
    httpx = sys.modules[client.__module__.partition(".")[0]]
    address = server.address
    settings: dict[str, Any] = {}
    if address.scheme == "https" and (_is_here(server) or server.settings.tls):
        settings["verify"] = address.new_context()
    if address.uds is not None:
        transport = httpx.AsyncHTTPTransport if is_async else httpx.HTTPTransport
        # A connection that is kept belongs to one event loop.
        limits = {"limits": httpx.Limits(max_keepalive_connections=0)} if is_async else {}
        settings["transport"] = transport(uds=address.uds, verify=settings.get("verify", True), **limits)
    if _is_here(server):
        settings["trust_env"] = False
    if server.node is not None and _is_here(server):
        settings["event_hooks"] = {"request": [functools.partial(_follow_later if is_async else _follow, server)]}
    return settings


def _follow(server: ServerSpec, request: Any) -> None:
    """Send a request to where the server is now: on a cluster a restart may move it."""
    now = urlsplit(server.server_url)
    request.url = request.url.copy_with(host=now.hostname, port=now.port)
    request.headers["Host"] = now.netloc


async def _follow_later(server: ServerSpec, request: Any) -> None:
    _follow(server, request)


def _is_here(server: ServerSpec) -> bool:
    return not server.attached or server.address.uds is not None or is_loopback(server.host)
