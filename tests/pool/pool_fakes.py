"""What the tests of the pool share: room that is only numbers, and servers that are only objects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_infserver.errors import ServerStartupError
from pytest_infserver.launcher.devices import Demand, Visible
from pytest_infserver.launcher.runtime.view import View
from pytest_infserver.launcher.supervision.supervised_process import Exit
from pytest_infserver.pool.room import MachineRoom

LIMIT = 20.0
"""Seconds after which a wait in a test has failed."""
OUTSIDE = "another run"


class Room:
    """Places and devices, of which another run may take some."""

    def __init__(self, places: int, devices: int, demands: dict[str, int]) -> None:
        self.places = places
        self.demands = demands
        self.placed: set[str] = set()
        self.holders: list[str | None] = [None] * devices
        self.lent: dict[str, list[int]] = {}
        self.beyond: list[str] = []

    def free(self) -> list[int]:
        return [index for index, holder in enumerate(self.holders) if holder is None]

    def can_claim(self, name: str) -> bool:
        if name in self.lent:
            return all(self.holders[index] is None for index in self.lent[name])
        demand = self.demands[name]
        return demand <= len(self.free()) if demand else len(self.placed) < self.places

    def claim(self, name: str, *, beyond: bool = False, ahead: bool = False) -> bool:
        assert name not in self.placed
        assert name not in self.holders
        if not self.can_claim(name) and not (beyond and not self.demands[name]):
            return False
        if name in self.lent:
            for index in self.lent.pop(name):
                self.holders[index] = name
        elif self.demands[name]:
            for index in self.free()[: self.demands[name]]:
                self.holders[index] = name
        else:
            if len(self.placed) >= self.places:
                self.beyond.append(name)
            self.placed.add(name)
        return True

    def lend(self, name: str) -> None:
        assert name in self.holders
        self.lent[name] = [index for index, holder in enumerate(self.holders) if holder == name]
        self.holders = [None if holder == name else holder for holder in self.holders]

    def release(self, name: str) -> None:
        assert name in self.placed or name in self.holders or name in self.lent
        self.lent.pop(name, None)
        self.placed.discard(name)
        self.holders = [None if holder == name else holder for holder in self.holders]

    def fits(self, name: str, without: Iterable[str]) -> bool:
        gone = set(without)
        if not self.demands[name]:
            return len(self.placed - gone) < self.places
        if name in self.lent:
            return all(self.holders[index] in gone | {None, OUTSIDE} for index in self.lent[name])
        # What others hold counts as free: only this run's own servers are known.
        return self.demands[name] <= sum(holder in gone | {None, OUTSIDE} for holder in self.holders)

    def together(self, names: Iterable[str]) -> bool:
        demands = [self.demands[name] for name in names]
        return demands.count(0) <= self.places and sum(demands) <= len(self.holders)


class FakeServer:
    """As much of a server as the pool looks at; it is its own runtime and status."""

    def __init__(self, name: str) -> None:
        self.runtime = self.status = self
        self.name = name
        self.attached = False
        self.awake = True
        self.log_path = Path(f"/logs/{name}/server.log")
        self.output_dir = Path("/logs")
        self.settings = SimpleNamespace(port=None, reset=())
        self.state = "new"
        self.backend_name, self.model, self.phase, self.first_phase = "fake", "", "starting", "starting"
        self.start_seconds: float | None = 0.5
        self.launches = 0
        self.log_size = 100
        self.secrets: frozenset[str] = frozenset()
        self.launch_log_start = 40
        self.stop_refusal: str | None = None
        self.device_keys: tuple[str, ...] = ()
        self.holds_port = False
        self.runs_elsewhere = False
        self.was_killed = False
        self.start_error: BaseException | None = None
        self.stop_error: BaseException | None = None
        self.kept_already = False
        self.taken_over = False
        self.can_be_kept = True
        self.kept_for: float | None = None
        self.why_not_kept: str | None = None
        self.profiler: None = None
        self.gate = threading.Event()
        """Open unless a test closes it: a start does not get past it."""
        self.gate.set()
        self.cancelled = False
        self.over = threading.Event()

    @property
    def running(self) -> bool:
        return self.state == "ready"

    @property
    def starting_seconds(self) -> float | None:
        return 0.1 if self.state == "starting" else None

    @property
    def launched(self) -> bool:
        return self.state in ("ready", "died", "starting")

    def last_exit(self) -> tuple[Exit | None, str | None]:
        return (Exit(1, 0) if self.state == "died" else None), None

    def release_port(self) -> None:
        assert not self.launched

    def start(self) -> None:
        self.cancelled = False
        self.state = "starting"
        self.launches += 1
        self.over.clear()
        assert self.gate.wait(LIMIT)
        if self.cancelled or self.start_error is not None:
            self.state = "failed"
            raise self.start_error or ServerStartupError("cancelled")
        self.state = "ready"

    def cancel_start(self) -> None:
        if self.state == "starting":
            self.cancelled = True
            self.gate.set()

    def stop(self) -> None:
        assert self.stop_refusal is None, self.stop_refusal
        self.state = "stopped"
        self.over.set()
        if self.stop_error is not None:
            raise self.stop_error

    def die(self) -> None:
        self.state = "died"
        self.over.set()

    def why_died(self) -> str | None:
        return f"{self.name} died" if self.state == "died" else None

    def wait_death(self, timeout: float) -> bool:
        self.over.wait(min(timeout, LIMIT))
        return self.state == "died"

    def use_devices(self, claim: object) -> None:
        assert claim is None

    def take_over(self) -> bool:
        if self.kept_already:
            self.state = "ready"
        return self.kept_already

    def keep(self, seconds: float) -> bool:
        assert self.stop_refusal is None
        if self.can_be_kept:
            self.kept_for = seconds
            self.state = "stopped"
            self.over.set()
        return self.can_be_kept

    def view(self) -> View:
        return View(8000, 123, 122, self.running, self.launches, self.log_path, self.launch_log_start, 0.5)

    def look(self) -> View:
        return self.view()

    def log_size_now(self) -> int:
        return self.log_size

    def __str__(self) -> str:
        return self.name


def places(count: int | None, names: Iterable[str]) -> MachineRoom:
    """Return room for so many servers without GPUs."""
    return MachineRoom(count, (), {name: Demand(0, "none") for name in names}, Visible("", (), "none"))


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def in_thread(action: Callable[[], Any]) -> Callable[[], Any]:
    """Begin something that waits; return what gives its result when it has come to an end."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(LIMIT)
        assert results, "it still waits"
        return results[0]

    return result
