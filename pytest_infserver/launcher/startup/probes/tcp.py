"""A port, or a unix socket, that accepts connections."""

from __future__ import annotations

import contextlib
import time

from pytest_infserver.launcher.startup.probes.probe import Pointless, Probe
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.probe import Answer, shown_seconds


class TcpProbe(Probe):
    """Opens a connection and closes it."""

    def __init__(self, address: Address) -> None:
        """Connect to nothing yet; ``address`` says where to."""
        self._address = address

    def look(self, limit: float, pointless: Pointless = lambda: False) -> Answer:
        """Connect."""
        begin = time.monotonic()
        problem, refused = "", False
        try:
            with contextlib.closing(self._address.connect(limit)):
                pass
        except TimeoutError:
            problem = f"was not connected within {shown_seconds(limit)} s"
        except ConnectionRefusedError:
            problem, refused = "refused the connection", True
        except (OSError, UnicodeError) as error:
            problem = f"cannot be connected: {getattr(error, 'strerror', None) or error}"
            refused = isinstance(error, FileNotFoundError)
        text = problem or "accepts connections"
        return Answer(None, text, time.monotonic() - begin, good=not problem, refused=refused)

    @property
    def subject(self) -> str:
        """The port or the socket."""
        uds = self._address.shown_uds
        return f"port {self._address.port} of {self._address.host}" if uds is None else f"unix socket {uds}"

    @property
    def expects(self) -> str:
        """A connection."""
        return "a connection"

    @property
    def port(self) -> int | None:
        """The port."""
        return None if self._address.uds is not None else self._address.port
