"""What a load is told of a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.engine.version import installed_version
from pytest_infserver.launcher.startup.ports import is_loopback
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.load.job import Job
from pytest_infserver.load.running import Target
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_infserver.launcher.configured import ConfiguredServer
    from pytest_infserver.load.workload import Workload

_IGNORE_EOS = ("vllm", "sglang", "llamacpp")
_DECIDES_SPEED = (
    "backend",
    "model",
    "launch_command",
    "entrypoint",
    "config",
    "extra_args",
    "env_vars",
    "gpus",
    "nodes",
)


def load_target(server: ConfiguredServer, api_model: Callable[[], str], pids: Callable[[], Sequence[int]]) -> Target:
    """Return it, of a server that runs.

    Args:
        server: The server.
        api_model: Returns the name that requests need.
        pids: Returns its processes.
    """

    def job(load: Workload) -> Job:
        address = asked(server).address
        here = not server.attached or address.uds is not None or is_loopback(server.host)
        return Job(address, api_model(), server.backend_name in _IGNORE_EOS, not here, load)

    return Target(server.name, job, pids, _identity(server), engine_of(server), server.secrets)


def engine_of(server: ConfiguredServer) -> str:
    """Return the engine of a server and, where it is known, that one's version."""
    version = None
    if not server.attached:
        command = server.command()
        version = installed_version(command.argv[0], asked(server).packages, command.env)
    return server.backend_name if version is None else f"{server.backend_name} {version}"


def _identity(server: ConfiguredServer) -> dict[str, Any]:
    """Return the settings that decide how fast a server is, without secrets."""
    settings = {name: getattr(server.settings, name, None) for name in _DECIDES_SPEED}
    if server.attached:
        # Whatever it was started with is not known.
        settings = {name: settings[name] for name in ("backend", "model")}
        settings["attached"] = server.name
    elif server.node is not None:
        settings["node"] = server.node
    text = json.dumps({name: value for name, value in settings.items() if value}, sort_keys=True, default=_plain)
    found: dict[str, Any] = json.loads(clean(text, server.secrets))
    return found


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else str(value)
