"""Attaching to a server that somebody else runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.errors import ServerStartupError, ServerStartupTimeout
from pytest_infserver.launcher.http_probe import Answer

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.server import InferenceServer

_LOADING = 503

_NOT_HERE = "this process has only a handle of the server: stop it in the one that has started it"


def handle(backend: type[InferenceServer], config: ServerConfig, api_key: str | None) -> InferenceServer:
    """Return a server for a process that may only use it.

    Args:
        backend: Its class.
        config: Its configuration, with the ``url`` at which it runs.
        api_key: The key that it wants, from wherever it has it.
    """
    if api_key is not None:
        config = dataclasses.replace(config, config={"server_args": {"--api-key": api_key}})
    server = backend.from_config(config)
    server.refuse_stop(_NOT_HERE)
    return server


def wait_for_url(url: str, ask_health: Callable[[], Answer], timeout: float, who: str) -> None:
    """Wait until a running server is healthy.

    Args:
        url: Its URL, for messages.
        ask_health: Asks it once.
        timeout: Limit in seconds while it answers that it is loading; anything else fails at once.
        who: Its name, for messages.

    Raises:
        ServerStartupError: Nothing healthy answers there.
        ServerStartupTimeout: It was still loading at the end of the time.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = ask_health()
        if answer.ok:
            return
        if answer.status != _LOADING:
            raise ServerStartupError(
                f"{who} cannot be attached: {url} {answer}. Start it, or correct 'url' or 'health_endpoint'."
            )
        if time.monotonic() > deadline:
            raise ServerStartupTimeout(f"{who} cannot be attached: {url} was still loading after {timeout:g} s")
        time.sleep(0.1)
