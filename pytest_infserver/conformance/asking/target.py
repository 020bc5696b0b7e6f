"""A server under test, and why something could not be asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_infserver.conformance.asking.exchange import NoAnswer, Request, send
from pytest_infserver.conformance.asking.shapes import user
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.fetch import Limits

CHAT = "/v1/chat/completions"
_LOOK_SHARE = 0.25
"""Part of a request's time that a server has to show that it answers again."""
_GIVE_UP_AFTER = 3
"""Tests in a row without an answer after which nothing more is asked."""


class NotOffered(Exception):
    """The server says that it does not offer what was asked for."""


class NotAsked(Exception):
    """It could not be found out; the text says why."""


class Unclear(NotAsked):
    """It could not be found out, and that is nobody's fault: the model did not say enough to tell."""


@dataclass
class Target:
    """A server under test, with what is known of it.

    Attributes:
        name: Its name in the grid.
        address: Where it is.
        model: The model that requests name; "" for one that is asked for.
        limits: What each request may cost.
        version: The engine and its version, as far as it is known.
        silent: How many tests in a row had no answer.
        offers: Paths that were asked for, with the reason why they are not offered, or None.
        look_with: What shows whether a server that had no answer is well again.
    """

    name: str
    address: Address
    model: str
    limits: Limits
    version: str = ""
    silent: int = 0
    offers: dict[str, str | None] = field(default_factory=dict)
    look_with: Request = field(default_factory=lambda: Request("GET", "/v1/models"))

    def note_silence(self, request: Request) -> None:
        """Remember that a request had no answer, and what shows whether the server is well again."""
        self.silent += 1
        if request.method == "POST":
            # A server that is stuck in a long answer may well say which models it has.
            small = {"model": self.model, "messages": [user("Hi")], "max_tokens": 1}
            self.look_with = Request("POST", CHAT, small)

    def look(self) -> None:
        """Ask whether the server still answers, where the last test had no answer.

        Raises:
            NotAsked: It does not.
        """
        if not self.silent:
            return
        if self.silent >= _GIVE_UP_AFTER:
            raise NotAsked(f"the server did not answer {self.silent} tests in a row: nothing more was asked")
        limits = Limits(self.limits.seconds * _LOOK_SHARE, self.limits.max_bytes)
        try:
            send(self.address, self.look_with, limits)
        except NoAnswer as error:
            self.silent += 1
            what = f"{self.look_with.method} {self.look_with.path}"
            raise NotAsked(f"the server does not answer any more: {what} {error}") from None
        self.silent = 0
