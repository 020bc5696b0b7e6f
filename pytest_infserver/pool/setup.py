"""Puts together what a pytest process needs for its part of the run: alone, as xdist's controller, or as a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.errors import ConfigError
from pytest_infserver.pool.choice import LOOKED_FOR, Choice
from pytest_infserver.pool.configured import backend_of, check_command, configured_servers
from pytest_infserver.pool.desk import INPUT, Desk
from pytest_infserver.pool.late import LateReports
from pytest_infserver.pool.member import CLIENT, LocalMember, Member
from pytest_infserver.pool.pool import MAX_RESTARTS, Hooks, Policy, Pool
from pytest_infserver.pool.remote import RemoteMember
from pytest_infserver.pool.room import Room, machine_room
from pytest_infserver.pool.run import Run
from pytest_infserver.selection import Candidate

if TYPE_CHECKING:
    from pytest_infserver.cluster.cluster import Cluster
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.pool.outlook import Outlook
    from pytest_infserver.settings import Settings

_SEED = "cluster_seed"


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
        UserCodeError: A hook or a backend has raised something.
    """
    _register_backends(config)
    worker: dict[str, Any] = getattr(config, "workerinput", {})
    cluster = _cluster(settings, worker)
    configs = configured_servers(settings)
    if cluster is not None:
        configs = {name: cluster.with_api_key(one) for name, one in configs.items()}
    candidates = [Candidate(name, backend_of(one)) for name, one in configs.items()]
    looked_for = LOOKED_FOR.format(rootdir=config.rootpath, inifile=config.inipath or "nothing")
    choice = Choice(configs, candidates, settings.strict, looked_for)
    late = LateReports(config)
    member: Member
    if INPUT in worker:
        member = RemoteMember(configs, worker[INPUT], worker["workerid"])
    else:
        for one in configs.values() if cluster is None else ():
            check_command(one)
        pool = _make_pool(config, settings, configs, cluster)
        member = LocalMember(pool, waiting=waiting, progress=progress)
    return Run(settings, choice, member, late, cluster=cluster, progress=progress, waiting=waiting)


def open_desk(config: pytest.Config, run: Run) -> Desk:
    """Let the workers of xdist share the pool of its controller."""
    assert isinstance(run.member, LocalMember)
    pool = run.member.pool
    # The controller runs no tests: nobody waits for it.
    pool.leave(CLIENT)
    each = config.getoption("dist", "no") == "each"
    desk = Desk(pool, each=each, waiting=run.waiting, progress=pool.incidents.append)
    pool.on_end = desk.tell_end
    if run.cluster is not None:
        desk.key[_SEED] = run.cluster.seed
    return desk


def _cluster(settings: Settings, worker: Mapping[str, Any]) -> Cluster | None:
    if settings.cluster is None:
        return None
    if settings.keep is not None:
        raise ConfigError(
            "--infserver-keep and --infserver-cluster: a server on a cluster ends with the run that has started it"
        )
    from pytest_infserver.cluster.cluster import Cluster

    return Cluster(settings.cluster, worker.get(INPUT, {}).get(_SEED))


def _make_pool(
    config: pytest.Config, settings: Settings, configs: Mapping[str, ServerConfig], cluster: Cluster | None
) -> Pool:
    hooks = Hooks(
        started=lambda server: _call_hook(config, "pytest_infserver_server_started", server=server),
        stopping=lambda server: _call_hook(config, "pytest_infserver_server_stopping", server=server),
        stopped=lambda server: _call_hook(config, "pytest_infserver_server_stopped", server=server),
    )
    policy = Policy(
        prelaunch=settings.prelaunch,
        restarts=MAX_RESTARTS if settings.on_crash == "restart" else 0,
        keep=settings.keep,
    )
    return Pool(configs, _room(settings, configs, cluster), hooks, policy)


def _room(settings: Settings, configs: Mapping[str, ServerConfig], cluster: Cluster | None) -> Room:
    if cluster is None:
        return machine_room(configs, settings.max_servers)
    from pytest_infserver.cluster.room import ClusterRoom

    return ClusterRoom(cluster, configs, settings.max_servers)


def _call_hook(config: pytest.Config, name: str, **arguments: Any) -> Any:
    """Call a hook of ours.

    Raises:
        UserCodeError: It has raised something.
    """
    from pytest_infserver.launcher.user_code import call

    hook = getattr(config.hook, name)
    return call(f"the hook {name}", lambda: hook(config=config, **arguments), arguments.get("server"))


def _register_backends(config: pytest.Config) -> None:
    """Make the backends known that plugins and conftest.py files bring."""
    from pytest_infserver.launcher.backends.registry import register_backend

    for classes in _call_hook(config, "pytest_infserver_backends"):
        for backend in classes if isinstance(classes, (list, tuple)) else [classes]:
            register_backend(backend)
