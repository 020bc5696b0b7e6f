"""The hooks that a conftest.py or another plugin may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_infserver.launcher.server import InferenceServer


@pytest.hookspec
def pytest_infserver_backends(config: pytest.Config) -> Sequence[type[InferenceServer]]:
    """Return further backends; each is known under the name that its ``get_backend_name`` returns.

    Called once, before the configuration is read: from plugins, and from the conftest.py files of the root
    directory and of the paths on the command line.
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_infserver_server_started(config: pytest.Config, server: InferenceServer) -> None:
    """Called when a server of the configuration is ready.

    This hook and the next two are called in the process that owns the server, under xdist the controller, and in a
    thread of their own.
    """


@pytest.hookspec
def pytest_infserver_server_stopping(config: pytest.Config, server: InferenceServer) -> None:
    """Called before a server of the configuration is stopped; it may have died already."""


@pytest.hookspec
def pytest_infserver_server_stopped(config: pytest.Config, server: InferenceServer) -> None:
    """Called when a server of the configuration and everything it started is gone."""
