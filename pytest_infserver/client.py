"""An OpenAI client for a server."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from pytest_infserver.launcher.ports import is_loopback

if TYPE_CHECKING:
    import httpx
    import openai

    from pytest_infserver.launcher.server import InferenceServer


def make_client(server: InferenceServer) -> openai.OpenAI:
    """Return a client whose requests go to ``server``.

    It does not retry, so that a test sees the server's failures, and for a server on this machine it uses no proxy
    of the environment.

    Args:
        server: A server with an OpenAI-compatible API under ``/v1``.
    """
    if importlib.util.find_spec("openai") is None:
        pytest.fail("inference_client needs the package openai: pip install 'pytest-infserver[openai]'", pytrace=False)
    import openai

    from pytest_infserver.launcher.user_code import asked

    key = asked(server).api_key or (os.environ.get("OPENAI_API_KEY") if server.attached else None)
    return openai.OpenAI(
        base_url=server.url_for("/v1"),
        api_key=key or "none-needed",
        max_retries=0,
        http_client=_http_client(server),
    )


def _http_client(server: InferenceServer) -> httpx.Client | None:
    import openai

    if not _is_here(server):
        return None
    if server.node is None:
        return openai.DefaultHttpxClient(trust_env=False)

    def follow(request: httpx.Request) -> None:
        """Send a request to where the server is now: on a cluster a restart may move it."""
        now = urlsplit(server.server_url)
        request.url = request.url.copy_with(host=now.hostname, port=now.port)
        request.headers["Host"] = now.netloc

    return openai.DefaultHttpxClient(trust_env=False, event_hooks={"request": [follow]})


def _is_here(server: InferenceServer) -> bool:
    return not server.attached or is_loopback(server.host)
