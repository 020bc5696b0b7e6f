"""Which server runs when, and who gets it: the pool's decisions, without processes, threads or clocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pytest_infserver.pool.planning.decisions import Decision, Grant, Phase, Request, Room, Sleep, Start, Stop, deadlock

GRACE = 1.0
"""Seconds that an idle server which later tests want is left alone while somebody may come back to it: starting it
again costs more."""
RETRY = 0.5
"""Seconds until room that another run of pytest holds is asked for again."""

ENDED = "the run ends: no server is handed out any more"


@dataclass
class _Server:
    name: str
    phase: Phase = Phase.DOWN
    wanted: int = 0
    leases: set[int] = field(default_factory=set)
    idle_since: float = 0.0
    pinned: bool = False
    expected: bool = False
    early: bool = False
    failed: bool = False

    @property
    def wanted_later(self) -> bool:
        """Whether tests want it beside those that use it now."""
        return self.pinned or self.expected or self.wanted > len(self.leases)


class Planner:
    """Keeps the books of one run.

    Tell it what happens, then ask `decide` what to do about it. Not thread-safe.

    Attributes:
        short: Servers that this run has room for, if nobody outside of it had taken that.
        wake: When to ask again even if nothing happens (same clock as `decide`'s), or None.
    """

    def __init__(
        self,
        room: Room,
        *,
        prelaunch: bool = True,
        linger: bool = False,
        needs: Callable[[str], Sequence[str]] = lambda name: (),
        may_sleep: Callable[[str, str], bool] = lambda name, room_for: False,
    ) -> None:
        """Begin with nothing.

        Args:
            room: How much there is room for.
            prelaunch: Whether servers are started before somebody asks for them.
            needs: Returns the servers that one needs, which are started before it and stopped after it.
            may_sleep: Returns whether a server can be put to sleep instead of being stopped to make room for another.
            linger: Whether servers stay when no test wants them any more, as long as nobody needs their room.
        """
        self._room = room
        self._prelaunch = prelaunch
        self._linger = linger
        self._needs = needs
        self._may_sleep = may_sleep
        self._servers: dict[str, _Server] = {}
        self._waiting: dict[int, Request] = {}
        self._leased: dict[int, Request] = {}
        self._clients: set[str] = set()
        self._promised: list[str] = []
        self._mistaken: set[str] = set()
        self._ending = False
        self.short: set[str] = set()
        self.wake: float | None = None

    # What has happened.

    def want(self, name: str) -> None:
        """Note that one more test is going to use a server."""
        if not self._server(name).wanted:
            # They are started in the order of the tests, not in that in which somebody has asked about them.
            self._servers[name] = self._servers.pop(name)
        self._server(name).wanted += 1

    def done(self, name: str) -> None:
        """Note that one of these tests is over."""
        server = self._server(name)
        server.wanted = max(0, server.wanted - 1)

    def pin(self, name: str) -> None:
        """Note a use that nobody had announced, which more may follow: it runs to the end."""
        self._server(name).pinned = True

    def expect(self, name: str) -> None:
        """Note that tests are probably going to use a server."""
        self._server(name).expected = True

    def expect_no_more(self) -> tuple[list[str], list[str]]:
        """Note that all is known that tests are going to use.

        Returns:
            The servers that were expected in vain, which `decide` stops, and those whose start has failed, which gets
            another chance: what it needs may have been made by the files that pytest has imported meanwhile.
        """
        expected = [server for server in self._servers.values() if server.expected]
        failed = [server for server in expected if server.failed]
        for server in expected:
            server.expected, server.early = False, server.phase is Phase.STARTING
        for server in failed:
            server.failed = False
        vain = [one.name for one in expected if one.phase is not Phase.DOWN and not (one.wanted_later or one.leases)]
        self._mistaken = set(vain)
        return vain, [server.name for server in failed]

    def join(self, client: str) -> None:
        """Note somebody who may ask."""
        self._clients.add(client)

    def leave(self, client: str) -> tuple[list[int], list[int]]:
        """Note that a client is gone; return the tickets of its wishes, which are withdrawn, and of its leases."""
        self._clients.discard(client)
        wishes = [ticket for ticket, one in self._waiting.items() if one.client == client]
        for ticket in wishes:
            del self._waiting[ticket]
        return wishes, [ticket for ticket, one in self._leased.items() if one.client == client]

    def ask(self, request: Request) -> None:
        """Note a wish; a `Grant` will answer it."""
        self._waiting[request.ticket] = request

    def give_back(self, ticket: int, now: float) -> None:
        """End a lease, or withdraw a wish."""
        self._waiting.pop(ticket, None)
        request = self._leased.pop(ticket, None)
        for name in request.names if request is not None else ():
            server = self._server(name)
            server.leases.discard(ticket)
            server.idle_since = now

    def adopted(self, name: str, now: float) -> None:
        """Note a server that was running already; its room is taken."""
        self._become(name, Phase.DOWN, Phase.STARTING)
        self.started(name, now)

    def started(self, name: str, now: float) -> None:
        """Note that a server is ready."""
        self._become(name, Phase.STARTING, Phase.UP)
        self._server(name).idle_since = now

    def start_failed(self, name: str) -> bool:
        """Note that a start failed; return whether that is all: one that began before all was known is made again."""
        early = self._server(name).early
        self._become(name, Phase.STARTING, Phase.DOWN)
        self._room.release(name)
        self._server(name).failed = not early
        return not early

    def died(self, name: str) -> None:
        """Note that a server that was up has ended by itself; it keeps its room until it is stopped."""
        self._become(name, Phase.UP, Phase.DEAD)

    def slept(self, name: str) -> None:
        """Note that a server sleeps: others may have its GPUs."""
        self._become(name, Phase.FALLING_ASLEEP, Phase.ASLEEP)
        self._room.lend(name)

    def stays_awake(self, name: str) -> None:
        """Note that a server could not be put to sleep: it is stopped."""
        self._become(name, Phase.FALLING_ASLEEP, Phase.STOPPING)

    def died_asleep(self, name: str) -> Stop:
        """Note that a server has ended by itself while it slept; return what to do about it."""
        self._become(name, Phase.ASLEEP, Phase.DEAD)
        return self._stop(self._server(name))

    def give_up(self, name: str) -> None:
        """Never start a server again; who asks for it gets it, as a failure."""
        self._server(name).failed = True

    def stopped(self, name: str) -> None:
        """Note that a server is gone."""
        self._become(name, Phase.STOPPING, Phase.DOWN)
        self._room.release(name)

    def start_nothing_ahead(self) -> None:
        """Start no server any more before somebody asks for it."""
        self._prelaunch = False

    def wind_up(self) -> None:
        """Start nothing any more, and let nobody wait for what does not run: the run is about to end."""
        self._ending = True

    def _become(self, name: str, before: Phase, after: Phase) -> None:
        server = self._server(name)
        assert server.phase is before, (name, server.phase, after)
        server.phase, server.early = after, False

    def _server(self, name: str) -> _Server:
        return self._servers.setdefault(name, _Server(name))

    # What is so.

    def phase(self, name: str) -> Phase:
        """Return where a server is."""
        return self._server(name).phase

    def names(self, *phases: Phase) -> list[str]:
        """Return the servers that are in one of these phases."""
        return [server.name for server in self._servers.values() if server.phase in phases]

    def lease(self, ticket: int) -> Request | None:
        """Return what is leased under a ticket."""
        return self._leased.get(ticket)

    def leases(self, name: str) -> list[Request]:
        """Return who uses a server."""
        return [self._leased[ticket] for ticket in sorted(self._server(name).leases)]

    def wishes(self) -> list[Request]:
        """Return what is asked for and not yet granted, in the order in which it is seen to."""
        return self._queue() if self._waiting else []

    def is_wanted(self, name: str) -> bool:
        """Return whether further tests want a server."""
        return self._server(name).wanted_later

    def is_planned(self, name: str) -> bool:
        """Return whether tests use a server, or are going to, which have not asked the factory for it."""
        server = self._server(name)
        return server.pinned or server.wanted > 0

    # What to do.

    def decide(self, now: float) -> list[Decision]:
        """Return what to do now; each decision counts as carried out, or as begun.

        Args:
            now: The time, in seconds of a clock that only goes forward.
        """
        self.wake = None
        self.short = set()
        self._promised = []
        decisions: list[Decision] = list(self._grants())
        short = False
        needed: set[str] = set()
        for request in self._queue():
            if self._ending and any(self.phase(name) is not Phase.UP for name in request.names):
                decisions.append(self._answer(request, ENDED))
                continue
            needed.update(request.names)
            for name in request.names:
                short |= self._bring_up(name, request, needed, now, decisions)
        decisions += self._stop_unwanted()
        self._mistaken = set()
        if self._prelaunch and not short and not self._ending:
            decisions += self._start_ahead()
        return decisions

    def stop_all(self) -> list[Stop]:
        """Forget who uses or wants what; return which servers to stop, the starting ones among them."""
        self._waiting.clear()
        self._leased.clear()
        stops = []
        for server in self._servers.values():
            server.leases.clear()
            server.wanted, server.pinned, server.expected = 0, False, False
            if server.phase in (Phase.STARTING, Phase.UP, Phase.DEAD, Phase.ASLEEP):
                stops.append(self._stop(server))
        return stops

    def _grants(self) -> Iterable[Grant]:
        reserved: set[str] = set()
        for request in self._queue():
            servers = [self._server(name) for name in request.names]
            up = all(server.phase is Phase.UP for server in servers)
            if any(server.failed for server in servers):
                yield self._answer(request)
            elif up and self._is_free(request, servers, reserved):
                self._leased[request.ticket] = request
                for server in servers:
                    server.leases.add(request.ticket)
                yield self._answer(request)
            elif up and request.is_alone:
                # It waits for those who use them now; nobody else may come in between.
                reserved.update(request.names)

    def _queue(self) -> list[Request]:
        """Return the wishes in the order in which they are seen to: who holds something must let go of it soon."""
        return sorted(self._waiting.values(), key=lambda one: not self._holds_something(one.client))

    def _is_free(self, request: Request, servers: Sequence[_Server], reserved: set[str]) -> bool:
        holders = [self._leased[ticket] for server in servers for ticket in server.leases]
        if request.is_alone:
            return not holders
        if any(holder.is_alone for holder in holders):
            return False
        # Whoever holds something already must not wait for those who wait for it.
        return self._holds_something(request.client) or reserved.isdisjoint(request.names)

    def _answer(self, request: Request, refusal: str | None = None) -> Grant:
        del self._waiting[request.ticket]
        return Grant(request, refusal)

    def _holds_something(self, client: str) -> bool:
        return any(lease.client == client for lease in self._leased.values())

    def _bring_up(self, name: str, request: Request, needed: set[str], now: float, decisions: list[Decision]) -> bool:
        """See to it that a server that is asked for runs; return whether it lacks room."""
        server = self._server(name)
        if server.failed or request.ticket not in self._waiting:
            return False
        if self._waits_for_itself(request):
            decisions.append(self._answer(request, deadlock(name)))
            return False
        if server.phase in (Phase.UP, Phase.STARTING) or self._is_held_back(name):
            return False
        is_away = server.phase in (Phase.DOWN, Phase.ASLEEP)
        if server.phase is Phase.DEAD or (is_away and self._claim(server)):
            server.phase = Phase.STARTING
            decisions.append(Start(name))
            return False
        if is_away:
            self._make_room(server, request, needed, now, decisions)
        return True

    def _is_held_back(self, name: str) -> bool:
        """Return whether a server has to wait until those run that it needs."""
        needed = [self._server(one) for one in self._needs(name)]
        return any(one.phase is not Phase.UP for one in needed) and not any(one.failed for one in needed)

    def _stops(self, server: _Server, room_for: str | None) -> Iterable[Stop]:
        """Stop a server, and before it those that need it."""
        for other in list(self._servers.values()):
            if server.name in self._needs(other.name) and other.phase in (Phase.STARTING, Phase.UP, Phase.DEAD):
                yield from self._stops(other, room_for)
        if server.phase is not Phase.STOPPING:
            yield self._stop(server, room_for)

    def _claim(self, server: _Server) -> bool:
        """Take a server's room, if that leaves enough for those before it, for whom others are being stopped."""
        if not self._room.claim(server.name):
            return False
        leaving = self._leaving()
        if all(self._room.fits(one, leaving) for one in self._promised):
            return True
        if server.phase is Phase.ASLEEP:
            self._room.lend(server.name)
        else:
            self._room.release(server.name)
        return False

    def _leaving(self) -> list[str]:
        """Return the servers whose room is about to be there for others."""
        return self.names(Phase.STOPPING, Phase.FALLING_ASLEEP)

    def _make_room(
        self, server: _Server, request: Request, needed: set[str], now: float, decisions: list[Decision]
    ) -> None:
        leaving = self._leaving()
        if self._room.fits(server.name, leaving):
            # It comes with the next stop, or somebody else has it.
            if self._room.fits(server.name, ()):
                self.short.add(server.name)
            else:
                self._promised.append(server.name)
            self._wake_at(now + RETRY)
            return
        victims: list[_Server] = []
        for victim in self._victims(needed, now):
            victims.append(victim)
            if self._room.fits(server.name, [*leaving, *(one.name for one in victims)]):
                for one in self._only_needed(functools.partial(self._room.fits, server.name), leaving, victims):
                    decisions += self._send_away(one, server.name)
                self._promised.append(server.name)
                return
        if server.phase is Phase.ASLEEP and self._blocks_itself(server.name, request):
            # Started anew it may get other GPUs.
            decisions.append(self._stop(server))
        elif self._holds_something(request.client) and self._nobody_goes_on():
            if self._room.claim(server.name, beyond=True):
                server.phase = Phase.STARTING
                decisions.append(Start(server.name))
            else:
                decisions.append(self._answer(request, deadlock(server.name)))

    def _blocks_itself(self, name: str, request: Request) -> bool:
        """Return whether the GPUs of a server that sleeps are those of what its request has, or needs beside it."""
        held = {one for lease in self._leased.values() if lease.client == request.client for one in lease.names}
        return not self._room.fits(name, set(self._servers) - held.union(request.names))

    def _send_away(self, victim: _Server, room_for: str) -> Iterable[Decision]:
        """Stop a server whose place another one needs, or put it to sleep if it is wanted later."""
        is_single = not self._needs(victim.name) and not any(victim.name in self._needs(one) for one in self._servers)
        wanted_up = victim.phase is Phase.UP and victim.wanted_later
        if wanted_up and is_single and self._may_sleep(victim.name, room_for):
            victim.phase = Phase.FALLING_ASLEEP
            yield Sleep(victim.name, room_for)
        else:
            yield from self._stops(victim, room_for if victim.wanted_later else None)

    @staticmethod
    def _only_needed(
        fits: Callable[[Iterable[str]], bool], leaving: Sequence[str], victims: list[_Server]
    ) -> list[_Server]:
        """Leave out those whose place does not help, as that of a server without a GPU for one with."""
        for victim in list(victims):
            others = [one.name for one in victims if one is not victim]
            if fits([*leaving, *others]):
                victims = [one for one in victims if one is not victim]
        return victims

    def _victims(self, needed: set[str], now: float) -> list[_Server]:
        """Return the servers that could be stopped for another one, the least missed first."""
        asked_for = {name for request in self._waiting.values() for name in request.names}
        others_are_active = bool(self._clients - {request.client for request in self._waiting.values()})
        victims = []
        for server in self._servers.values():
            away = (Phase.DOWN, Phase.STOPPING, Phase.FALLING_ASLEEP)
            if server.leases or server.name in needed or server.phase in away:
                continue
            if server.phase is Phase.STARTING and server.name in asked_for:
                continue
            missed = server.phase is Phase.UP and server.wanted_later and others_are_active
            if missed and now - server.idle_since < GRACE:
                # Whoever has just left it may come back with the next test.
                self._wake_at(server.idle_since + GRACE)
                continue
            victims.append(server)
        return sorted(victims, key=lambda one: (one.wanted_later, one.phase is Phase.UP, one.idle_since))

    def _waits_for_itself(self, request: Request) -> bool:
        """Return whether a client waits for somebody who waits for it, over however many others."""
        seen: set[str] = set()
        wishes = [request]
        while wishes:
            wish = wishes.pop()
            users = [lease for name in wish.names for lease in self.leases(name)]
            clients = {lease.client for lease in users if lease.is_alone or wish.is_alone} - seen
            if request.client in clients:
                return True
            seen |= clients
            wishes += [one for one in self._waiting.values() if one.client in clients]
        return False

    def _nobody_goes_on(self) -> bool:
        """Return whether nothing is going to give room back: all who use servers wait, and no server changes."""
        waiting = {one.client for one in self._waiting.values()}
        users = {lease.client for lease in self._leased.values()}
        return users <= waiting and not [*self.names(Phase.STARTING), *self._leaving()]

    def _stop_unwanted(self) -> Iterable[Stop]:
        asked_for = {name for request in self._waiting.values() for name in request.names}
        idle = [one for one in self._servers.values() if not one.leases]
        idle = [one for one in idle if one.phase not in (Phase.DOWN, Phase.STOPPING, Phase.FALLING_ASLEEP)]
        unwanted = [one for one in idle if not one.wanted_later and one.name not in asked_for]
        if self._linger:
            staying = [one for one in unwanted if one.phase is Phase.UP and one.name not in self._mistaken]
            in_the_way = self._in_the_way(staying)
            unwanted = [one for one in unwanted if one not in staying or one in in_the_way]
        for server in idle:
            if server.failed or server in unwanted:
                yield self._stop(server)

    def _in_the_way(self, servers: list[_Server]) -> list[_Server]:
        """Return those of some servers whose room one needs that is wanted later."""
        leaving = self._leaving()
        for one in self._servers.values():
            is_away = one.phase in (Phase.DOWN, Phase.ASLEEP)
            if not one.wanted_later or not is_away or one.failed or self._room.fits(one.name, leaving):
                continue
            if self._room.fits(one.name, [*leaving, *(other.name for other in servers)]):
                return self._only_needed(functools.partial(self._room.fits, one.name), leaving, servers)
        return []

    def _start_ahead(self) -> Iterable[Start]:
        for server in list(self._servers.values()):
            if not server.wanted_later or server.failed or self._is_held_back(server.name):
                continue
            is_away = server.phase in (Phase.DOWN, Phase.ASLEEP)
            if server.phase is Phase.DEAD or (is_away and self._room.claim(server.name, ahead=True)):
                server.phase = Phase.STARTING
                yield Start(server.name)
            elif server.phase is Phase.DOWN and self._room.fits(server.name, ()):
                self.short.add(server.name)

    @staticmethod
    def _stop(server: _Server, room_for: str | None = None) -> Stop:
        server.phase = Phase.STOPPING
        return Stop(server.name, room_for)

    def _wake_at(self, moment: float) -> None:
        self.wake = moment if self.wake is None else min(self.wake, moment)
