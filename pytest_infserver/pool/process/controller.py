"""What xdist's controller asks of a pool, wherever that lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.pool.process.member import OwnerMember


class Controller(Protocol):
    """The pool of the workers, as their controller sees it."""

    @property
    def key(self) -> Mapping[str, Any]:
        """What a worker has to be given; it is a secret."""

    @property
    def refusal(self) -> str | None:
        """Why the run cannot take place, or None."""

    def servers_of(self, test: str) -> Sequence[str]:
        """Return the servers that a test needs."""

    def is_ready(self, name: str) -> bool:
        """Return whether a server runs now."""

    def in_order(self) -> bool:
        """Return whether the tests run in the order in which the workers have them."""

    def leave(self, client: str) -> None:
        """Take back what a worker had: it is gone."""

    def wind_up(self) -> None:
        """Let nobody wait for a start any more."""

    def refuse(self) -> None:
        """Let nobody wait for a server any more."""

    def raise_exit(self) -> None:
        """Raise what was raised elsewhere and ends the run."""

    def close(self) -> None:
        """Answer no more."""


class RemoteController:
    """The one of a pool in a process of its own."""

    def __init__(self, member: OwnerMember) -> None:
        self._member = member
        self._owner = member.owner
        self._plan: tuple[Mapping[str, Sequence[str]], bool] | None = None

    @property
    def key(self) -> Mapping[str, Any]:
        """What a worker has to be given."""
        return self._owner.key

    @property
    def refusal(self) -> str | None:
        """Why the run cannot take place, or None."""
        refusal: str | None = self._owner.call("refusal")
        return refusal

    def servers_of(self, test: str) -> Sequence[str]:
        """Return the servers that a test needs."""
        return self._planned()[0].get(test, ())

    def is_ready(self, name: str) -> bool:
        """Return whether a server runs now."""
        return self._member.is_ready(name)

    def in_order(self) -> bool:
        """Return whether the tests run in the order in which the workers have them."""
        return self._planned()[1]

    def _planned(self) -> tuple[Mapping[str, Sequence[str]], bool]:
        # Asked for when the workers have collected, and once: it is all that will ever be planned.
        if self._plan is None:
            try:
                self._plan = self._owner.call("plan")
            except InferenceServerError:
                # The process is gone: each test that needs a server says so.
                self._plan = {}, True
        return self._plan

    def leave(self, client: str) -> None:
        """Take back what a worker had."""
        self._owner.push("leave", client)

    def wind_up(self) -> None:
        """Let nobody wait for a start any more."""
        self._owner.push("wind_up")

    def refuse(self) -> None:
        """Let nobody wait for a server any more."""
        self._owner.push("refuse")

    def raise_exit(self) -> None:
        """Raise what was raised elsewhere and ends the run."""
        self._member.raise_exit()

    def close(self) -> None:
        """Do nothing: the process ends with its pool."""
