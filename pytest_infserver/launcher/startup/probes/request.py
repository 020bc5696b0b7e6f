"""A real request: only a server that has loaded its model answers it, and it warms it up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, ClassVar

from pytest_infserver.launcher.startup.probes.probe import Pointless, Probe, key_hint
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.probe import Answer, ask


class RequestProbe(Probe):
    """Sends a request once until it is answered well: a POST with JSON, else a GET."""

    once: ClassVar[bool] = True
    quick: ClassVar[bool] = False

    def __init__(self, address: Address, path: str, body: Any, statuses: Sequence[int] = ()) -> None:
        """Send nothing yet.

        Args:
            address: Where the server is reached.
            path: The path.
            body: What is sent as JSON; None for a GET.
            statuses: What the answer may be; none means any 2xx that reports no error in its JSON.
        """
        self._address = address
        self._url = address.url_for(path)
        self._body = None if body is None else json.dumps(body).encode()
        self._statuses = tuple(statuses)

    def look(self, limit: float, pointless: Pointless = lambda: False) -> Answer:
        """Send it, and wait for the whole answer."""
        answer = ask(
            self._url,
            limit,
            headers=self._address.headers,
            pointless=pointless,
            address=self._address,
            post=self._body,
            whole=True,
        )
        # Whoever names statuses may mean an answer that is an error.
        good = answer.status in self._statuses if self._statuses else answer.ok
        hint = "" if good else key_hint(answer.status, self._address)
        return dataclasses.replace(answer, good=good, problem="" if good else hint or answer.problem)

    @property
    def subject(self) -> str:
        """The URL, and how it is asked."""
        return f"{'GET' if self._body is None else 'POST'} {self._address.shown(self._url)}"

    @property
    def expects(self) -> str:
        """The statuses."""
        return f"status {' or '.join(map(str, self._statuses)) if self._statuses else '2xx without an error'}"

    @property
    def port(self) -> int | None:
        """The port of the server."""
        return None if self._address.uds is not None else self._address.port
