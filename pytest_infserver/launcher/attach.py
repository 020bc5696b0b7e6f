"""Attaching to a server that somebody else runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.errors import ServerStartupError, ServerStartupTimeout
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.probe import Answer

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig

_LOADING = 503


def attached_config(config: ServerConfig, address: Address) -> ServerConfig:
    """Return the configuration of a server that runs, as its user needs it."""
    ca = {} if address.ca is None else {"ca": address.ca}
    tls = {**ca, "verify": address.verify, "check_hostname": address.check_hostname}
    # Of the probes those that can be asked by anybody, again and again.
    lasting = tuple(one for one in config.ready or () if {"http", "tcp", "grpc"} & set(one))
    return dataclasses.replace(
        config,
        url=address.url,
        uds=address.uds,
        base_path=None,
        ports=dict(address.ports),
        tls=tls if address.scheme == "https" else {},
        api_key=address.api_key,
        api_key_env=None,
        ready=lasting or (None if config.ready is None or config.health_endpoint else ({"tcp": True},)),
        profile=None,
        stop_command=None,
    )


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
                f"{who} cannot be attached: {url} {answer}. Start it, or correct 'url', 'health_endpoint' or 'ready'."
            )
        if time.monotonic() > deadline:
            raise ServerStartupTimeout(f"{who} cannot be attached: {url} was still loading after {timeout:g} s")
        time.sleep(0.1)
