"""Puts together what a pytest process needs for its part of the run: alone, as xdist's controller, or as a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.pool.choice import Choice
from pytest_infserver.pool.configured import backend_of, check_command, configured_servers
from pytest_infserver.pool.desk import INPUT, Desk
from pytest_infserver.pool.late import LateReports
from pytest_infserver.pool.member import CLIENT, LocalMember, Member
from pytest_infserver.pool.pool import MAX_RESTARTS, Hooks, Policy, Pool
from pytest_infserver.pool.remote import RemoteMember
from pytest_infserver.pool.room import machine_room
from pytest_infserver.pool.run import Run
from pytest_infserver.selection import Candidate

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.pool.outlook import Outlook
    from pytest_infserver.settings import Settings


def load_run(
    config: pytest.Config,
    settings: Settings,
    progress: Callable[[str], None],
    waiting: Callable[[Outlook], None],
) -> Run:
    """Read the configuration of a run, and join its pool, or make it.

    Args:
        config: pytest's configuration.
        settings: Ours.
        progress: Gets a line of text when a start takes long for a reason.
        waiting: Gets what is waited for, now and then, and once when that has come to an end.

    Raises:
        ConfigError: Something in it is wrong.
    """
    _register_backends(config)
    configs = configured_servers(settings)
    candidates = [Candidate(name, backend_of(one)) for name, one in configs.items()]
    choice = Choice(configs, candidates, settings.strict)
    late = LateReports(config)
    worker: dict[str, Any] = getattr(config, "workerinput", {})
    member: Member
    if INPUT in worker:
        member = RemoteMember(configs, worker[INPUT], worker["workerid"])
    else:
        for one in configs.values():
            check_command(one)
        pool = _make_pool(config, settings, configs)
        member = LocalMember(pool, waiting=waiting, progress=progress)
    return Run(settings, choice, member, late, progress=progress, waiting=waiting)


def open_desk(config: pytest.Config, run: Run) -> Desk:
    """Let the workers of xdist share the pool of its controller."""
    assert isinstance(run.member, LocalMember)
    pool = run.member.pool
    # The controller runs no tests: nobody waits for it.
    pool.leave(CLIENT)
    each = config.getoption("dist", "no") == "each"
    desk = Desk(pool, each=each, waiting=run.waiting, progress=pool.incidents.append)
    pool.on_end = desk.tell_end
    return desk


def _make_pool(config: pytest.Config, settings: Settings, configs: Mapping[str, ServerConfig]) -> Pool:
    hook = config.hook
    hooks = Hooks(
        started=lambda server: hook.pytest_infserver_server_started(config=config, server=server),
        stopping=lambda server: hook.pytest_infserver_server_stopping(config=config, server=server),
        stopped=lambda server: hook.pytest_infserver_server_stopped(config=config, server=server),
    )
    policy = Policy(
        prelaunch=settings.prelaunch,
        restarts=MAX_RESTARTS if settings.on_crash == "restart" else 0,
        keep=settings.keep,
    )
    room = machine_room(configs, settings.max_servers)
    return Pool(configs, room, hooks, policy)


def _register_backends(config: pytest.Config) -> None:
    """Make the backends known that plugins and conftest.py files bring."""
    from pytest_infserver.launcher.backends.registry import register_backend

    for classes in config.hook.pytest_infserver_backends(config=config):
        for backend in classes if isinstance(classes, (list, tuple)) else [classes]:
            register_backend(backend)
