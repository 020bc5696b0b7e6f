"""What all probes have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.probe import Answer

Pointless = Callable[[], bool]
_NEEDS_KEY = (401, 403)


class Probe(ABC):
    """One question whose answer tells whether a server is ready.

    Attributes:
        once: Whether it has held for good when it has held once, so that heartbeats do not ask it.
        quick: Whether the answer comes at once or not at all.
    """

    once: ClassVar[bool] = False
    quick: ClassVar[bool] = True

    @abstractmethod
    def look(self, limit: float, pointless: Pointless = lambda: False) -> Answer:
        """Ask.

        Args:
            limit: Seconds that the answer may take.
            pointless: Asked now and then; when it says so, the answer is not waited for any more.
        """

    def keep(self) -> None:  # noqa: B027
        """Keep the connection of a look for the next one, where opening it is what costs; until `close`."""

    def close(self) -> None:  # noqa: B027
        """Close what is kept."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is asked, in words before what was seen: a URL, say."""

    @property
    def expects(self) -> str:
        """What it waits for, in words; "" where that goes without saying."""
        return ""

    @property
    def port(self) -> int | None:
        """The TCP port that it asks, or None."""
        return None

    def told(self, answer: Answer) -> str:
        """Return what was seen and what was expected, in words."""
        expected = f" (expected: {self.expects})" if self.expects else ""
        return f"{self.subject} {answer}{expected}"


def key_hint(status: int | None, address: Address) -> str:
    """Return what to do about an answer that wants a key; "" for any other."""
    if status not in _NEEDS_KEY:
        return ""
    if address.api_key is None and address.key_source:
        return f"it wants an API key, and {address.key_source}"
    if address.api_key is None:
        return "it wants an API key; name it with 'api_key' or 'api_key_env'"
    return f"it does not take the API key that was sent, which {address.key_source or 'the configuration'} names"
