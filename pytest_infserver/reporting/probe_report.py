"""What ``infserver check --probe`` says: each server that runs is asked, and what was seen is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.factory import create_from_config
from pytest_infserver.launcher.startup.probes.choice import health_probes, start_probes
from pytest_infserver.launcher.startup.probes.probe import Probe
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.keeping.kept import KeptServer
    from pytest_infserver.launcher.server import InferenceServer

Choose = Callable[["InferenceServer"], list[Probe]]
_RUNNING = ("running", "kept")


def probe_servers(configs: Iterable[ServerConfig], running: Sequence[KeptServer]) -> Iterator[tuple[bool, str]]:
    """Ask servers; yield for each question whether the answer is good, and a line about it.

    Args:
        configs: The configured servers.
        running: Those that run on this machine.
    """
    for config in configs:
        try:
            yield from _probed(config, running)
        except InferenceServerError as error:
            yield False, str(error)


def _probed(config: ServerConfig, running: Sequence[KeptServer]) -> Iterator[tuple[bool, str]]:
    server = create_from_config(config)
    if server.attached:
        yield from _asked(server, server.name, start_probes)
        return
    known = (server.name, server.backend_name)
    found = [one for one in running if (one.name, one.backend) == known and one.state in _RUNNING]
    if not found:
        yield True, f"{server.name}: does not run on this machine"
    for one in found:
        server.give(port=one.port, ports=one.ports)
        yield from _asked(server, f"{server.name} (pid {one.pid})", health_probes)


def _asked(server: InferenceServer, who: str, choose: Choose) -> Iterator[tuple[bool, str]]:
    probes = choose(server)
    if not probes:
        yield True, f"{who}: runs; what its 'ready' says is asked at its start only"
    for probe in probes:
        answer = probe.look(server.settings.heartbeat_timeout)
        text = f"{who}: {probe.told(answer)}{f' in {answer.seconds * 1000:.0f} ms' if answer.ok else ''}"
        yield answer.ok, clean(text, server.secrets)
