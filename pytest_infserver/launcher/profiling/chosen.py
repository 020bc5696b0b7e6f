"""Which profiler a server is started for, as configured or because tests ask for one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pytest_infserver.config.model import ProfileConfig, ServerConfig
from pytest_infserver.errors import ProfileError
from pytest_infserver.launcher.profiling.tools import TOOLS

if TYPE_CHECKING:
    from pytest_infserver.launcher.configured import ConfiguredServer


def profile_settings(config: ServerConfig, tool: str) -> ProfileConfig:
    """Return the settings of a profiler: the configured ones as far as they are about this one."""
    configured = config.profile or ProfileConfig()
    if configured.tool == tool:
        return configured
    return dataclasses.replace(configured, tool=tool, args=(), binary_path=None)


def is_profiled_at_launch(server: ConfiguredServer) -> bool:
    """Return whether a server is started for a profiler, or profiled for its whole life: it is none for others then."""
    profiler = server.profiler
    return profiler is not None and (profiler.at_launch or not profiler.settings.on_demand)


def use_profiler(server: ConfiguredServer, tool: str) -> None:
    """Have the next starts made for a profiler, which then profiles what it is asked for.

    Args:
        server: The server.
        tool: The profiler. If it is configured already nothing changes.

    Raises:
        ProfileError: The server is configured for another one.
    """
    profiler = server.profiler
    if profiler is None:
        settings = dataclasses.replace(profile_settings(server.settings, tool), enabled=True, on_demand=True)
        server.settings = dataclasses.replace(server.settings, profile=settings)
    elif profiler.name != tool:
        raise profiler.error(f"a server is started for one profiler, and {tool} is asked for as well")


def check_profiler(server: ConfiguredServer, tool: str) -> None:
    """Make sure that a server can be profiled with a tool, if it is started for it where that needs it.

    Raises:
        ProfileError: It cannot.
    """
    profiler = TOOLS[tool](server, profile_settings(server.settings, tool))
    if not profiler.parts:
        raise profiler.error("it can profile a server's whole life only: 'profile: {tool: amd}' or --infserver-profile")
    if profiler.at_launch:
        use_profiler(server, tool)
    profiler.check()


def profile_problem(server: ConfiguredServer, *, also_on_demand: bool = True) -> str | None:
    """Return why a server cannot be profiled as configured, or None.

    Args:
        server: The server.
        also_on_demand: Look also at what is profiled only when somebody asks for it.
    """
    profiler = server.profiler
    if profiler is None or (profiler.settings.on_demand and not also_on_demand):
        return None
    try:
        profiler.check()
    except ProfileError as error:
        return str(error).removeprefix(f"{server}: ")
    return None
