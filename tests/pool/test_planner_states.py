"""The planner in random runs: any order of events, any amount of room."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pool_fakes import OUTSIDE, Room

from pytest_infserver.pool.planning.decisions import Grant, Phase, Request, Sleep, Start, Stop
from pytest_infserver.pool.planning.planner import GRACE, Planner

CLIENTS = ("c1", "c2", "c3")


class Runs(RuleBasedStateMachine):
    """One run of pytest after the other, against a simple model of what is so."""

    @initialize(
        places=st.integers(1, 2),
        devices=st.integers(0, 3),
        demands=st.lists(st.integers(0, 2), min_size=2, max_size=4),
        prelaunch=st.booleans(),
        linger=st.booleans(),
        sleepers=st.sets(st.sampled_from("abcd")),
    )
    def begin(
        self, places: int, devices: int, demands: list[int], prelaunch: bool, linger: bool, sleepers: set[str]
    ) -> None:
        self.names = "abcd"[: len(demands)]
        self.room = Room(places, devices, {name: min(n, devices) for name, n in zip(self.names, demands, strict=True)})
        self.planner = Planner(
            self.room,
            prelaunch=prelaunch,
            linger=linger,
            may_sleep=lambda name, room_for: name in sleepers and self.room.demands[name] > 0,
        )
        self.prelaunch, self.linger = prelaunch, linger
        self.now = 0.0
        self.tickets = 0
        self.wanted: Counter[str] = Counter()
        self.pinned: set[str] = set()
        self.expected: set[str] = set()
        self.early: set[str] = set()
        self.failed: set[str] = set()
        self.phases = dict.fromkeys(self.names, Phase.DOWN)
        self.leases: dict[int, Request] = {}
        self.waiting: dict[int, Request] = {}

    def teardown(self) -> None:
        if hasattr(self, "planner"):
            self.drain()

    # What happens.

    @rule(name=st.sampled_from("abcd"), count=st.integers(1, 3))
    def want(self, name: str, count: int) -> None:
        if name in self.names:
            for _ in range(count):
                self.planner.want(name)
            self.wanted[name] += count
            self.carry_out()

    @rule(name=st.sampled_from("abcd"))
    def done(self, name: str) -> None:
        if name in self.names:
            self.planner.done(name)
            self.wanted[name] = max(0, self.wanted[name] - 1)
            self.carry_out()

    @rule(name=st.sampled_from("abcd"))
    def pin(self, name: str) -> None:
        if name in self.names:
            self.planner.pin(name)
            self.pinned.add(name)
            self.carry_out()

    @rule(name=st.sampled_from("abcd"))
    def expect(self, name: str) -> None:
        if name in self.names:
            self.planner.expect(name)
            self.expected.add(name)
            self.carry_out()

    @rule()
    def expect_no_more(self) -> None:
        expected, self.expected = self.expected, set()
        vain, failed = self.planner.expect_no_more()
        assert set(failed) == expected & self.failed
        assert set(vain) == {
            name
            for name in expected
            if self.phases[name] is not Phase.DOWN and not self.is_wanted(name) and not self.users(name)
        }
        self.failed -= expected
        self.early = (self.early - expected) | {name for name in expected if self.phases[name] is Phase.STARTING}
        asked_for = {name for one in self.waiting.values() for name in one.names}
        self.carry_out()
        # Also where others stay.
        assert all(self.phases[name] is not Phase.UP for name in set(vain) - asked_for)

    @rule(
        client=st.sampled_from(CLIENTS),
        names=st.sets(st.sampled_from("abcd"), min_size=1, max_size=2),
        alone=st.sampled_from(["", "exclusive", "undisturbed"]),
    )
    def ask(self, client: str, names: set[str], alone: str) -> None:
        held = {name for lease in self.leases.values() if lease.client == client for name in lease.names}
        chosen = tuple(sorted(names.intersection(self.names)))
        # What a test of the plan needs together has been found to fit; what it asks for later has not.
        if not chosen or self.is_waiting(client) or not (held or self.room.together(chosen)):
            return
        self.tickets += 1
        request = Request(self.tickets, client, chosen, alone == "exclusive", alone == "undisturbed")
        self.planner.join(client)
        self.planner.ask(request)
        self.waiting[request.ticket] = request
        self.carry_out()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), done=st.booleans())
    def give_back(self, data: Any, done: bool) -> None:
        idle = [ticket for ticket, lease in self.leases.items() if not self.is_waiting(lease.client)]
        if idle:
            self.end(data.draw(st.sampled_from(idle)), done)
            self.carry_out()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        ticket = data.draw(st.sampled_from(list(self.waiting)))
        self.planner.give_back(ticket, self.now)
        del self.waiting[ticket]
        self.carry_out()

    @rule(client=st.sampled_from(CLIENTS))
    def leave(self, client: str) -> None:
        wishes, tickets = self.planner.leave(client)
        assert wishes == [ticket for ticket, one in self.waiting.items() if one.client == client]
        assert sorted(tickets) == sorted(ticket for ticket, one in self.leases.items() if one.client == client)
        for ticket in wishes:
            del self.waiting[ticket]
        for ticket in tickets:
            self.end(ticket, done=True)
        self.carry_out()

    @precondition(lambda self: Phase.STARTING in self.phases.values())
    @rule(data=st.data(), well=st.integers(0, 5))
    def start_ends(self, data: Any, well: int) -> None:
        name = data.draw(st.sampled_from(self.in_phase(Phase.STARTING)))
        if well:
            self.planner.started(name, self.now)
            self.phases[name] = Phase.UP
        else:
            assert self.planner.start_failed(name) == (name not in self.early)
            self.phases[name] = Phase.DOWN
            if name not in self.early:
                self.failed.add(name)
        self.early.discard(name)
        self.carry_out()

    @precondition(lambda self: Phase.STOPPING in self.phases.values())
    @rule(data=st.data())
    def stop_ends(self, data: Any) -> None:
        name = data.draw(st.sampled_from(self.in_phase(Phase.STOPPING)))
        self.planner.stopped(name)
        self.early.discard(name)
        self.phases[name] = Phase.DOWN
        self.carry_out()

    @precondition(lambda self: Phase.FALLING_ASLEEP in self.phases.values())
    @rule(data=st.data(), well=st.integers(0, 3))
    def it_sleeps_or_not(self, data: Any, well: int) -> None:
        name = data.draw(st.sampled_from(self.in_phase(Phase.FALLING_ASLEEP)))
        if well:
            self.planner.slept(name)
            self.phases[name] = Phase.ASLEEP
        else:
            self.planner.stays_awake(name)
            self.phases[name] = Phase.STOPPING
        self.carry_out()

    @precondition(lambda self: Phase.ASLEEP in self.phases.values())
    @rule(data=st.data(), often=st.integers(0, 4))
    def dies_asleep(self, data: Any, often: int) -> None:
        name = data.draw(st.sampled_from(self.in_phase(Phase.ASLEEP)))
        assert self.planner.died_asleep(name) == Stop(name)
        self.phases[name] = Phase.STOPPING
        if not often:
            self.planner.give_up(name)
            self.failed.add(name)
        self.carry_out()

    @precondition(lambda self: Phase.UP in self.phases.values())
    @rule(data=st.data(), often=st.integers(0, 4))
    def dies(self, data: Any, often: int) -> None:
        name = data.draw(st.sampled_from(self.in_phase(Phase.UP)))
        self.planner.died(name)
        self.phases[name] = Phase.DEAD
        if not often:
            self.planner.give_up(name)
            self.failed.add(name)
        self.carry_out()

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out()

    @rule(index=st.integers(0, 2))
    def another_run_takes_or_returns(self, index: int) -> None:
        # Who sleeps keeps the locks.
        lent = any(index in indices for indices in self.room.lent.values())
        if index < len(self.room.holders) and self.room.holders[index] in (None, OUTSIDE) and not lent:
            self.room.holders[index] = OUTSIDE if self.room.holders[index] is None else None
            self.carry_out()

    # What is done about it.

    def carry_out(self) -> None:
        for _ in range(8):
            decisions = self.planner.decide(self.now)
            for decision in decisions:
                self.carry_out_one(decision)
            if not decisions:
                return
        raise AssertionError("it changes its mind without end")

    def carry_out_one(self, decision: object) -> None:
        if isinstance(decision, Start):
            assert self.phases[decision.name] in (Phase.DOWN, Phase.DEAD, Phase.ASLEEP)
            assert decision.name not in self.failed
            self.phases[decision.name] = Phase.STARTING
        elif isinstance(decision, Sleep):
            assert self.phases[decision.name] is Phase.UP
            assert not self.users(decision.name)
            assert self.is_wanted(decision.name)
            self.phases[decision.name] = Phase.FALLING_ASLEEP
        elif isinstance(decision, Stop):
            before = self.phases[decision.name]
            assert before not in (Phase.DOWN, Phase.STOPPING, Phase.FALLING_ASLEEP)
            assert not self.users(decision.name)
            # One that sleeps is stopped, too, where it would wait for its own GPUs.
            if decision.room_for is None and before is not Phase.ASLEEP:
                assert decision.name in self.failed or not self.is_wanted(decision.name)
            self.phases[decision.name] = Phase.STOPPING
        else:
            assert isinstance(decision, Grant)
            self.answered(decision)

    def answered(self, grant: Grant) -> None:
        request = self.waiting.pop(grant.request.ticket)
        assert request is grant.request
        if grant.refusal is not None:
            # Only who makes others wait can be in a deadlock.
            assert any(lease.client == request.client for lease in self.leases.values())
        elif self.failed.isdisjoint(request.names):
            assert all(self.phases[name] is Phase.UP for name in request.names)
            for user in (user for name in request.names for user in self.users(name)):
                assert not user.is_alone
                assert not request.is_alone
            self.leases[request.ticket] = request

    def end(self, ticket: int, done: bool) -> None:
        names = self.leases.pop(ticket).names
        self.planner.give_back(ticket, self.now)
        for name in names if done else ():
            self.planner.done(name)
            self.wanted[name] = max(0, self.wanted[name] - 1)

    # What is so.

    def in_phase(self, phase: Phase) -> list[str]:
        return [name for name, one in self.phases.items() if one is phase]

    def users(self, name: str) -> list[Request]:
        return [lease for lease in self.leases.values() if name in lease.names]

    def is_waiting(self, client: str) -> bool:
        return any(one.client == client for one in self.waiting.values())

    def is_wanted(self, name: str) -> bool:
        return name in self.pinned or name in self.expected or self.wanted[name] > len(self.users(name))

    @invariant()
    def it_knows_what_is_so(self) -> None:
        if not hasattr(self, "planner"):
            return
        for name in self.names:
            assert self.planner.phase(name) is self.phases[name]
            assert self.planner.leases(name) == sorted(self.users(name), key=lambda lease: lease.ticket)
            assert self.planner.is_wanted(name) == self.is_wanted(name)
            has_room = name in self.room.placed or name in self.room.holders or name in self.room.lent
            assert (name in self.room.lent) == (self.phases[name] is Phase.ASLEEP)
            assert has_room == (self.phases[name] is not Phase.DOWN)

    @invariant()
    def there_are_more_servers_than_places_only_against_a_deadlock(self) -> None:
        if hasattr(self, "planner"):
            assert len(self.room.placed) <= self.room.places or self.room.beyond

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Who is first in the queue waits for a start, a stop, a user of the server, another run, or for nobody."""
        if not getattr(self, "waiting", None):
            return
        held = {lease.client for lease in self.leases.values()}
        first = min(self.waiting.values(), key=lambda one: (one.client not in held, one.ticket))
        for name in first.names:
            assert name not in self.failed
            assert self.phases[name] is not Phase.DEAD
            if self.phases[name] in (Phase.DOWN, Phase.ASLEEP):
                assert not self.room.can_claim(name)
                self.something_makes_room_for(name)
        if all(self.phases[name] is Phase.UP for name in first.names):
            users = [user for name in first.names for user in self.users(name)]
            assert any(user.is_alone or first.is_alone for user in users)

    def something_makes_room_for(self, name: str) -> None:
        leaving = self.in_phase(Phase.STOPPING) + self.in_phase(Phase.FALLING_ASLEEP)
        if self.room.fits(name, leaving):
            # A stop brings it, or another run has it: then somebody must look again.
            assert leaving or self.planner.wake is not None
            return
        starting = self.in_phase(Phase.STARTING)
        in_use = [one for one in self.names if self.users(one)]
        lately = self.planner.wake is not None and self.planner.wake <= self.now + GRACE
        assert leaving or starting or in_use or lately

    @invariant()
    def what_is_wanted_is_started_ahead(self) -> None:
        if not hasattr(self, "planner") or self.waiting or not self.prelaunch:
            return
        for name in self.names:
            if self.is_wanted(name) and name not in self.failed and self.phases[name] in (Phase.DOWN, Phase.ASLEEP):
                assert not self.room.can_claim(name)

    @invariant()
    def what_nobody_wants_is_stopped(self) -> None:
        if not hasattr(self, "planner"):
            return
        asked_for = {name for one in self.waiting.values() for name in one.names}
        for name in self.in_phase(Phase.UP) + self.in_phase(Phase.ASLEEP):
            if not self.users(name) and name not in asked_for:
                assert self.is_wanted(name) or (self.linger and self.phases[name] is Phase.UP)
        for name in self.in_phase(Phase.DEAD):
            assert self.users(name) or name in asked_for or self.is_wanted(name)
            # Who still has a lease on it keeps its end from being cleaned up, nobody else does.
            assert name not in self.failed or self.users(name)

    # How it ends.

    def drain(self) -> None:
        """Everybody who can goes on: then nobody waits for ever, and nothing is left."""
        self.room.holders = [None if holder == OUTSIDE else holder for holder in self.room.holders]
        for _ in range(60):
            for name in self.in_phase(Phase.STARTING):
                self.planner.started(name, self.now)
                self.phases[name] = Phase.UP
            for name in self.in_phase(Phase.STOPPING):
                self.planner.stopped(name)
                self.phases[name] = Phase.DOWN
            for name in self.in_phase(Phase.FALLING_ASLEEP):
                self.planner.slept(name)
                self.phases[name] = Phase.ASLEEP
            self.now += 2 * GRACE
            self.carry_out()
            for ticket in [one for one, lease in self.leases.items() if not self.is_waiting(lease.client)]:
                self.end(ticket, done=True)
                self.carry_out()
            self.it_knows_what_is_so()
            self.nobody_waits_for_nothing()
            if not self.waiting and not self.leases:
                break
        assert not self.waiting, "they wait for ever"
        assert not self.leases
        self.wanted.clear()
        self.pinned.clear()
        self.expected.clear()
        for stop in self.planner.stop_all():
            self.carry_out_one(stop)
        for name in self.in_phase(Phase.FALLING_ASLEEP):
            self.planner.stays_awake(name)
            self.phases[name] = Phase.STOPPING
        assert set(self.phases.values()) <= {Phase.DOWN, Phase.STOPPING}
        for name in self.in_phase(Phase.STOPPING):
            self.planner.stopped(name)
        assert not self.room.placed
        assert not any(self.room.holders)
        assert self.planner.decide(self.now) == []


class TestRuns(Runs.TestCase):  # type: ignore[misc]
    settings = settings(
        max_examples=250,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        print_blob=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
