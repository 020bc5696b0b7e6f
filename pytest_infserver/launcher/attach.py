"""Attaching to a server that somebody else runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_infserver.errors import ServerStartupError, ServerStartupTimeout
from pytest_infserver.launcher.http_probe import Answer

_LOADING = 503


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
