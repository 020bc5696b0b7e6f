"""ServerSpec: what may be asked of a server's configuration, by those who know nothing of what runs it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.launcher.engine.facts import EngineFacts

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.command import Command
    from pytest_infserver.launcher.share import Share
    from pytest_infserver.system.http.address import Address


class ServerSpec(EngineFacts):
    """Answers without starting anything; `ConfiguredServer` is the only subclass.

    Attributes:
        name: Name in test ids, reports and log folders.
        backend_name: What `get_backend_name` has returned, once.
        settings: Everything that was configured.
        launched_command: The command of the last launch, or None.
        share: Which part of a server on several nodes this is; None for one that runs on one node.
    """

    name: str
    backend_name: str
    settings: ServerConfig
    launched_command: Command | None
    share: Share | None

    @property
    @abstractmethod
    def model(self) -> str:
        """The model as configured, or "" for a backend that needs none."""

    @property
    @abstractmethod
    def host(self) -> str:
        """The address that the server listens on, or where its node is reached."""

    @property
    @abstractmethod
    def port(self) -> int:
        """The port; before the start the one that it gets if nobody else has it."""

    @property
    @abstractmethod
    def ports(self) -> Mapping[str, int]:
        """The further ports by name; before the start those that they get if nobody else has them."""

    @property
    @abstractmethod
    def attached(self) -> bool:
        """Whether the server was running already and is not ours to start or stop."""

    @property
    @abstractmethod
    def node(self) -> str | None:
        """The node of a cluster that it runs on, by name and address; None without a cluster."""

    @property
    @abstractmethod
    def server_url(self) -> str:
        """The URL under which clients reach the server from here, with its base path, without a slash at the end."""

    @property
    @abstractmethod
    def address(self) -> Address:
        """Where the server is reached from here, and what a request to it needs."""

    @property
    @abstractmethod
    def api_key(self) -> str | None:
        """The API key that requests to the server need, or None."""

    @property
    @abstractmethod
    def env_vars(self) -> Mapping[str, str | None]:
        """The environment variables of the server as configured, placeholders filled in."""

    @property
    @abstractmethod
    def secrets(self) -> frozenset[str]:
        """Values of the server's command and environment that must not be shown."""

    @property
    @abstractmethod
    def profile_dir(self) -> Path:
        """The folder for the server's traces."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """The process id of the server's root process while it runs here, else None."""

    @abstractmethod
    def process_tree(self) -> list[int]:
        """Return the process ids of the server while it runs, as far as this machine knows them."""

    @abstractmethod
    def url_for(self, *parts: str) -> str:
        """Return the URL of a path on the server, given in one or several parts."""

    @abstractmethod
    def fill(self, words: Sequence[str]) -> list[str]:
        """Return the words of a command with their placeholders filled in."""

    @abstractmethod
    def server_args(self) -> list[str]:
        """Return the engine's arguments from ``config``, as words."""

    @abstractmethod
    def configured_command(self) -> Command:
        """Return the command that was launched, or what the backend says of it: no profiler is in that yet."""

    @abstractmethod
    def why_not_profiled(self, tool: str) -> str | None:
        """Return why this server cannot be profiled with a tool, in words, or None."""
