"""The frozen settings of one server: the single definition of every key, its kind, default and meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_infserver.config import kinds
from pytest_infserver.config.kinds import Kind
from pytest_infserver.config.tree import Origins
from pytest_infserver.errors import ConfigError


def _key(kind: Kind, doc: str, default: Any = None) -> Any:
    metadata = {"kind": kind, "doc": doc}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


PROFILERS = ("nsys", "pytorch", "amd", "py-spy")


@dataclass(frozen=True)
class ProfileConfig:
    """The ``profile:`` block of a server."""

    enabled: bool = _key(kinds.FLAG, "Whether the server is profiled.", True)
    on_demand: bool = _key(
        kinds.FLAG, "Whether only what tests and scripts ask for is profiled, not the server's whole life.", False
    )
    tool: str = _key(kinds.choice(*PROFILERS), "The profiler.", "nsys")
    output_dir: str = _key(kinds.PATH, "Directory for the traces, one folder per server.", "./profiles")
    args: tuple[str, ...] = _key(
        kinds.STRINGS, "Further arguments of the profiler; of pytorch settings such as with_stack=true.", ()
    )
    binary_path: str | None = _key(kinds.PATH, "The profiler's binary, when it is not on PATH.")
    flush_timeout: float = _key(kinds.SECONDS, "Time to write a trace.", 1200)


PROFILE = Kind(lambda value: value, {})
"""Kind of the nested ``profile`` block; `validation` checks it by ProfileConfig's own keys."""


@dataclass(frozen=True)
class ServerConfig:
    """Everything that is known about one server before it starts.

    Made by `load_server_config`, `create_server` or a server's constructor; the keys of the YAML file and the
    keyword arguments of the API are these fields. Times are in seconds.
    """

    name: str = _key(kinds.NAME, "Name in test ids, reports and log folders; the backend's name if unset.", "")
    backend: str = _key(kinds.STRING, "Name of a backend, or package.module:Class.", "")
    model: str | None = _key(kinds.PATH, "Model name or path, builtin:tiny or builtin:smollm2.")
    host: str = _key(kinds.STRING, "Address to listen on.", "127.0.0.1")
    port: int | None = _key(kinds.PORT, "Port; if unset 8000, or a free one when that is taken.")
    url: str | None = _key(kinds.URL, "A running server to attach to; nothing is started or stopped.")
    binary_path: str | None = _key(kinds.PATH, "The engine's binary, when it is not the one on PATH.")
    output_dir: str = _key(kinds.PATH, "Directory for logs, one folder per server.", "./server_logs")
    env_vars: Mapping[str, str | None] = _key(
        kinds.ENVIRONMENT, "Environment variables of the server; null unsets one.", {}
    )
    config: Mapping[str, Any] = _key(
        kinds.ENGINE, "The engine's own settings: api_server_args or server_args, a mapping or a list.", {}
    )
    startup_timeout: float = _key(kinds.SECONDS, "Limit from launch to ready, downloads not counted.", 600)
    download_timeout: float = _key(kinds.SECONDS, "Limit of downloads during the start.", 3600)
    stop_timeout: float = _key(kinds.SECONDS, "Time to end by itself before it is killed.", 30)
    heartbeat_interval: float = _key(kinds.SECONDS, "Time between health checks.", 5)
    heartbeat_timeout: float = _key(kinds.SECONDS, "Limit of one health check.", 30)
    hang_timeout: float = _key(kinds.SECONDS, "Checks failing for this long mean that it hangs.", 300)
    debug_mode: bool = _key(kinds.FLAG, "Whether what the server leaves behind at its stop is an error.", False)
    allow_leaks: tuple[str, ...] = _key(
        kinds.LEAKS, "What it may leave behind with a warning: kind:pattern, such as shm:sglang_*.", ()
    )
    profile: ProfileConfig | None = _key(PROFILE, "Profile the server: enabled, tool, output_dir, args.")
    gpus: int | None = _key(kinds.COUNT, "Number of GPUs that the server needs; 0 hides them from it.")
    cpus: float | None = _key(kinds.AMOUNT, "CPUs that it asks of a cluster, on each node; 1 if unset.")
    resources: Mapping[str, float] = _key(
        kinds.RESOURCES, "Amounts of a cluster's own resources that it asks for, on each node.", {}
    )
    nodes: int = _key(kinds.NODES, "Number of machines of a cluster that it runs on.", 1)
    launch_command: tuple[str, ...] | None = _key(
        kinds.COMMAND, "Command of the `command` backend; {model}, {host} and {port} are filled in."
    )
    stop_command: tuple[str, ...] | None = _key(
        kinds.COMMAND,
        "Command that stops it, where ending the launched process does not (docker run, srun); placeholders as above.",
    )
    health_endpoint: str | None = _key(kinds.ENDPOINT, "Path that answers 200 when the server is ready.")
    endpoints: Mapping[str, str] = _key(kinds.ENDPOINTS, "Further endpoints, name to path.", {})
    own_listener: bool = _key(
        kinds.FLAG, "Whether the port must be opened by the launched processes (not so under docker).", True
    )

    origins: Origins = dataclasses.field(default_factory=Origins, repr=False, compare=False)

    def keywords(self) -> dict[str, Any]:
        """Return what was configured as keyword arguments: ``create_server(c.backend, **c.keywords())``."""
        defaults = ServerConfig()
        values = {key: getattr(self, key) for key in keys(ServerConfig) if key != "backend"}
        return {key: value for key, value in values.items() if value != getattr(defaults, key)}

    def error(self, message: str, *path: str | int) -> ConfigError:
        """Return a ConfigError that points at the place ``path`` (keys below the server) came from."""
        label = f"server '{self.name}': " if self.name else ""
        return self.origins.error(label + message, tuple(path))


def keys(model: type[ServerConfig] | type[ProfileConfig]) -> dict[str, dataclasses.Field[Any]]:
    """Return the keys that a user may write in a block, with their definitions."""
    return {field.name: field for field in dataclasses.fields(model) if "kind" in field.metadata}
