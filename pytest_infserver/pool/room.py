"""How many servers may run at the same time: GPUs for those that need them, places for the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from pytest_infserver.launcher.startup.turns import Turns
from pytest_infserver.pool.planning import decisions
from pytest_infserver.system import machine

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.devices import Demand, DeviceClaim, Visible
    from pytest_infserver.launcher.server import InferenceServer

CORES_PER_SERVER = 2
MEMORY_PER_SERVER = 8 << 30
"""Bytes of memory that one server without a GPU is expected to take."""


def default_max_servers() -> int:
    """Return how many servers without GPUs run at the same time unless the user says so, at least 2."""
    return max(2, min(int(machine.cores()) // CORES_PER_SERVER, machine.memory() // MEMORY_PER_SERVER))


def machine_room(configs: Mapping[str, ServerConfig], max_servers: int | None) -> MachineRoom:
    """Return the machine's room for these servers.

    Args:
        configs: The servers by name.
        max_servers: How many without GPUs may run at the same time; None if the user did not say.
    """
    from pytest_infserver.launcher.devices import demand_of, visible_devices
    from pytest_infserver.launcher.factory import create_from_config

    servers = {name: create_from_config(config) for name, config in configs.items()}
    attached = [name for name, server in servers.items() if server.attached]
    visible = visible_devices(os.environ)
    demands = {name: demand_of(server, visible) for name, server in servers.items() if not server.attached}
    ports = {name: server.settings.port for name, server in servers.items() if not server.attached}
    return MachineRoom(max_servers, attached, demands, visible, ports)


class Room(decisions.Room, Protocol):
    """What the pool asks of a room beyond what the planner does."""

    def add(self, server: InferenceServer) -> None:
        """Take in a server that was not known at the beginning.

        Args:
            server: The server; nothing of it runs.
        """

    def settle(self, server: InferenceServer) -> None:
        """Prepare the handle of a server for where it is going to run."""

    def adopt(self, name: str, keys: Sequence[str]) -> None:
        """Note the room of a server that was running already.

        Args:
            name: The server.
            keys: The keys of its GPUs.
        """

    def renew(self, name: str) -> bool:
        """Take the room of a server that was taken over and has ended once more; return whether that went well."""

    def places_left(self) -> int:
        """Return how many servers without GPUs may run on this machine beside those of this run."""

    def candidates(self, name: str) -> set[str]:
        """Return the keys of the GPUs of this machine of which a server may get some."""

    def holders(self, name: str) -> set[str]:
        """Return the servers of this run that have some of what a server could get."""

    def taken(self, name: str) -> str:
        """Return in words what a server waits for that others than this run have."""

    def shortage(self, names: Sequence[str]) -> str | None:
        """Return, with the arithmetic, why these servers can never run at the same time; None if they can."""

    def devices(self, name: str) -> DeviceClaim | None:
        """Return the GPUs of this machine that a server has got, or None."""


class MachineRoom(Room):
    """The machine's room for servers, of which this run's servers take their shares."""

    def __init__(
        self,
        max_servers: int | None,
        attached: Iterable[str],
        demands: Mapping[str, Demand],
        visible: Visible,
        ports: Mapping[str, int | None] | None = None,
    ) -> None:
        """Begin with all of it free.

        Args:
            max_servers: How many servers without GPUs may run at the same time; None for what the machine allows.
            attached: Servers that run elsewhere and take no room.
            demands: What the others need.
            visible: The GPUs that this run may use.
            ports: The port of each server that has one of its own: servers with the same one take turns.
        """
        self._ports = dict(ports or {})
        self._turns = Turns()
        self._missed: set[int] = set()
        self._limit = max_servers
        self.max_servers = max_servers or default_max_servers()
        self.visible = visible
        self._attached = frozenset(attached)
        self._demands = demands
        self._places: set[str] = set()
        self._claims: dict[str, DeviceClaim] = {}
        self._adopted: set[str] = set()
        self._asleep: set[str] = set()

    def add(self, server: InferenceServer) -> None:
        """Take in a server that was not known at the beginning."""
        from pytest_infserver.launcher.devices import demand_of

        if server.attached:
            self._attached |= {server.name}
        else:
            self._demands = {**self._demands, server.name: demand_of(server, self.visible)}
            self._ports[server.name] = server.settings.port

    def settle(self, server: InferenceServer) -> None:
        """Do nothing: it runs on this machine."""

    def claim(self, name: str, *, beyond: bool = False, ahead: bool = False) -> bool:
        """Take the room that a server needs; see `decisions.Room`."""
        if name in self._attached:
            return True
        if name in self._asleep:
            return self._take_back(name)
        port = self._ports.get(name)
        if self._with_its_port(name) or (port is not None and not self._has_turn(port, ahead)):
            return False
        has_room = self._claim_devices(name) if self._needs_devices(name) else self._claim_place(name, beyond)
        if not has_room:
            self._end_turns()
        return has_room

    def _has_turn(self, port: int, ahead: bool) -> bool:
        if ahead and self._missed - {port}:
            # Another run has one that this run wants. It may want this one as well, and both would wait for ever.
            return False
        has_it = self._turns.take(port)
        self._missed = self._missed - {port} if has_it else self._missed | {port}
        return has_it

    def _claim_place(self, name: str, beyond: bool) -> bool:
        if len(self._places) >= self.max_servers and not beyond:
            return False
        self._places.add(name)
        return True

    def _end_turns(self) -> None:
        ports = (self._ports.get(name) for name in self._places | set(self._claims))
        self._turns.keep_only(port for port in ports if port is not None)

    def adopt(self, name: str, keys: Sequence[str]) -> None:
        """Note the room of a server that was running already; its supervisor holds the locks on its GPUs."""
        port = self._ports.get(name)
        if port is not None:
            # Other runs wait for its end.
            self._turns.take(port)
        if not keys:
            self._places.add(name)
            return
        from pytest_infserver.launcher.devices import DeviceClaim

        found = DeviceClaim()
        found.devices = tuple(one for one in self._demands[name].candidates(self.visible) if one.key in keys)
        self._claims[name] = found
        self._adopted.add(name)

    def lend(self, name: str) -> None:
        """Let others have the GPUs of a server that sleeps, until it claims them again."""
        self._asleep.add(name)
        self._claims[name].is_lent = True

    def _take_back(self, name: str) -> bool:
        if not self._keys(name).isdisjoint(self._used_keys(())):
            return False
        self._asleep.discard(name)
        self._claims[name].is_lent = False
        return True

    def _keys(self, name: str) -> set[str]:
        return {device.key for device in self._claims[name].devices}

    def _used_keys(self, without: Iterable[str]) -> set[str]:
        """Return the keys of the GPUs that servers of this run use now which are not asleep."""
        awake = set(self._claims) - self._asleep - set(without)
        return {key for one in awake for key in self._keys(one)}

    def renew(self, name: str) -> bool:
        """Take the locks on the GPUs of a server that was taken over and has ended; return whether that went well."""
        if name not in self._adopted:
            return True
        self.release(name)
        return self.claim(name)

    def places_left(self) -> int:
        """Return how many servers without GPUs may run beside those of this run."""
        return self.max_servers - len(self._places)

    def candidates(self, name: str) -> set[str]:
        """Return the keys of the GPUs of which a server may get some."""
        if name in self._asleep:
            return self._keys(name)
        if not self._needs_devices(name):
            return set()
        return {device.key for device in self._demands[name].candidates(self.visible)}

    def holders(self, name: str) -> set[str]:
        """Return the servers of this run that have some of what a server could get."""
        found = self._with_its_port(name)
        if not self._needs_devices(name):
            return found | self._places
        keys = self.candidates(name)
        return found | {one for one in set(self._claims) - self._asleep if not keys.isdisjoint(self._keys(one))}

    def _with_its_port(self, name: str) -> set[str]:
        """Return the servers of this run that have the port which a server must have."""
        port = self._ports.get(name)
        others = (self._places | set(self._claims)) - {name}
        return set() if port is None else {other for other in others if self._ports.get(other) == port}

    def taken(self, name: str) -> str:
        """Return in words what a server waits for that other processes have."""
        count = 0 if name in self._attached else self._demands[name].count
        port = self._ports.get(name)
        if port is not None and not self._turns.take(port):
            return f"waits for port {port}, which another run on this machine uses"
        self._end_turns()
        if count < 2:
            return "waits for a GPU that another process holds"
        return f"waits for {count} GPUs that other processes hold"

    def release(self, name: str) -> None:
        """Give a server's room back."""
        self._adopted.discard(name)
        self._places.discard(name)
        self._asleep.discard(name)
        claim = self._claims.pop(name, None)
        if claim is not None:
            claim.release()
        self._end_turns()

    def fits(self, name: str, without: Iterable[str]) -> bool:
        """Return whether this run would have room for a server if those were gone."""
        gone = set(without)
        if name in self._attached:
            return True
        if self._with_its_port(name) - gone:
            return False
        if not self._needs_devices(name):
            return len(self._places - gone) < self.max_servers
        taken = self._used_keys(gone)
        if name in self._asleep:
            return self._keys(name).isdisjoint(taken)
        demand = self._demands[name]
        return demand.count <= sum(device.key not in taken for device in demand.candidates(self.visible))

    def shortage(self, names: Sequence[str]) -> str | None:
        """Return, with the arithmetic, why these servers can never run at the same time; None if they can."""
        ports = [port for name in names if (port := self._ports.get(name)) is not None]
        twice = next((port for port in ports if ports.count(port) > 1), None)
        if twice is not None:
            both = " and ".join(name for name in names if self._ports.get(name) == twice)
            return f"needs {both} at the same time, and both have the port {twice}: leave out 'port' of one of them"
        demands = {name: self._demands[name] for name in names if name not in self._attached}
        places = sum(demand.count == 0 for demand in demands.values())
        if self._limit is None:
            # The default is an estimate: it gives way to what a test asks for.
            self.max_servers = max(self.max_servers, places)
        if places > self.max_servers:
            return (
                f"needs {places} servers at the same time ({', '.join(names)}), and --infserver-max-servers allows"
                f" {self.max_servers}"
            )
        if places == len(demands):
            return None
        from pytest_infserver.launcher.devices import shortage_together

        return shortage_together(self.visible, demands)

    def devices(self, name: str) -> DeviceClaim | None:
        """Return the GPUs that a server has got, or None if it needs none."""
        return self._claims.get(name)

    def _needs_devices(self, name: str) -> bool:
        return self._demands[name].count > 0

    def _claim_devices(self, name: str) -> bool:
        from pytest_infserver.launcher.devices import claim

        demand = self._demands[name]
        # Where there are no locks nobody else knows of those. Who names a GPU may share it then.
        adopted = [device.key for one in self._adopted for device in self._claims[one].devices]
        used = self._used_keys(())
        locks = [(key, lock) for one in self._asleep for key, lock in self._claims[one].locks.items()]
        lent = {key: lock for key, lock in locks if key not in used}
        found = claim(self.visible, demand, frozenset(() if demand.variable else adopted), lent)
        if found is None:
            return False
        self._claims[name] = found
        return True
