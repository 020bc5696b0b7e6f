"""What the pool knows of a cluster that its servers run on: this much, and no cluster by name."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig


class Cluster(Protocol):
    """A cluster."""

    seed: Any
    """What another process needs to join it."""

    @property
    def keyed(self) -> Collection[str]:
        """The servers that have an API key of this run."""

    def with_api_key(self, config: ServerConfig) -> ServerConfig:
        """Return a configuration with an API key, if others could reach the server without one."""

    def close(self) -> None:
        """End the connection, and what was started for this run."""
