"""Puts together what a pytest process needs for its part of the run: alone, as xdist's controller, or as a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.errors import ConfigError
from pytest_infserver.launcher.backends.registry import find_backend
from pytest_infserver.launcher.factory import create_from_config
from pytest_infserver.pool.broker.broker import INPUT, Broker
from pytest_infserver.pool.broker.pool_requests import key_for
from pytest_infserver.pool.broker.remote import RemoteMember
from pytest_infserver.pool.collection.choice import LOOKED_FOR, Choice
from pytest_infserver.pool.collection.durations import Durations, read_durations
from pytest_infserver.pool.collection.remembered import memory_of
from pytest_infserver.pool.collection.selection import Candidate
from pytest_infserver.pool.configured import (
    all_servers,
    asked_for,
    backend_of,
    check_command,
    chosen_servers,
    known_names,
    own_server,
)
from pytest_infserver.pool.late_reports import LateReports
from pytest_infserver.pool.member import CLIENT, LocalMember, Member
from pytest_infserver.pool.pool import Pool
from pytest_infserver.pool.process.boot import Boot
from pytest_infserver.pool.process.controller import Controller, RemoteController
from pytest_infserver.pool.process.foreign import as_foreign, is_expressible
from pytest_infserver.pool.process.member import OwnerMember
from pytest_infserver.pool.process.owner import Listeners, PoolOwner
from pytest_infserver.pool.room import Room, machine_room
from pytest_infserver.pool.run import Run
from pytest_infserver.pool.servers.policy import MAX_RESTARTS, Hooks, Policy
from pytest_infserver.reporting.record.run_files import run_folder
from pytest_infserver.system.environment import surroundings

if TYPE_CHECKING:
    from pytest_infserver.cluster.cluster import Cluster
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.pool.wait_report import WaitReport
    from pytest_infserver.settings import Settings
    from pytest_infserver.system.environment import Surroundings

_SEED = "cluster_seed"


def load_run(
    config: pytest.Config,
    settings: Settings,
    progress: Callable[[str], None],
    waiting: Callable[[WaitReport], None],
    before: Surroundings | None = None,
) -> Run:
    """Read the configuration of a run, and join its pool, or make it.

    Args:
        config: pytest's configuration.
        settings: Ours.
        progress: Gets a line of text when a start takes long for a reason.
        waiting: Gets what is waited for, now and then, and once when that has come to an end.
        before: What servers inherit; what this process has now if None.

    Raises:
        ConfigError: Something in it is wrong.
        UserCodeError: A hook or a backend has raised something.
    """
    _register_backends(config)
    worker: dict[str, Any] = getattr(config, "workerinput", {})
    key = key_for(worker.get(INPUT))
    cluster = _cluster(settings, key or {})
    wanted = settings.shard is not None or settings.save_durations
    durations = read_durations(settings.durations) if wanted else Durations()
    servers = all_servers(settings)
    configs = chosen_servers(servers, settings)
    if cluster is not None:
        configs = {name: cluster.with_api_key(one) for name, one in configs.items()}
    candidates = [Candidate(name, backend_of(configs[name])) for name in asked_for(configs, settings)]
    looked_for = LOOKED_FOR.format(rootdir=config.rootpath, inifile=config.inipath or "nothing")
    choice = Choice(
        configs,
        candidates,
        settings.strict,
        looked_for,
        known_names(servers, settings),
        config,
        lambda values, place: own_server(settings, values, place),
    )
    late = LateReports(config)
    member: Member
    if key is not None:
        member = RemoteMember(configs, key, worker["workerid"])
    else:
        for one in configs.values() if cluster is None else ():
            check_command(one)
        if cluster is None and all(is_expressible(find_backend(one)) for one in configs.values()):
            member = _own_member(config, settings, configs, waiting, progress, before)
        else:
            pool = _make_pool(config, settings, configs, cluster)
            member = LocalMember(pool, waiting=waiting, progress=progress)
    return Run(
        settings,
        choice,
        member,
        late,
        durations=durations,
        cluster=cluster,
        memory=memory_of(config) if candidates and settings.prelaunch and not isinstance(member, LocalMember) else None,
        progress=progress,
        waiting=waiting,
    )


def _own_member(
    config: pytest.Config,
    settings: Settings,
    configs: Mapping[str, ServerConfig],
    waiting: Callable[[WaitReport], None],
    progress: Callable[[str], None],
    before: Surroundings | None,
) -> OwnerMember:
    """Return this process's access to a pool in a process of its own, which is started by whoever needs it first."""
    found = {one.backend: as_foreign(find_backend(one)) for one in configs.values()}
    workers = config.pluginmanager.hasplugin("dsession")
    boot = Boot(
        configs,
        {name: foreign for name, foreign in found.items() if foreign is not None},
        _policy(settings),
        settings.max_servers,
        run_folder(settings, configs),
        workers=workers,
        each=config.getoption("dist", "no") == "each",
        tells_log=settings.log == "live",
    )
    listeners = Listeners(waiting=waiting, progress=progress)
    owner = PoolOwner(boot, create_from_config, listeners, before or surroundings())
    member = OwnerMember(configs, owner, alone=not workers, waiting=waiting, progress=progress)
    listeners.has_hook = lambda hook: bool(getattr(config.hook, hook).get_hookimpls())
    listeners.hook = lambda hook, one, view: _call_hook(config, hook, server=member.followed(one, view))
    return member


def open_broker(config: pytest.Config, run: Run) -> Controller:
    """Let the workers of xdist share the pool of their controller."""
    if isinstance(run.member, OwnerMember):
        return RemoteController(run.member)
    assert isinstance(run.member, LocalMember)
    pool = run.member.pool
    # The controller runs no tests: nobody waits for it.
    pool.leave(CLIENT)
    each = config.getoption("dist", "no") == "each"
    broker = Broker(pool, each=each, waiting=run.waiting, progress=pool.incidents.append)
    pool.on_end = broker.tell_end
    if run.cluster is not None:
        broker.key[_SEED] = run.cluster.seed
    return broker


def _cluster(settings: Settings, key: Mapping[str, Any]) -> Cluster | None:
    if settings.cluster is None:
        return None
    if settings.keep is not None:
        raise ConfigError(
            "--infserver-keep and --infserver-cluster: a server on a cluster ends with the run that has started it"
        )
    if settings.share_gpu:
        raise ConfigError("--infserver-share-gpu and --infserver-cluster: on a cluster Ray gives the GPUs out")
    from pytest_infserver.cluster.cluster import Cluster

    return Cluster(settings.cluster, key.get(_SEED))


def _make_pool(
    config: pytest.Config, settings: Settings, configs: Mapping[str, ServerConfig], cluster: Cluster | None
) -> Pool:
    hooks = Hooks(
        started=lambda server: _call_hook(config, "pytest_infserver_server_started", server=server),
        stopping=lambda server: _call_hook(config, "pytest_infserver_server_stopping", server=server),
        stopped=lambda server: _call_hook(config, "pytest_infserver_server_stopped", server=server),
    )
    return Pool(configs, _room(settings, configs, cluster), hooks, _policy(settings))


def _policy(settings: Settings) -> Policy:
    return Policy(
        prelaunch=settings.prelaunch,
        restarts=MAX_RESTARTS if settings.on_crash == "restart" else 0,
        keep=settings.keep,
        share_gpu=settings.share_gpu,
    )


def _room(settings: Settings, configs: Mapping[str, ServerConfig], cluster: Cluster | None) -> Room:
    if cluster is None:
        return machine_room(configs, settings.max_servers)
    from pytest_infserver.cluster.placement.room import ClusterRoom

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
