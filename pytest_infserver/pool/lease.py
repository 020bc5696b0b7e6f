"""One test's use of one server, and what can be told about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.errors import InferenceServerError
    from pytest_infserver.launcher.server import InferenceServer


@dataclass(frozen=True)
class Lease:
    """One test's use of one server.

    Attributes:
        ticket: Its number, by which it is given back; those that were given together have one number.
        name: The server's name.
        server: The server, ready unless ``error`` is set.
        launch: Which launch of the server it began with; a restart makes it another one.
        log_start: Size of its log, in bytes, when the test began.
        error: Why it could not be had.
        exclusive: Whether nobody else uses it meanwhile; then the test may stop it.
    """

    ticket: int
    name: str
    server: InferenceServer
    launch: int
    log_start: int
    error: InferenceServerError | None = None
    exclusive: bool = False


@dataclass(frozen=True)
class Problem:
    """Something that went wrong at the stop of a server.

    Attributes:
        text: What.
        user: Node id of the test that used it last, or None.
    """

    text: str
    user: str | None
