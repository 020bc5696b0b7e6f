"""How an engine's server is told to begin and to end a profile; each engine's facts stand in its backend's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Options: TypeAlias = "Mapping[str, Any]"


def no_body(folder: str, options: Options) -> Mapping[str, Any] | None:
    """Send nothing with the request."""
    return None


@dataclass(frozen=True)
class ProfileEndpoints:
    """The endpoints and settings with which an engine makes a profile.

    Attributes:
        setup: Gets the folder for the traces, the engine's version (None if unknown) and the user's options; returns
            the flags and the environment variables with which the server has to be started. Raises ValueError with a
            sentence if the version has no such options.
        body: Gets the folder and the options; returns what is sent with the request that starts a profile.
        flags: Flags that do the same and must not be given by the user.
        start: Path of the request that starts a profile.
        stop: Path of the request that stops it and has the files written.
    """

    setup: Callable[[str, str | None, Options], tuple[Sequence[str], Mapping[str, str]]]
    body: Callable[[str, Options], Mapping[str, Any] | None] = no_body
    flags: Sequence[str] = ()
    start: str = "/start_profile"
    stop: str = "/stop_profile"
