"""What those wait for who wait for servers now."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_infserver.launcher.user_code import asked
from pytest_infserver.pool.planning.decisions import Phase, Request
from pytest_infserver.pool.planning.planner import Planner
from pytest_infserver.system.text import one_line

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.room import Room

_DEEDS = {Phase.STARTING: "starts", Phase.STOPPING: "stops", Phase.FALLING_ASLEEP: "falls asleep"}
_LEAVING = {Phase.STOPPING: "stopping", Phase.FALLING_ASLEEP: "falling asleep"}
_MOST_NAMED = 3
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Wait:
    """A server that is not there yet; plain data, which goes from one process to another.

    Attributes:
        name: What it is called among the servers of the run.
        label: Its name and backend.
        kind: Its name, backend and model, by which its last start is remembered.
        doing: What it does, or what keeps it from starting; no secrets, no control characters.
        seconds: How long it has been so.
        is_hindered: Whether something keeps it from starting.
        is_ready: Whether it runs already.
    """

    name: str
    label: str
    kind: str
    doing: str
    seconds: float
    is_hindered: bool = False
    is_ready: bool = False


@dataclass(frozen=True)
class WaitReport:
    """What those wait for who wait at one moment.

    Attributes:
        number: The later of two has the higher one.
        waits: The servers; none if nobody waits.
        ready: Name of each server that runs to the seconds that its start took, or None for one that was running.
        starting: Names of the servers that are being started.
    """

    number: int
    waits: tuple[Wait, ...] = ()
    ready: Mapping[str, float | None] = field(default_factory=dict)
    starting: frozenset[str] = frozenset()


def wait_report(waits: tuple[Wait, ...] = (), servers: Iterable[InferenceServer] = ()) -> WaitReport:
    """Return the report of this moment.

    Args:
        waits: The servers that are waited for.
        servers: All servers.
    """
    known = list(servers)
    ready = {server.name: server.start_seconds for server in known if server.running and server.awake}
    starting = frozenset(server.name for server in known if server.runtime.starting_seconds is not None)
    return WaitReport(next(_numbers), waits, ready, starting)


def wait_report_on(server: InferenceServer) -> WaitReport:
    """Return the report of somebody who starts a server beside those that are configured."""
    seconds, name = server.runtime.starting_seconds, server.log_path.parent.name
    waits = () if seconds is None else (dataclasses.replace(wait_of(server, seconds), name=name),)
    ready = {name: server.start_seconds} if server.running else {}
    return WaitReport(next(_numbers), waits, ready, frozenset() if seconds is None else frozenset({name}))


def wait_of(server: InferenceServer, seconds: float, hindrance: str = "") -> Wait:
    """Return what is told of a server that is waited for.

    Args:
        server: The server.
        seconds: How long it has been so.
        hindrance: What keeps it from starting; empty if it is starting.
    """
    return Wait(
        name=server.name,
        label=one_line(str(server)),
        # What wakes up has no last start to go by.
        kind=start_key(server) if not server.running or server.awake else "",
        doing=one_line(hindrance) or _phase(server),
        seconds=seconds,
        is_hindered=bool(hindrance),
        is_ready=server.running,
    )


def start_key(server: InferenceServer) -> str:
    """Return the key under which the time of a server's last start is remembered."""
    return f"{server.name} {server.backend_name} {server.model or ''}".strip()


def _phase(server: InferenceServer) -> str:
    if server.runtime.starting_seconds is None:
        # Before its launch, or in the hooks that are told of it.
        return "nearly ready" if server.running else "starting"
    phase = server.phase
    try:
        secrets = frozenset() if phase == asked(server).first_phase else server.secrets
    except Exception:
        # A backend's own mistake; its start says it better.
        return "starting"
    return one_line(phase, secrets) or "starting"


def causes(planner: Planner, room: Room, tests: Mapping[int, str]) -> Iterator[tuple[str, str, int | None]]:
    """Yield the name of each server that is not there yet, what hinders its start, and the ticket of who waits.

    Those that somebody waits for come first, then those that are started ahead of time and those whose stop somebody
    waits for, both without a ticket.

    Args:
        planner: What is so.
        room: How much there is room for.
        tests: Ticket to the test that asks, or has, where it is one.
    """
    named: set[str] = set()
    leaving: list[str] = []
    for request in planner.wishes():
        for name in request.names:
            if name in named:
                continue
            phase = planner.phase(name)
            if phase in (Phase.DOWN, Phase.ASLEEP):
                others = planner.names(Phase.STARTING, Phase.UP, Phase.DEAD, *_LEAVING)
                holders = [] if name in planner.short else [one for one in others if one in room.holders(name)]
                leaving += [one for one in holders if planner.phase(one) in _LEAVING]
                text = _no_room(planner, holders) if name not in planner.short else room.taken(name)
                text = f"asleep, {text}" if phase is Phase.ASLEEP else text
            elif phase is Phase.UP:
                text = _in_use(planner, request, name, tests)
                if not text:
                    continue
            else:
                text = _LEAVING.get(phase, "")
            named.add(name)
            yield name, text, request.ticket
    for name in [*planner.names(Phase.STARTING), *leaving]:
        if name not in named:
            named.add(name)
            yield name, _LEAVING.get(planner.phase(name), ""), None


def _no_room(planner: Planner, holders: list[str]) -> str:
    if not holders:
        return "waits for its turn"
    named = [f"{one} {_DEEDS.get(planner.phase(one), 'runs')}" for one in holders[:_MOST_NAMED]]
    more = len(holders) - _MOST_NAMED
    return f"waits for room ({', '.join(named)}{f' and {more} more' if more > 0 else ''})"


def _in_use(planner: Planner, request: Request, name: str, tests: Mapping[int, str]) -> str:
    users = planner.leases(name)
    if not request.is_alone:
        users = [one for one in users if one.is_alone]
    if not users:
        return ""
    user = tests.get(users[0].ticket, "a test")
    others = f" and {len(users) - 1} more" if len(users) > 1 else ""
    return f"waits for {user}{others} to give it back"
