"""The process that is connected to Ray, for one run: ``python -m pytest_infserver.cluster.agent HANDLE OWNER``.

Not pytest itself: Ray 2.60 ends a process without a word when the head node has been away for a minute, and brings
threads, signal handlers and lines of its own. It answers pickled questions on the socket that it inherits, and ends
with it; then Ray ends the actors, and their supervisors the servers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray
from ray import exceptions
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pytest_infserver.cluster.node_server import NodeServer
from pytest_infserver.cluster.parent import watch_parent
from pytest_infserver.cluster.work_folder import work_folder

NAMESPACE = "pytest-infserver"
ANSWERED, FAILED, DEAD, LATE, AWAY, OTHER = "answered", "failed", "dead", "late", "away", "other"
_LEAVE_LIMIT = 10.0
_MAX_REASON = 300
_REACH_LIMIT = 3.0
_LONGEST = 18
"""Bytes that the path of the temporary directory may have: Ray adds some 80 to it for a socket, which may have 103."""
_THREADS = 16
"""How many questions one server answers at the same time."""
_GONE = (
    exceptions.RayActorError,
    exceptions.ActorPlacementGroupRemoved,
    exceptions.ActorUnschedulableError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
    exceptions.TaskPlacementGroupRemoved,
    exceptions.WorkerCrashedError,
)


class Agent:
    """What is asked of it are its methods; tickets are the asker's."""

    def __init__(self) -> None:
        self._groups: dict[str, PlacementGroup] = {}
        self._actors: dict[tuple[str, int], Any] = {}
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
            options.update(local_options(self._folder / "r"))
        ray.init(address=address, **options)
        _stop_listening()

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes: their names, addresses, and what they have in all and free."""
        # What vLLM uses, too; in public there are only the sums.
        from ray._private.state import available_resources_per_node

        free = available_resources_per_node()
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
        return ray.get(getattr(self._actors[ticket, rank], method).remote(*arguments), timeout=timeout)

    def tell(self, ticket: str, rank: int, method: str, arguments: Sequence[Any]) -> None:
        """Call a method of a server's actor and do not wait for it."""
        getattr(self._actors[ticket, rank], method).remote(*arguments)

    def dismiss(self, ticket: str, rank: int) -> None:
        """End an actor."""
        actor = self._actors.pop((ticket, rank), None)
        if actor is not None:
            ray.kill(actor)

    def gpus_in_use(self, ticket: str) -> float:
        """Return how many GPUs of a placement group are in use, by whomever."""
        from ray._private.state import available_resources_per_node

        group = self._groups[ticket]
        name = f"GPU_group_{group.id.hex()}"
        free = sum(resources.get(name, 0.0) for resources in available_resources_per_node().values())
        return float(sum(bundle.get("GPU", 0.0) for bundle in group.bundle_specs) - free)

    def give_back(self, ticket: str) -> None:
        """Remove a placement group, now or as soon as it is there."""
        self._given_back.add(ticket)
        group = self._groups.pop(ticket, None)
        if group is not None:
            remove_placement_group(group)

    def named_actors(self, prefix: str) -> list[tuple[str, str, int]]:
        """Return the name of each actor of ours on the cluster, whoever has made it, its node's id and its process."""
        # Where they are is in the table only, which knows no namespaces.
        from ray._private.state import actors

        found = ray.util.list_named_actors(all_namespaces=True)
        names = [one["name"] for one in found if one["namespace"] == NAMESPACE and one["name"].startswith(prefix)]
        places = {one["Name"]: (one["Address"]["NodeID"], one["Pid"]) for one in actors().values()} if names else {}
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


def _stop_listening() -> None:
    """Have Ray's thread for messages to print end: without a head it would take a whole core (Ray 2.60)."""
    with contextlib.suppress(AttributeError, ImportError):
        from ray._private.worker import global_worker

        global_worker.threads_stopped.set()


def local_options(folder: Path) -> dict[str, Any]:
    """Return how a cluster is started that is for one run only, and that nobody else reaches."""
    # Ray takes 127.0.0.1 for the machine's outer address; other systems than Linux have no further ones.
    address = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
    return {"include_dashboard": False, "_node_ip_address": address, "_temp_dir": str(folder)}


def _answers(node: Mapping[str, Any]) -> bool:
    if not node["Alive"]:
        return False
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _REACH_LIMIT).close()
    except OSError:
        return False
    return True


def answer(agent: Agent, verb: str, arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """Answer a question; nothing is raised."""
    try:
        return ANSWERED, getattr(agent, verb)(**arguments)
    except exceptions.GetTimeoutError:
        return LATE, "no answer in time"
    except (exceptions.ActorUnavailableError, exceptions.ObjectLostError) as error:
        # A long answer may be lost before its node is known to be: the next question gets the reason.
        return AWAY, reason_of(str(error))
    except _GONE as error:
        return DEAD, reason_of(str(error))
    except Exception as error:
        if "WrongClusterID" in str(error):
            return OTHER, "its head node was restarted, and is another cluster now"
        if "failed to import" in str(error):
            return DEAD, reason_of(str(error))
        return FAILED, f"{type(error).__name__}: {error}"


def reason_of(text: str) -> str:
    """Return the part of Ray's message about a dead actor that says why."""
    missing = re.search(r"ModuleNotFoundError: (No module named .*)", text)
    if missing:
        return missing[1].strip()
    found = re.search(r"(?:The actor is dead because|[Tt]he actor died because(?: of)?) (?:it )?(.*)", text)
    creation = re.search(r"^(\w*(?:Error|Exception)\b.*)$", text, re.MULTILINE)
    if "creation task" in text and creation:
        return creation[1]
    words = " ".join((found[1] if found else text.partition("\n")[0]).split())
    # Guesses at what could be the reason, which do not know more than the user.
    words = words.partition(" Some common causes include")[0]
    words = re.sub(r"\.? Worker exit type: \w+ Worker exit detail: ", ": ", words).rstrip(". ")
    return words if len(words) <= _MAX_REASON else f"{words[:_MAX_REASON]} ..."


def serve(connection: Connection[Any, Any], agent: Agent) -> None:
    """Answer until the other side hangs up, each question in a thread of its own."""
    lock = threading.Lock()

    def work(number: int, verb: str, arguments: Mapping[str, Any]) -> None:
        reply = (number, *answer(agent, verb, arguments))
        with lock, contextlib.suppress(OSError):
            try:
                connection.send(reply)
            except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
                connection.send((number, FAILED, f"{verb}: the answer cannot be sent: {error}"))

    with contextlib.suppress(EOFError, OSError):
        while True:
            number, verb, arguments = connection.recv()
            if number is None:
                # Nobody waits for it, and it is to come before what follows.
                answer(agent, verb, arguments)
            elif verb == "connect":
                # A local cluster ends with the thread that has started it.
                work(number, verb, arguments)
            else:
                threading.Thread(target=work, args=(number, verb, arguments), daemon=True).start()


def main() -> None:
    """Serve pytest, and leave the cluster when it is gone."""
    handle, owner = map(int, sys.argv[1:3])
    agent = Agent()

    once = threading.Lock()

    def leave() -> None:
        # Both that its owner is gone and that the connection is closed may be seen; a second one would cut the first
        # one short.
        with once:
            agent.leave()
            os._exit(0)

    # A process that pytest has forked may still hold its end of the connection.
    watch_parent(owner, leave)
    serve(Connection(handle), agent)
    leave()


if __name__ == "__main__":
    main()
