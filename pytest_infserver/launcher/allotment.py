"""What a launch of a server has been given by whoever plans it: plain data, which goes from one process to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.config.model import ProfileConfig
    from pytest_infserver.launcher.devices.visible import Device
    from pytest_infserver.launcher.profiling.profiler import Place


@dataclass(frozen=True)
class Allotment:
    """What a backend may look at when it is asked for its command.

    Attributes:
        port: The server's port, or None for one that is not chosen yet.
        devices: Its GPUs.
        device_variables: What its environment says of them.
        profile: Its profiler's settings.
        place: The folders of that profiler.
        peers: Where the servers are that it needs, as placeholders.
        ports: The further ports of the server by name, as far as they are chosen.
    """

    port: int | None = None
    devices: tuple[Device, ...] = ()
    device_variables: Mapping[str, str | None] = field(default_factory=dict)
    profile: ProfileConfig | None = None
    place: Place | None = None
    peers: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
