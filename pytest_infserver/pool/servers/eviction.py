"""Which servers that an earlier run has kept must give way to one that is about to start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.launcher.keeping.kept import KeptServer
    from pytest_infserver.launcher.server import InferenceServer


def in_the_way(server: InferenceServer, kept: Sequence[KeptServer], places: int) -> list[KeptServer]:
    """Return the kept servers that must be stopped before a server without GPUs, or with GPUs of its own, starts.

    Args:
        server: The server, which is none of them.
        kept: The kept servers, the oldest first.
        places: How many servers without GPUs may be left of them.
    """
    # Its log may lie in NAME-2 as well.
    mine = server.name, server.output_dir
    found = [one for one in kept if one.port == server.settings.port or (one.name, one.log_path.parent.parent) == mine]
    others = [one for one in kept if not one.device_keys and one not in found]
    return found + others[: max(0, len(others) - max(0, places))]


def on_devices(keys: Iterable[str], kept: Sequence[KeptServer]) -> list[KeptServer]:
    """Return the kept servers that hold some of these GPUs, the oldest first."""
    wanted = set(keys)
    return [one for one in kept if wanted.intersection(one.device_keys)]


def sent_away(kept: KeptServer, reason: str) -> str:
    """Stop a kept server, and return how that went.

    Args:
        kept: The server.
        reason: Why, in words that follow "was stopped".
    """
    gone, words = kept.end()
    how = f"was stopped{reason}" if gone else f"should be stopped{reason}, and {words}"
    return f"{kept.name}, kept by an earlier run, {how}"
