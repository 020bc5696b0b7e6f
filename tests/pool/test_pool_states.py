"""The pool in random runs in which something is raised at any of its steps: nobody waits for ever, nothing is left."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Step
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from pool_fakes import LIMIT, FakeServer, in_thread

from pytest_infserver.errors import InferenceServerError, ServerStartupError
from pytest_infserver.launcher.devices import Demand, Visible
from pytest_infserver.pool.lease import Lease
from pytest_infserver.pool.planning.decisions import Phase
from pytest_infserver.pool.planning.planner import Planner
from pytest_infserver.pool.pool import Pool
from pytest_infserver.pool.room import MachineRoom
from pytest_infserver.pool.servers.policy import Hooks, Policy

NAMES = "abc"
CLIENTS = ("c1", "c2", "c3")
ERRORS: tuple[Callable[[], BaseException], ...] = (
    lambda: RuntimeError("can't start new thread"),
    MemoryError,
    AssertionError,
    KeyboardInterrupt,
    SystemExit,
    lambda: OSError(24, "Too many open files"),
    lambda: InferenceServerError("refused"),
    lambda: pytest.exit.Exception("enough"),
    lambda: pytest.fail.Exception("no"),
)
SERVER = (
    "start",
    "stop",
    "take_over",
    "keep",
    "view",
    "log_size_now",
    "why_died",
    "wait_death",
    "release_port",
    "use_devices",
    "cancel_start",
)
ROOM = ("claim", "release", "fits", "renew", "devices", "places_left", "candidates", "holders", "taken", "adopt")
PLANNER = ("decide", "ask", "give_back", "leave", "adopted", "started", "start_failed", "died", "stopped", "want")
OTHERS = ("thread", "hook started", "hook stopping", "hook stopped", "on_end", "kept_servers", "end", "waiting", "line")
POINTS = (*SERVER, *ROOM, *PLANNER, *OTHERS)


class Faults:
    """Raises at one step of the pool, when that is reached for the n-th time; without threads also from then on.

    Attributes:
        point: The step.
        raised: What was raised so far.
    """

    def __init__(self, point: str) -> None:
        self.point = point
        self.raised: list[BaseException] = []
        self._make: Callable[[], BaseException] | None = None
        self._left = 0

    def arm(self, make: Callable[[], BaseException], left: int) -> None:
        self._make, self._left = make, left

    def reach(self, point: str) -> None:
        make = self._make
        if point != self.point or make is None:
            return
        self._left -= 1
        if self._left < 0:
            # Where no thread can be had there is none the next time. Nothing else fails without end.
            if point != "thread":
                self._make = None
            self.raised.append(make())
            raise self.raised[-1]

    def before(self, cls: type, methods: Sequence[str]) -> type:
        """Return a class whose methods may raise before they do anything."""

        def faulty(name: str) -> Callable[..., Any]:
            def call(this: Any, *arguments: Any, **rest: Any) -> Any:
                self.reach(name)
                return getattr(super(made, this), name)(*arguments, **rest)

            return call

        made = type(cls.__name__, (cls,), {name: faulty(name) for name in methods})
        return made


class Server(FakeServer):
    """One whose start and stop leave it in order whatever goes wrong, as those of a real one do."""

    faults: Faults

    def start(self) -> None:
        try:
            super().start()
            self.faults.reach("start")
        except BaseException:
            self.state = "failed"
            self.over.set()
            raise

    def stop(self) -> None:
        super().stop()
        self.faults.reach("stop")


class Runs(RuleBasedStateMachine):
    """Clients that ask and give back, servers that die, another run that takes room, and one fault or more."""

    def __init__(self, point: str) -> None:
        super().__init__()
        self.faults = Faults(point)

    @initialize(
        places=st.integers(1, 3),
        prelaunch=st.booleans(),
        keep=st.booleans(),
        kept=st.sets(st.sampled_from(NAMES)),
        error=st.sampled_from(ERRORS),
        left=st.integers(0, 3),
    )
    def begin(
        self,
        places: int,
        prelaunch: bool,
        keep: bool,
        kept: set[str],
        error: Callable[[], BaseException],
        left: int,
    ) -> None:
        faults = self.faults
        self.patches = contextlib.ExitStack()
        self.elsewhere = False
        server_class = faults.before(Server, [name for name in SERVER if name not in ("start", "stop")])
        server_class.faults = faults  # type: ignore[attr-defined]
        patch = lambda target, value: self.patches.enter_context(mock.patch(target, value))  # noqa: E731
        start = threading.Thread.start
        patch("pytest_infserver.pool.threads._start", lambda this: (faults.reach("thread"), start(this)))
        patch("pytest_infserver.launcher.factory.create_from_config", server_class)
        patch("pytest_infserver.launcher.keeping.kept.kept_servers", self.kept_servers)
        patch("pytest_infserver.pool.pool.Planner", faults.before(Planner, PLANNER))
        patch("pytest_infserver.pool.pool.notice_death", lambda server: None)
        for name in ("leasing._STEP", "executor._STEP", "executor._LOOK_AGAIN"):
            patch(f"pytest_infserver.pool.servers.{name}", 0.01)
        for name in ("GRACE", "RETRY"):
            patch(f"pytest_infserver.pool.planning.planner.{name}", 0.01)
        demands = {name: Demand(0, "none") for name in NAMES}
        self.room = faults.before(MachineRoom, ROOM)(places, (), demands, Visible("", (), "none"))
        claim = self.room.claim
        self.room.claim = lambda name, **rest: not self.elsewhere and claim(name, **rest)
        hooks = Hooks(*(lambda server, word=word: faults.reach(word) for word in OTHERS[1:4]))
        policy = Policy(prelaunch=prelaunch, keep=100.0 if keep else None)
        self.pool = Pool({name: name for name in NAMES}, self.room, hooks, policy)  # type: ignore[misc]
        self.pool.on_end = lambda server, reason: faults.reach("on_end")
        for name in NAMES:
            self.server(name).kept_already = name in kept
        self.places = places
        self.asking: dict[str, tuple[threading.Thread, list[Any]]] = {}
        self.leases: dict[str, list[int]] = {client: [] for client in CLIENTS}
        self.tests = 0
        faults.arm(error, left)

    def server(self, name: str) -> Any:
        return self.pool.server(name)

    def kept_servers(self) -> list[Any]:
        self.faults.reach("kept_servers")

        def end() -> tuple[bool, str]:
            self.faults.reach("end")
            return True, "stopped in 0.1 s"

        log = Path("/other/old/server.log")
        return [SimpleNamespace(name="old", port=1, log_path=log, device_keys=(), end=end)]

    def call(self, action: Callable[[], Any]) -> Any:
        """Do something that must not take long, and may raise only what was injected."""

        def caught() -> Any:
            try:
                return action()
            except BaseException as error:
                return error

        result = in_thread(caught)()
        if isinstance(result, BaseException):
            assert any(result is error for error in self.faults.raised), repr(result)
            return None
        return result

    # What happens.

    @precondition(lambda self: self.pool._end.cause is None)
    @rule(error=st.sampled_from(ERRORS))
    def it_is_raised_once_more(self, error: Callable[[], BaseException]) -> None:
        self.faults.arm(error, 0)

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
    def plan(self, names: list[str]) -> None:
        self.tests += 1
        self.call(lambda: self.pool.plan({f"{self.tests}-{name}": [name] for name in names}))

    @rule(
        client=st.sampled_from(CLIENTS),
        names=st.sets(st.sampled_from(NAMES), min_size=1, max_size=2),
        alone=st.sampled_from(["", "exclusive", "undisturbed"]),
        test=st.booleans(),
    )
    def ask(self, client: str, names: set[str], alone: str, test: bool) -> None:
        if client in self.asking or len(names) > self.places:
            return
        results: list[Any] = []

        def acquire() -> None:
            try:
                self.pool.join(client)
                leases = self.pool.acquire(
                    client,
                    sorted(names),
                    test=f"{self.tests}-{min(names)}" if test else None,
                    exclusive=alone == "exclusive",
                    undisturbed=alone == "undisturbed",
                    waiting=lambda wait_report: self.faults.reach("waiting"),
                    progress=lambda text: self.faults.reach("line"),
                )
                results.append(leases)
            except BaseException as error:
                results.append(error)

        thread = threading.Thread(target=acquire, daemon=True)
        self.asking[client] = thread, results
        thread.start()
        thread.join(0.01)
        self.collect()

    @rule(client=st.sampled_from(CLIENTS), done=st.booleans())
    def give_back(self, client: str, done: bool) -> None:
        tickets, self.leases[client] = self.leases[client], []
        for ticket in tickets:
            self.call(lambda ticket=ticket: self.pool.release(ticket, f"{self.tests}-a" if done else None))

    @rule(client=st.sampled_from(CLIENTS))
    def leave(self, client: str) -> None:
        self.collect()
        self.call(lambda: self.pool.leave(client))
        self.leases[client] = []
        if client in self.asking:
            thread, _ = self.asking[client]
            thread.join(LIMIT)
            assert not thread.is_alive(), "it still waits, and is gone"
            # A wish that came after the leave is one of the next client.
            self.collect()

    @rule(name=st.sampled_from(NAMES))
    def die(self, name: str) -> None:
        if self.server(name).running:
            self.server(name).die()

    @rule(name=st.sampled_from("bc"))
    def the_next_start_fails(self, name: str) -> None:
        self.server(name).start_error = ServerStartupError("no such model")

    @rule(held=st.booleans())
    def another_run_takes_or_returns(self, held: bool) -> None:
        self.elsewhere = held

    @rule(name=st.sampled_from(NAMES))
    def somebody_looks(self, name: str) -> None:
        self.server(name).on_progress("a line")
        self.call(lambda: self.pool.death(name, 1))
        self.call(lambda: self.pool.view(name, 1))
        self.call(self.pool.wait_report)

    @rule()
    def time_passes(self) -> None:
        time.sleep(0.005)
        self.collect()

    @precondition(lambda self: self.tests > 3)
    @rule()
    def stop_all(self) -> None:
        if not self.asking and not any(self.leases.values()):
            self.call(self.pool.stop_all)

    # What comes of it.

    def collect(self) -> None:
        for client, (thread, results) in list(self.asking.items()):
            if thread.is_alive():
                continue
            del self.asking[client]
            (result,) = results
            if isinstance(result, BaseException):
                assert any(result is error for error in self.faults.raised), repr(result)
                continue
            assert all(isinstance(lease, Lease) for lease in result)
            self.leases[client] += {lease.ticket for lease in result}

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        with self.patches:
            self.elsewhere = False
            deadline = time.monotonic() + LIMIT
            while self.asking or any(self.leases.values()):
                assert time.monotonic() < deadline, f"they wait for ever: {sorted(self.asking)}"
                for client in CLIENTS:
                    if client not in self.asking:
                        self.give_back(client, True)
                time.sleep(0.002)
                self.collect()
            if self.pool._end.cause is None:
                self.no_lease_is_lost()
            self.call(self.pool.close)
            self.nothing_is_left()

    def no_lease_is_lost(self) -> None:
        planner, tickets = self.pool._planner, self.pool._tickets
        for book in (planner._leased, planner._waiting, tickets._asked, tickets._granted, tickets._running):
            assert book == {}

    def nothing_is_left(self) -> None:
        assert [server.name for server in self.pool.servers if server.runtime.launched] == []
        assert self.pool._planner.names(*(phase for phase in Phase if phase is not Phase.DOWN)) == []
        assert not any(thread.is_alive() for thread in self.pool._executor._threads)
        cause = self.pool._end.cause
        assert cause is None or any(cause is error for error in self.faults.raised), repr(cause)
        # It is pytest's own thread that hears of it, once.
        if cause is not None:
            with pytest.raises(type(cause)):
                self.pool.raise_exit()
        self.pool.raise_exit()


@pytest.mark.usefixtures("hard_limit")
@pytest.mark.parametrize("point", POINTS)
def test_whatever_is_raised_nobody_waits_for_ever_and_nothing_is_left(point: str) -> None:
    run_state_machine_as_test(
        lambda: Runs(point),
        settings=settings(
            max_examples=8,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            # To shrink a run that hangs takes too long.
            phases=[Step.generate],
            print_blob=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
