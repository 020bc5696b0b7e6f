"""What the planner is asked for, and what it decides."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias


class Phase(enum.Enum):
    """Where a server is, as far as the planner has been told."""

    DOWN = "down"
    STARTING = "starting"
    UP = "up"
    DEAD = "dead"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"
    STOPPING = "stopping"


@dataclass(frozen=True)
class Request:
    """One wish for servers, all of them together or none.

    Attributes:
        ticket: Its number, which is the lease's once it is granted.
        client: Who asks.
        names: The servers.
        exclusive: Whether nobody else may use them meanwhile, and whoever has them may stop them.
        undisturbed: Whether nobody else may use them meanwhile.
    """

    ticket: int
    client: str
    names: tuple[str, ...]
    exclusive: bool = False
    undisturbed: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether nobody else may use them meanwhile."""
        return self.exclusive or self.undisturbed


@dataclass(frozen=True)
class Start:
    """Start a server, or wake it; its room is taken."""

    name: str


@dataclass(frozen=True)
class Stop:
    """Stop a server, or its start; its room is given back when it has stopped.

    Attributes:
        room_for: The server that needs its place; None if no test wants it any more, so that it was due anyway.
    """

    name: str
    room_for: str | None = None


@dataclass(frozen=True)
class Sleep:
    """Put a server to sleep, so that another one can have its GPUs meanwhile.

    Attributes:
        name: The server.
        room_for: The one that needs its GPUs.
    """

    name: str
    room_for: str


@dataclass(frozen=True)
class Grant:
    """Give a client what it asked for; of a server that has failed it gets no lease.

    Attributes:
        refusal: Why it cannot have it, in words, or None.
    """

    request: Request
    refusal: str | None = None


Decision: TypeAlias = "Start | Stop | Sleep | Grant"


class Room(Protocol):
    """What there is only so much of: GPUs, and places for servers without one."""

    def claim(self, name: str, *, beyond: bool = False, ahead: bool = False) -> bool:
        """Take all the room that a server needs, or none; return whether it was taken. One that sleeps has its own.

        Args:
            name: The server.
            beyond: Also if that is more than was planned for, where it is possible at all.
            ahead: Whether nobody asks for the server yet.
        """

    def release(self, name: str) -> None:
        """Give a server's room back."""

    def lend(self, name: str) -> None:
        """Let others have the GPUs of a server that sleeps, until it claims them again."""

    def fits(self, name: str, without: Iterable[str]) -> bool:
        """Return whether this run would have room for a server if those were gone."""


def deadlock(name: str) -> str:
    """Return why a server cannot be had, however long one waits."""
    return (
        f"{name} cannot be had: all who use what it needs wait for servers themselves, this test included."
        " Name all servers of a test in @pytest.mark.infserver_needs(...): they are given together."
    )
