"""What may be asked of the process that is connected to Ray."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import exceptions
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pytest_infserver.cluster import compat
from pytest_infserver.cluster.node.node_server import NodeServer
from pytest_infserver.cluster.work_folder import work_folder

NAMESPACE = "pytest-infserver"
_LEAVE_LIMIT = 10.0
_REACH_LIMIT = 3.0
_LONGEST = 18
"""Bytes that the path of the temporary directory may have: Ray adds some 80 to it for a socket, which may have 103."""
_THREADS = 16
"""How many questions one server answers at the same time."""


class Agent:
    """What is asked of it are its methods; tickets are the asker's."""

    def __init__(self) -> None:
        self._groups: dict[str, PlacementGroup] = {}
        self._actors: dict[tuple[str, int], Any] = {}
        self._secrets: dict[tuple[str, int], str] = {}
        self._given_back: set[str] = set()
        self._folder: Path | None = None

    def connect(self, address: str) -> None:
        """Connect to a cluster."""
        options: dict[str, Any] = {
            "namespace": NAMESPACE,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": False,
        }
        if address == "local":
            self._folder = work_folder("infserver-ray-", _LONGEST)
            # Not the folder itself: Ray lets everybody into the one that it is given.
            options.update(compat.local_options(self._folder / "r"))
        ray.init(address=address, **options)
        compat.stop_listening()

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes: their names, addresses, and what they have in all and free."""
        free = compat.free_per_node()
        return [
            {
                "id": node["NodeID"],
                "name": node.get("NodeName") or node["NodeManagerHostname"],
                "host": node["NodeManagerHostname"],
                "address": node["NodeManagerAddress"],
                "port": node["NodeManagerPort"],
                "alive": node["Alive"],
                "total": dict(node["Resources"]),
                "free": dict(free.get(node["NodeID"], {})),
            }
            for node in ray.nodes()
        ]

    def unreachable(self, ids: Sequence[str]) -> list[str]:
        """Return which of these nodes are gone; Ray itself may need 15 s to know that of one that was killed."""
        nodes = {node["NodeID"]: node for node in ray.nodes()}
        return [one for one in ids if one not in nodes or not _answers(nodes[one])]

    def reserve(self, ticket: str, bundles: Sequence[Mapping[str, float]], strategy: str) -> None:
        """Ask for a placement group."""
        self._given_back.discard(ticket)
        self._groups[ticket] = placement_group([dict(bundle) for bundle in bundles], strategy=strategy, name=ticket)
        if ticket in self._given_back:
            # The head took so long that nobody waits for it any more.
            self.give_back(ticket)

    def reserved(self, ticket: str, timeout: float) -> list[str] | None:
        """Return on which node each bundle is, or None if there is no room for it so far."""
        group = self._groups.get(ticket)
        if group is None:
            # It is being asked for by a head that takes long.
            time.sleep(timeout)
            return None
        if not group.wait(timeout):
            return None
        places = placement_group_table(group)["bundles_to_node_id"]
        # One whose node was lost a moment ago is nowhere until Ray has moved it.
        return [places[index] for index in range(len(places))] if all(places.values()) else None

    def create(
        self,
        ticket: str,
        rank: int,
        order: bytes,
        cpus: float,
        gpus: float,
        resources: Mapping[str, float],
        name: str,
        variables: Mapping[str, str],
    ) -> None:
        """Create the actor of a server in one of the bundles."""
        strategy = PlacementGroupSchedulingStrategy(self._groups[ticket], placement_group_bundle_index=rank)
        self._secrets[ticket, rank] = json.loads(order)["secret"]
        more = {"runtime_env": {"env_vars": dict(variables)}} if variables else {}
        self._actors[ticket, rank] = (
            ray.remote(NodeServer)
            .options(
                name=name,
                num_cpus=cpus,
                num_gpus=gpus,
                resources=dict(resources),
                max_concurrency=_THREADS,
                scheduling_strategy=strategy,
                **more,
            )
            .remote(order)
        )

    def call(self, ticket: str, rank: int, method: str, arguments: Sequence[Any], timeout: float) -> Any:
        """Call a method of a server's actor."""
        return ray.get(self._asked(ticket, rank, method, arguments), timeout=timeout)

    def tell(self, ticket: str, rank: int, method: str, arguments: Sequence[Any]) -> None:
        """Call a method of a server's actor and do not wait for it."""
        self._asked(ticket, rank, method, arguments)

    def _asked(self, ticket: str, rank: int, method: str, arguments: Sequence[Any]) -> Any:
        return self._actors[ticket, rank].ask.remote(self._secrets[ticket, rank], method, *arguments)

    def dismiss(self, ticket: str, rank: int) -> None:
        """End an actor."""
        actor = self._actors.pop((ticket, rank), None)
        if actor is not None:
            ray.kill(actor)

    def gpus_in_use(self, ticket: str) -> float:
        """Return how many GPUs of a placement group are in use, by whomever."""
        group = self._groups[ticket]
        name = f"GPU_group_{group.id.hex()}"
        free = sum(resources.get(name, 0.0) for resources in compat.free_per_node().values())
        return float(sum(bundle.get("GPU", 0.0) for bundle in group.bundle_specs) - free)

    def give_back(self, ticket: str) -> None:
        """Remove a placement group, now or as soon as it is there."""
        self._given_back.add(ticket)
        group = self._groups.pop(ticket, None)
        if group is not None:
            remove_placement_group(group)

    def named_actors(self, prefix: str) -> list[tuple[str, str, int]]:
        """Return the name of each actor of ours on the cluster, whoever has made it, its node's id and its process."""
        found = ray.util.list_named_actors(all_namespaces=True)
        names = [one["name"] for one in found if one["namespace"] == NAMESPACE and one["name"].startswith(prefix)]
        places = compat.places_of_actors() if names else {}
        return [(name, *places.get(name, ("", 0))) for name in names]

    def call_named(self, name: str, method: str, arguments: Sequence[Any], timeout: float) -> Any:
        """Call a method of an actor, whoever has made it."""
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            raise exceptions.RayActorError(error_msg="it has ended") from None
        return ray.get(getattr(actor, method).remote(*arguments), timeout=timeout)

    def kill_named(self, name: str) -> None:
        """End an actor, whoever has made it."""
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))

    def leave(self) -> None:
        """Leave the cluster; one that was started by this process ends."""
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(_LEAVE_LIMIT)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _answers(node: Mapping[str, Any]) -> bool:
    if not node["Alive"]:
        return False
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _REACH_LIMIT).close()
    except OSError:
        return False
    return True
