"""Which servers have to be started for a profiler, since a test asks for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.profiling.chosen import check_profiler, use_profiler
from pytest_infserver.pool.collection.selection import PROFILE

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.collection.choice import Choice

NOT_PROFILED = (
    f"{PROFILE} profiles what a test takes as 'inference_server' or 'inference_servers'; around another server write"
    " 'with server.profiling(\"name\"):'"
)
"""What a test is told whose mark profiles nothing."""


def wanted_profilers(items: Iterable[pytest.Item], choice: Choice) -> dict[str, str]:
    """Return name of a server to the profiler that it has to be started for.

    A test whose profiler cannot be had is refused: it fails in its setup, and the others go on.

    Args:
        items: The tests that are going to run.
        choice: Knows what they ask for.
    """
    tools: dict[str, str] = {}
    problems: dict[tuple[str, str], str | None] = {}
    for item in items:
        asked = choice.profiler(item)
        if asked is None:
            if choice.refusal(item) is None and any(mark.name == PROFILE for mark in item.own_markers):
                item.warn(pytest.PytestWarning(f"{PROFILE} has no effect: {item.nodeid} takes no inference server"))
            continue
        names = {name: asked or default_tool(choice.all_configs, name) for name in choice.servers(item)}
        for name, tool in names.items():
            if (name, tool) not in problems:
                problems[name, tool] = _problem(choice.all_configs[name], tool, tools.get(name))
        wrong = [text for text in (problems[one] for one in names.items()) if text is not None]
        if wrong:
            choice.refuse(item, wrong[0])
        else:
            tools.update({name: tool for name, tool in names.items() if _is_at_launch(tool)})
    return tools


def default_tool(configs: Mapping[str, ServerConfig], name: str) -> str:
    """Return the profiler of a server for a test that names none."""
    profile = configs[name].profile
    return "py-spy" if profile is None else profile.tool


@contextlib.contextmanager
def telling(server: InferenceServer, progress: Callable[[str], None]) -> Iterator[None]:
    """Show at once what a server says."""
    before, server.on_progress = server.on_progress, progress
    try:
        yield
    finally:
        server.on_progress = before


def _problem(config: ServerConfig, tool: str, taken: str | None) -> str | None:
    """Return why a server cannot be profiled with a tool."""
    from pytest_infserver.launcher.factory import create_from_config

    try:
        server = create_from_config(config)
        if taken is not None:
            use_profiler(server, taken)
        check_profiler(server, tool)
    except InferenceServerError as error:
        return str(error)
    return None


def _is_at_launch(tool: str) -> bool:
    from pytest_infserver.launcher.profiling.tools import TOOLS

    return TOOLS[tool].at_launch
