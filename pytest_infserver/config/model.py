"""The frozen settings of one server: the single definition of every key, its kind, default and meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_infserver.config import kinds, reach_kinds
from pytest_infserver.config.kinds import Kind
from pytest_infserver.config.tree import Origins
from pytest_infserver.errors import ConfigError


def _key(kind: Kind, doc: str, default: Any = None) -> Any:
    metadata = {"kind": kind, "doc": doc}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


BACKENDS = ("vllm", "sglang", "llamacpp", "transformers", "command", "remote")
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
    host: str = _key(
        kinds.STRING, "Address to listen on; several, separated by commas, if the engine can.", "127.0.0.1"
    )
    port: int | None = _key(kinds.PORT, "Port; if unset 8000, or a free one when that is taken.")
    url: str | None = _key(kinds.URL, "A running server to attach to; nothing is started or stopped.")
    uds: str | None = _key(kinds.PATH, "Unix socket that it listens on instead of the port.")
    base_path: str | None = _key(reach_kinds.BASE_PATH, "What all paths of the server begin with.")
    ports: Mapping[str, int | None] = _key(
        reach_kinds.PORTS, "Further ports by name, free ones where null; {ports.NAME} in words and env_vars.", {}
    )
    tls: Mapping[str, Any] = _key(
        reach_kinds.TLS, "Whom to trust when it speaks TLS: ca (a file), verify, check_hostname.", {}
    )
    api_key: str | None = _key(kinds.STRING, "API key that requests need.")
    api_key_env: str | None = _key(
        reach_kinds.VARIABLE, "Variable that holds it, in env_vars or else in the environment of pytest."
    )
    binary_path: str | None = _key(kinds.PATH, "The engine's binary, when it is not the one on PATH.")
    cwd: str | None = _key(kinds.PATH, "Directory that it is launched in; the one of pytest if unset.")
    output_dir: str = _key(kinds.PATH, "Directory for logs, one folder per server.", "./server_logs")
    env_vars: Mapping[str, str | None] = _key(
        kinds.ENVIRONMENT, "Environment variables of the server; null unsets one.", {}
    )
    config: Mapping[str, Any] = _key(
        kinds.ENGINE, "The engine's own settings: api_server_args or server_args, a mapping or a list.", {}
    )
    startup_timeout: float = _key(kinds.SECONDS, "Limit from launch to ready, downloads not counted.", 600)
    download_timeout: float = _key(kinds.SECONDS, "Limit of downloads during the start.", 3600)
    download_stall_timeout: float | None = _key(
        kinds.SECONDS, "A download that makes no progress for this long has failed; unlimited if unset."
    )
    stop_timeout: float = _key(kinds.SECONDS, "Time to end by itself before it is killed.", 30)
    memory_release_timeout: float = _key(
        kinds.WAIT,
        "Time for which its start waits until the GPU memory of the server before it is back, before it fails; 0 starts"
        " it all the same.",
        120,
    )
    heartbeat_interval: float = _key(kinds.SECONDS, "Time between health checks.", 5)
    heartbeat_timeout: float = _key(kinds.SECONDS, "Limit of one health check.", 30)
    hang_timeout: float = _key(kinds.SECONDS, "Checks failing for this long mean that it hangs.", 300)
    log_limit: int = _key(kinds.SIZE, "Size that its log may reach, such as 10 GB; 0 for any.", 10_000_000_000)
    on_log_limit: str = _key(kinds.choice("warn", "fail"), "What happens beyond that: fail ends the server.", "warn")
    debug_mode: bool = _key(kinds.FLAG, "Whether what the server leaves behind at its stop is an error.", False)
    check_options: bool = _key(
        kinds.FLAG, "Whether options that the installed engine does not have are refused before its start.", True
    )
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
    entrypoint: tuple[str, ...] | None = _key(
        kinds.COMMAND, "Words that start the engine in place of its usual ones, such as [vllm, launch, render]."
    )
    launch_command: tuple[str, ...] | None = _key(
        kinds.COMMAND, "Command of the `command` backend; {model}, {host}, {port} and {ports.NAME} are filled in."
    )
    stop_command: tuple[str, ...] | None = _key(
        kinds.COMMAND,
        "Command that stops it, where ending the launched process does not (docker run, srun); placeholders as above,"
        " and {pid}.",
    )
    stop_signal: str = _key(reach_kinds.SIGNAL, "Signal that asks it to end, such as INT or TERM.", "SIGTERM")
    on_child_death: str = _key(
        kinds.choice("tell", "fail"),
        "What the death of one of its processes by a signal is while it is in use: told, or the server's end.",
        "tell",
    )
    ready: tuple[Mapping[str, Any], ...] | None = _key(
        reach_kinds.READY,
        "Probe, or list of probes that must all hold, when it is ready: http, tcp, grpc, log, command, request.",
    )
    needs: tuple[str, ...] = _key(
        kinds.STRINGS,
        "Names of servers that are started before it and stopped after it; {servers.NAME.url}, .host and .port"
        " stand for where they are.",
        (),
    )
    health_endpoint: str | None = _key(kinds.ENDPOINT, "Path that answers 200 when the server is ready.")
    endpoints: Mapping[str, str] = _key(kinds.ENDPOINTS, "Further endpoints, name to path.", {})
    reset: tuple[str, ...] = _key(
        kinds.ENDPOINT_LIST, "Paths that get a POST before each test, such as /reset_prefix_cache.", ()
    )
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


def hidden(message: str, configs: Iterable[ServerConfig]) -> str:
    """Return a message about several servers without what came from a ``${VAR}`` of their files."""
    for config in configs:
        message = config.origins.hide(message)
    return message


def check_same(known: ServerConfig, other: ServerConfig) -> None:
    """Make sure that two servers of one name are one server.

    Raises:
        ConfigError: Their settings are different.
    """
    if known != other:
        message = f"another server of this run is called '{known.name}', with other settings; give it another 'name'"
        raise ConfigError(f"{message}, or none: then its name tells the difference")
