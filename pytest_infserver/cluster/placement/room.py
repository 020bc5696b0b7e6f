"""How many servers the cluster has room for: Ray's books, and what this run has asked for."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.cluster.connection.nodes import Node
from pytest_infserver.cluster.placement.demand import Demand, nodes_in_words
from pytest_infserver.cluster.placement.packing import fits
from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.pool.room import Room

if TYPE_CHECKING:
    from pytest_infserver.cluster.cluster import Cluster
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.devices import DeviceClaim
    from pytest_infserver.launcher.server import InferenceServer

_FRESH = 0.5
"""Seconds for which what Ray has told counts."""
_STALE = 2.0
"""Seconds after which it is nothing to begin something by."""
_FIRST_LIMIT = 20.0
_ASK_LIMIT = 5.0
_PATIENCE = 1.0
"""Seconds that whoever decides waits for an answer: the pool holds its lock meanwhile."""


class ClusterRoom(Room):
    """The cluster's room for servers; those without a demand run elsewhere and take none."""

    def __init__(self, cluster: Cluster, configs: Mapping[str, ServerConfig], max_servers: int | None) -> None:
        """Begin with nothing taken by this run.

        Args:
            cluster: The cluster.
            configs: The servers by name.
            max_servers: How many without GPUs may run at the same time; None if the user did not say.
        """
        self._cluster = cluster
        self._configs = configs
        self._limit = max_servers
        self._handles: dict[str, InferenceServer] = {}
        self._added: dict[str, Demand] = {}
        self._taken: dict[str, float] = {}
        self._nodes: list[Node] = []
        self._asked_at = 0.0
        self._asking: threading.Thread | None = None
        self._not_before = 0.0

    @property
    def _demands(self) -> Mapping[str, Demand]:
        return {**self._configured, **self._added} if self._added else self._configured

    @functools.cached_property
    def _configured(self) -> Mapping[str, Demand]:
        from pytest_infserver.launcher.factory import create_from_config

        servers = {name: create_from_config(config) for name, config in self._configs.items()}
        return {name: self._cluster.demand(server) for name, server in servers.items() if not server.attached}

    def add(self, server: InferenceServer) -> None:
        """Take in a server that was not known at the beginning."""
        if not server.attached:
            self._added[server.name] = self._cluster.demand(server)

    def settle(self, server: InferenceServer) -> None:
        """Have a server run on the cluster."""
        if not server.attached:
            self._handles[server.name] = server
            self._cluster.adopt(server)

    def claim(self, name: str, *, beyond: bool = False, ahead: bool = False) -> bool:
        """Take the room that a server needs; see `decisions.Room`.

        Who asks for one waits for the cluster at its start, in Ray's own queue; ahead of time only what is free now
        is taken.
        """
        if not self._is_known():
            # Its start says why.
            return not ahead
        if name not in self._demands:
            return True
        if self._is_beyond_limit(name, ()) and not beyond:
            return False
        if not self._has_room_for([*(set(self._taken) - {name}), name]) and self._has_room_for([name]):
            # Servers of this run are in the way.
            return False
        if ahead and not self._is_free_now(name):
            return False
        self._taken[name] = time.monotonic()
        return True

    def release(self, name: str) -> None:
        """Give a server's room back."""
        if self._taken.pop(name, None) is not None and name in self._handles:
            self._cluster.placements.give_back(self._handles[name])

    def lend(self, name: str) -> None:
        """Do nothing: no server of a cluster is put to sleep."""

    def fits(self, name: str, without: Iterable[str]) -> bool:
        """Return whether this run would have room for a server if those were gone."""
        gone = set(without)
        if not self._is_known() or name not in self._demands:
            return True
        others = [one for one in self._taken if one not in gone and one != name]
        return not self._is_beyond_limit(name, gone) and self._has_room_for([*others, name])

    def shortage(self, names: Sequence[str]) -> str | None:
        """Return, with the arithmetic, why these servers can never run at the same time; None if they can.

        Raises:
            ConfigError: The cluster cannot be asked.
        """
        if not self._nodes:
            try:
                self._nodes = self._cluster.connection.nodes(_FIRST_LIMIT)
            except ConfigError:
                raise
            except InferenceServerError as error:
                raise ConfigError(f"--infserver-cluster {self._cluster.address}: {error}") from None
        demands = {name: self._demands[name] for name in names if name in self._demands}
        places = sum(not demand.gpus for demand in demands.values())
        if self._limit is not None and places > self._limit:
            return (
                f"needs {places} servers at the same time ({', '.join(names)}), and --infserver-max-servers allows"
                f" {self._limit}"
            )
        if not demands or self._has_room_for(demands):
            return None
        has = f"the cluster has {nodes_in_words(self._alive())}"
        if len(demands) == 1:
            return f"{names[0]} needs {demands[names[0]]}, and {has}"
        return f"needs {'; '.join(f'{name}: {demand}' for name, demand in demands.items())} together, and {has}"

    def holders(self, name: str) -> set[str]:
        """Return the servers of this run that have some of what a server could get."""
        return set(self._taken) - {name}

    def taken(self, name: str) -> str:
        """Say what a server waits for that others have."""
        return f"waits for the cluster (needs {self._demands[name]})"

    # Of one machine only.

    def adopt(self, name: str, keys: Sequence[str]) -> None:
        """Do nothing: no server of the cluster outlives its run."""

    def renew(self, name: str) -> bool:
        """Tell that there is nothing to renew."""
        return True

    def places_left(self) -> int:
        """Return that kept servers of this machine are in nobody's way."""
        return 1 << 20

    def candidates(self, name: str) -> set[str]:
        """Return that none of this machine's GPUs matters."""
        return set()

    def devices(self, name: str) -> DeviceClaim | None:
        """Return None: Ray gives out the GPUs."""
        return None

    # The inside.

    def _is_known(self) -> bool:
        """Return whether it is known what the servers need: of a cluster that cannot be reached nobody has asked it."""
        with contextlib.suppress(InferenceServerError):
            return self._demands is not None
        return False

    def _is_beyond_limit(self, name: str, gone: Iterable[str]) -> bool:
        if self._limit is None or self._demands[name].gpus:
            return False
        others = [one for one in self._taken if one not in gone and one != name and not self._demands[one].gpus]
        return len(others) >= self._limit

    def _has_room_for(self, names: Iterable[str]) -> bool:
        return fits([self._demands[name].bundles for name in names], [node.total for node in self._alive()])

    def _is_free_now(self, name: str) -> bool:
        alive = self._alive()
        if time.monotonic() - self._asked_at > _STALE:
            # Nobody knows.
            return False
        # What this run has taken a moment ago is not in Ray's books yet.
        recent = [one for one, at in self._taken.items() if at > self._asked_at - _FRESH]
        groups = [self._demands[one].bundles for one in [*recent, name]]
        return fits(groups, [node.free for node in alive])

    def _alive(self) -> list[Node]:
        now = time.monotonic()
        if now - self._asked_at > _FRESH and now > self._not_before and self._asking is None:
            self._asking = asking = threading.Thread(target=self._ask, name="infserver-room", daemon=True)
            asking.start()
            asking.join(_PATIENCE)
        return [node for node in self._nodes if node.alive]

    def _ask(self) -> None:
        """Ask Ray; without an answer what was known before still counts: whatever starts says what is wrong."""
        now = time.monotonic()
        try:
            self._nodes = self._cluster.connection.nodes(_ASK_LIMIT)
        except InferenceServerError:
            self._not_before = now + _ASK_LIMIT
        else:
            self._asked_at = now
        finally:
            self._asking = None
