"""Which probes a server has: for its start, and for its heartbeat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.startup.probes.command import CommandProbe
from pytest_infserver.launcher.startup.probes.grpc import GrpcProbe
from pytest_infserver.launcher.startup.probes.http import HttpProbe
from pytest_infserver.launcher.startup.probes.log import LogProbe
from pytest_infserver.launcher.startup.probes.probe import Probe
from pytest_infserver.launcher.startup.probes.request import RequestProbe
from pytest_infserver.launcher.startup.probes.tcp import TcpProbe
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle
    from pytest_infserver.system.http.address import Address

_ONCE = ("log", "command", "request")


def start_probes(server: ServerHandle) -> list[Probe]:
    """Return what must hold, in this order, for a server to be ready."""
    address = server.address
    ready = server.settings.ready
    if ready is None:
        return [HttpProbe(address, server.health_url())]
    return [_probe(server, address, block) for block in ready]


def health_probes(server: ServerHandle) -> list[Probe]:
    """Return what must hold while a server runs; nothing where it is only known that it runs.

    What is asked for once is not asked again. In its place comes the health endpoint, if it is known that there is one,
    else whether the port is open.
    """
    settings, address = server.settings, server.address
    ready = settings.ready
    if ready is None:
        return [HttpProbe(address, server.health_url())]
    lasting = [_probe(server, address, block) for block in ready if not set(_ONCE) & set(block)]
    if lasting:
        return lasting
    if settings.health_endpoint is not None:
        return [HttpProbe(address, server.health_url())]
    if any("request" in block for block in ready):
        return [TcpProbe(address)]
    return []


def _probe(server: ServerHandle, address: Address, block: Mapping[str, Any]) -> Probe:
    at = address.at(block["port"]) if "port" in block else address
    if "tls" in block:
        at = dataclasses.replace(at, scheme="https" if block["tls"] else "http")
    if "http" in block:
        return HttpProbe(at, at.url_for(block["http"]), block.get("status", ()))
    if "tcp" in block:
        return TcpProbe(at)
    if "grpc" in block:
        return GrpcProbe(at)
    if "log" in block:
        return LogProbe(block["log"], server.runtime.log.read_new, server.runtime.status.launch_log_start)
    if "command" in block:
        env = asked(server).configured_command().env
        return CommandProbe(server.fill(block["command"]), env, server.settings.cwd)
    request = block["request"]
    return RequestProbe(at, request["path"], request.get("json"), request.get("status", ()))
