"""What those wait for who wait for servers now."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_infserver.pool.planner import Phase, Planner, Request

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.room import Room

_DEEDS = {Phase.STARTING: "starts", Phase.STOPPING: "stops"}
_MOST_NAMED = 3
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Wait:
    """A server that is not there yet.

    Attributes:
        server: The server.
        seconds: How long it has been so.
        hindrance: What keeps it from starting; empty if it is starting.
    """

    server: InferenceServer
    seconds: float
    hindrance: str = ""


@dataclass(frozen=True)
class Outlook:
    """What those wait for who wait at one moment.

    Attributes:
        number: The later of two has the higher one.
        waits: The servers; none if nobody waits.
    """

    number: int
    waits: tuple[Wait, ...] = ()


def outlook(waits: tuple[Wait, ...] = ()) -> Outlook:
    """Return the outlook of this moment."""
    return Outlook(next(_numbers), waits)


def outlook_on(server: InferenceServer) -> Outlook:
    """Return the outlook of somebody who starts a server."""
    seconds = server.starting_seconds
    return outlook(() if seconds is None else (Wait(server, seconds),))


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
    stopping: list[str] = []
    for request in planner.wishes():
        for name in request.names:
            if name in named:
                continue
            phase = planner.phase(name)
            if phase is Phase.DOWN:
                others = planner.names(Phase.STARTING, Phase.UP, Phase.DEAD, Phase.STOPPING)
                holders = [] if name in planner.short else [one for one in others if one in room.holders(name)]
                stopping += [one for one in holders if planner.phase(one) is Phase.STOPPING]
                text = _no_room(planner, holders) if name not in planner.short else room.taken(name)
            elif phase is Phase.UP:
                text = _in_use(planner, request, name, tests)
                if not text:
                    continue
            else:
                text = "stopping" if phase is Phase.STOPPING else ""
            named.add(name)
            yield name, text, request.ticket
    for name in [*planner.names(Phase.STARTING), *stopping]:
        if name not in named:
            named.add(name)
            yield name, "stopping" if name in stopping else "", None


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
