"""What the further nodes of a server have to do for its life."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pytest_infserver.cluster.messages import Failure, Order
from pytest_infserver.cluster.runtime.actor import Actor
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.share import Share

if TYPE_CHECKING:
    pass


class Others(ABC):
    """The further nodes of one life of a server."""

    @abstractmethod
    def create(self, order: Order, name: str) -> None:
        """Have their actors created, if they have some.

        Args:
            order: That of the first node.
            name: What its actor is called.
        """

    @abstractmethod
    def join(self, head: Actor) -> Share:
        """Have them begin; return the part of the first node, which is to begin next.

        Raises:
            InferenceServerError: They cannot.
        """

    @abstractmethod
    def why_ended(self, before: float | None = None) -> str | None:
        """Return how that one has ended that has ended first, or None.

        Args:
            before: When the first node's part has ended, if it has: what has ended later is only a consequence.
        """

    @abstractmethod
    def how_died(self, how: str, at: float) -> str:
        """Return how a server has died, in words that follow its name.

        Args:
            how: How the first node's part has ended.
            at: When, in seconds since the epoch.
        """

    @abstractmethod
    def explained(self, failure: Failure) -> Failure:
        """Return why the first node's part did not start, with what is known of the others."""

    @abstractmethod
    def kill(self) -> None:
        """End them at once; nobody is waited for."""

    @abstractmethod
    def begin_stop(self, limit: float) -> None:
        """Have them stop; they have ``limit`` seconds."""

    @abstractmethod
    def await_stop(self) -> InferenceServerError | None:
        """Wait until they have stopped; return what is wrong with what they have left."""

    @abstractmethod
    def close(self) -> None:
        """End what there is of them."""
