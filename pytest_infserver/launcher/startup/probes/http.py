"""A GET that must be answered with 2xx, or with one of some statuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from pytest_infserver.launcher.startup.probes.probe import Pointless, Probe, key_hint
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.probe import Answer, ask

_HINTS = {405: "it takes no GET there; 'ready: {request: {path: ..., json: ...}}' sends a POST"}


class HttpProbe(Probe):
    """Asks a URL."""

    def __init__(self, address: Address, url: str, statuses: Sequence[int] = (), asking: Callable[..., Answer] = ask):
        """Ask nobody yet.

        Args:
            address: Where the server is reached.
            url: What is asked.
            statuses: What the answer may be; none means any 2xx.
            asking: Does it.
        """
        self._address = address
        self._url = url
        self._statuses = tuple(statuses)
        self._ask = asking

    def look(self, limit: float, pointless: Pointless = lambda: False) -> Answer:
        """Ask."""
        answer = self._ask(self._url, limit, headers=self._address.headers, pointless=pointless, address=self._address)
        good = answer.status in self._statuses if self._statuses else answer.ok
        hint = "" if good else key_hint(answer.status, self._address) or _HINTS.get(answer.status or 0, "")
        return dataclasses.replace(answer, good=good, problem=hint or answer.problem)

    @property
    def subject(self) -> str:
        """The URL."""
        return self._address.shown(self._url)

    @property
    def expects(self) -> str:
        """The statuses, if some are configured."""
        return f"status {' or '.join(map(str, self._statuses))}" if self._statuses else ""

    @property
    def port(self) -> int | None:
        """The port of the URL."""
        parts = urlsplit(self._url)
        if self._address.uds is not None and self._address.covers(self._url):
            return None
        return parts.port or {"https": 443}.get(parts.scheme, 80)
