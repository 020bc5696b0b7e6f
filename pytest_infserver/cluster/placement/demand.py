"""What a server asks of the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_infserver.launcher.devices.demand import gpus as gpus_in_words
from pytest_infserver.launcher.devices.demand import parallel_size
from pytest_infserver.launcher.devices.visible import CUDA, HIP
from pytest_infserver.launcher.share import SeveralNodes
from pytest_infserver.launcher.startup.ports import is_loopback
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.cluster.connection.nodes import Node
    from pytest_infserver.launcher.server import InferenceServer

DEFAULT_CPUS = 1.0
_ANY_HOST = ("0.0.0.0", "::")
_LEAST = {"CPU": 0.001}
"""What a server without any needs is placed by: Ray makes no bundle of nothing."""


@dataclass(frozen=True)
class Demand:
    """What a server needs.

    Attributes:
        gpus: GPUs in all.
        cpus: CPUs on each node.
        resources: Amounts of the cluster's own resources on each node.
        nodes: On how many nodes it runs.
        workers: Whether its engine starts its workers there itself, by Ray: then the GPUs are theirs.
    """

    gpus: int
    cpus: float
    resources: Mapping[str, float] = field(default_factory=dict)
    nodes: int = 1
    workers: bool = False

    @property
    def gpus_each(self) -> int:
        """GPUs on each node."""
        return self.gpus // self.nodes

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What it needs of each node, in Ray's names."""
        bundle = {"CPU": self.cpus, "GPU": float(self.gpus_each), **self.resources}
        return [{name: amount for name, amount in bundle.items() if amount} or _LEAST] * self.nodes

    @property
    def parts(self) -> list[list[dict[str, float]]]:
        """The bundles of each node: for workers one with each GPU, the first of them with all else."""
        if not self.workers:
            return [[bundle] for bundle in self.bundles]
        # vLLM 0.32 wants no bundle with more than one.
        return [[{**bundle, "GPU": 1.0}, *[{"GPU": 1.0}] * (self.gpus_each - 1)] for bundle in self.bundles]

    def __str__(self) -> str:
        each = [gpus_in_words(self.gpus_each)] if self.gpus else []
        text = in_words([*each, *amounts({"CPU": self.cpus, **self.resources})])
        return text if self.nodes == 1 else f"{text} on each of {self.nodes} nodes"


def demand_on_cluster(server: InferenceServer, *, has_gpus: bool) -> Demand:
    """Return what a server asks of the cluster.

    Args:
        server: The server.
        has_gpus: Whether the cluster has GPUs; what is only derived from a server's arguments counts only then.

    Raises:
        ConfigError: It asks for what a cluster does not give.
    """
    settings = server.settings
    variable = next((name for name in (CUDA, HIP) if server.env_vars.get(name) is not None), None)
    if variable is not None:
        raise settings.error(
            f"{variable} and --infserver-cluster: the cluster chooses the GPUs; write 'gpus: N' instead",
            "env_vars",
            variable,
        )
    if not is_loopback(settings.host) and settings.host not in _ANY_HOST:
        raise settings.error(
            f"host: {settings.host} and --infserver-cluster: a server listens on the address of the node that Ray"
            " chooses; leave 'host' out",
            "host",
        )
    gpus = settings.gpus
    if gpus is None:
        size = parallel_size(server) if has_gpus else None
        gpus = size[0] if size is not None else int(has_gpus and asked(server).uses_gpus)
    if gpus % settings.nodes:
        raise settings.error(f"gpus: {gpus} cannot be divided among {settings.nodes} nodes", "nodes")
    workers = settings.nodes > 1 and asked(server).several_nodes is SeveralNodes.RAY
    if workers:
        _check_workers(server, gpus)
    cpus = DEFAULT_CPUS if settings.cpus is None else settings.cpus
    return Demand(gpus, cpus, settings.resources, settings.nodes, workers)


def _check_workers(server: InferenceServer, gpus: int) -> None:
    settings = server.settings
    if not gpus:
        raise settings.error(
            f"nodes: {settings.nodes}: {server.backend_name} has a worker for each GPU there, and this server"
            " asks for none: write 'gpus: N'",
            "nodes",
        )
    size, reason = parallel_size(server) or (1, "no parallel size in its arguments")
    if size != gpus:
        raise settings.error(
            f"gpus: {gpus} and {reason}: on several nodes each GPU has one worker, {size} in all",
            "gpus" if settings.gpus is not None else "nodes",
        )


def amounts(resources: Mapping[str, float]) -> list[str]:
    """Return amounts in words, without what Ray adds for itself."""
    words = []
    for name, amount in resources.items():
        number = f"{amount:g}"
        if name in ("CPU", "GPU"):
            words.append(f"{number} {name}" if amount == 1 else f"{number} {name}s")
        elif amount and not name.startswith(("node:", "bundle_group", "object_store", "memory", "accelerator_type")):
            words.append(f"{number} {name}")
    return words


def in_words(words: Sequence[str]) -> str:
    """Return a list as a part of a sentence."""
    if len(words) < 2:
        return "".join(words) or "nothing"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def nodes_in_words(nodes: Iterable[Node], *, free: bool = False) -> str:
    """Return what nodes have, or have free; by their addresses, too, if some are called the same."""
    nodes = list(nodes)
    unique = len({node.name for node in nodes}) == len(nodes)
    parts = [
        f"{node.name if unique else node}: {in_words(amounts(_sorted(node.free if free else node.total)))}"
        for node in nodes
    ]
    return "; ".join(parts) or "no node"


def _sorted(resources: Mapping[str, float]) -> dict[str, float]:
    order = ["GPU", "CPU"]
    shown = {name: resources[name] for name in order if name in resources}
    others = {name: amount for name, amount in sorted(resources.items()) if name not in order and "_group_" not in name}
    return {**shown, **others}
