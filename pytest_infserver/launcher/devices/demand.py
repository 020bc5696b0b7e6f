"""How many devices a server needs, and why it can never get them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_infserver.launcher.devices.visible import (
    CUDA,
    HIP,
    ZE,
    Device,
    Visible,
    entries,
    masked,
    masked_devices,
    visible_devices,
)
from pytest_infserver.launcher.engine.arguments import option_values
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.launcher.spec import ServerSpec


@dataclass(frozen=True)
class Demand:
    """What a server needs.

    Attributes:
        count: How many devices; 0 if it needs none, or nothing is known of its needs.
        reason: Why, in words such as "gpus: 2".
        fixed: Labels in the server's own CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES or ZE_AFFINITY_MASK; it gets
            ``count`` of these, the first that are free, and no others.
        variable: The variable that names ``fixed``, or "".
        hides: Whether the server must see no device.
    """

    count: int
    reason: str
    fixed: tuple[str, ...] = ()
    variable: str = ""
    hides: bool = False

    def __str__(self) -> str:
        return f"{gpus(self.count)} ({self.reason})"

    def candidates(self, visible: Visible) -> tuple[Device, ...]:
        """Return the devices of which the server may get ``count``."""
        if self.variable == ZE:
            return masked_devices(self.fixed)
        # What the user names need not be in the caller's list: it stays as it is configured.
        return visible.machine.devices(self.fixed) if self.variable else visible.devices


def demand_of(server: ServerSpec, visible: Visible | None = None) -> Demand:
    """Return what a server needs.

    Its ``gpus:`` counts first, then the ids in its own environment variable, then the parallel sizes in its
    arguments, then, if its engine uses GPUs, all that there are. With both ``gpus:`` and ids it gets that many of
    these ids. What is only derived counts only where there are GPUs: engines run on CPUs too.

    Args:
        server: The server.
        visible: The devices of this run; read from the environment and the driver, where they matter, if None.
    """
    if server.attached:
        return Demand(0, "it is not started here")
    variable = next((name for name in (CUDA, HIP) if server.env_vars.get(name) is not None), "")
    # Empty it is no mask at all.
    variable = variable or (ZE if server.env_vars.get(ZE) else "")
    listed = f"{variable}={server.env_vars[variable]} in env_vars" if variable else ""
    read = masked if variable == ZE else entries
    fixed = read(server.env_vars[variable] or "") if variable else ()
    wanted = server.settings.gpus
    if wanted is not None:
        reason = f"gpus: {wanted}, {listed}" if listed else f"gpus: {wanted}"
        return Demand(wanted, reason, fixed, variable, hides=wanted == 0)
    if variable:
        return Demand(len(dict.fromkeys(fixed)), listed, fixed, variable)
    if not asked(server).parallel_sizes and not asked(server).uses_gpus:
        return Demand(0, f"a {server.backend_name} server without 'gpus'")
    return _derived(server, visible or visible_devices(os.environ))


def parallel_size(server: ServerSpec) -> tuple[int, str] | None:
    """Return how many GPUs the arguments of a server say that it needs, and why; None if they do not say it."""
    argv = [_dashed(word) for word in server.server_args()]
    if _last(argv, ["--device"]) == "cpu":
        return 0, "--device cpu"
    sizes = {}
    for flags in asked(server).parallel_sizes:
        size = _last(argv, flags)
        inner = asked(server).inner_sizes.get(flags[0])
        local = _local_size(server, argv, flags[0], size)
        if size is not None and size.isdecimal() and int(size) and (inner is None or inner not in argv):
            sizes[flags[0].removeprefix("--")] = int(size) if local is None else local
    if not sizes:
        return None
    total, reason = math.prod(sizes.values()), " x ".join(f"{name} {size}" for name, size in sizes.items())
    nodes = _last(argv, asked(server).node_counts) or "1"
    if nodes.isdecimal() and int(nodes) > 1:
        return math.ceil(total / int(nodes)), f"{reason} on {nodes} nodes"
    return total, reason


def _local_size(server: ServerSpec, argv: Sequence[str], name: str, size: str | None) -> int | None:
    """Return how much of a size is the server's own, where it is one of several that make it up together."""
    local = _last(argv, asked(server).local_sizes.get(name, ()))
    if local is not None and local.isdecimal():
        # 0 is said on a head that runs no engine itself, and uses none.
        return int(local)
    is_rank = size is not None and _last(argv, asked(server).rank_options.get(name, ())) is not None
    return 1 if is_rank else None


def _derived(server: ServerSpec, visible: Visible) -> Demand:
    backend = server.backend_name
    if not visible.devices:
        return Demand(0, f"a {backend} server where there is no GPU")
    size = parallel_size(server)
    if size is not None:
        return Demand(*size)
    if asked(server).uses_gpus:
        return Demand(len(visible.devices), f"a {backend} server without a size takes all {len(visible.devices)}")
    return Demand(0, f"a {backend} server without 'gpus'")


def _dashed(word: str) -> str:
    """Return an argument with its option spelt with dashes: vLLM takes underscores too."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else word


def _last(argv: Sequence[str], flags: Sequence[str]) -> str | None:
    # argparse: the last one counts.
    values = option_values(argv, *flags)
    return values[-1][0] if values and values[-1] else None


def shortage(visible: Visible, demand: Demand) -> str | None:
    """Say why this run can never give a server what it needs; None if it can."""
    candidates = demand.candidates(visible)
    if demand.count <= len(candidates):
        return None
    if demand.variable:
        known = demand.fixed if demand.variable != ZE else ()
        missing = next((label for label in known if visible.machine.key(label) is None), None)
        if missing is not None:
            return f"needs GPU {missing} ({demand.reason}), which this machine does not have ({visible.source})"
        if len(candidates) < len(dict.fromkeys(demand.fixed)):
            return f"needs {demand}, and some of them are the same device ({visible.source})"
        return f"needs {demand}, and its {demand.variable} names {len(candidates) or 'none'}"
    return f"needs {demand}, and this run has {visible}"


def shortage_together(visible: Visible, demands: Mapping[str, Demand]) -> str | None:
    """Say why this run can never give several servers at once what they need; None if it can.

    Args:
        visible: The devices of this run.
        demands: Name of each server to what it needs.
    """
    for name, demand in demands.items():
        alone = shortage(visible, demand)
        if alone is not None:
            return f"{name} {alone}"
    units = [
        [device.key for device in demand.candidates(visible)]
        for demand in demands.values()
        for _ in range(demand.count)
    ]
    if _can_serve(units):
        return None
    needs = "; ".join(f"{name}: {demand}" for name, demand in demands.items() if demand.count)
    return f"need {gpus(len(units))} together ({needs}), and this run has {visible}"


def _can_serve(units: Sequence[Sequence[str]]) -> bool:
    """Return whether each unit can have a device of its own among those that it may have (bipartite matching)."""
    owner: dict[str, int] = {}

    def place(unit: int, tried: set[str]) -> bool:
        for key in units[unit]:
            if key not in tried:
                tried.add(key)
                if key not in owner or place(owner[key], tried):
                    owner[key] = unit
                    return True
        return False

    return all(place(unit, set()) for unit in range(len(units)))


def gpus(count: int) -> str:
    """Return a number of GPUs in words."""
    return f"{count} GPU" if count == 1 else f"{count} GPUs"
