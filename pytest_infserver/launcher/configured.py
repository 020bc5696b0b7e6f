"""ConfiguredServer: what is known of a server from its settings. Nothing in it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_infserver.config.flags import ARGUMENT_KEYS
from pytest_infserver.config.loading import build_server
from pytest_infserver.config.model import ProfileConfig
from pytest_infserver.config.tree import Tree
from pytest_infserver.config.validation import build_config
from pytest_infserver.errors import InferenceServerError, ProfileError, UserCodeError
from pytest_infserver.launcher import ports
from pytest_infserver.launcher.arguments import ArgumentsError, option_values, to_argv
from pytest_infserver.launcher.changed_options import OutdatedOption, up_to_date
from pytest_infserver.launcher.checks import check_settings, place_of_flag
from pytest_infserver.launcher.command import Command, filled, make_command, require_binary
from pytest_infserver.launcher.devices import DeviceClaim
from pytest_infserver.launcher.engine_facts import EngineFacts
from pytest_infserver.launcher.engine_version import installed_version
from pytest_infserver.launcher.profiling.profiler import SHOWN, Place
from pytest_infserver.launcher.profiling.tools import TOOLS
from pytest_infserver.launcher.share import Share
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.models.builtin import builtin_path, is_builtin

if TYPE_CHECKING:
    from pytest_infserver.launcher.profiling.profiler import Profiler


class ConfiguredServer(EngineFacts):
    """The name, address, command and environment of a server.

    Attributes:
        name: Name in test ids, reports and log folders.
        backend_name: What `get_backend_name` has returned, once.
        settings: Everything that was configured.
        output_dir: Directory that holds the server's log folder.
        device_keys: Names of the devices that were reserved for it; others are told.
        node: The node of a cluster that it runs on, by name and address; None without a cluster.
        remote: Whether that is another machine than this one.
        share: Which part of a server on several nodes this is; None for one that runs on one node.
    """

    def __init__(self, model: str | None, settings: Mapping[str, Any]) -> None:
        """Read the settings, fields of `ServerConfig`; see `InferenceServer`.

        Raises:
            ConfigError: A setting is unknown or has a wrong value.
        """
        backend = settings.get("backend") or asked(self).get_backend_name()
        data = {**settings, "model": model, "backend": backend}
        origins = data.pop("origins", None)
        if origins is None:
            self.settings = build_server(data, f"{type(self).__name__}()")
        else:
            self.settings = build_config(Tree(data, origins))
        self.backend_name: str = asked(self).get_backend_name()
        self.name: str = self.settings.name or self.backend_name
        self.output_dir = Path(self.settings.output_dir).expanduser().absolute()
        self.device_keys: Sequence[str] = ()
        self.node: str | None = None
        self.remote = False
        self.share: Share | None = None
        self._address: str | None = None
        self._port = self.settings.port
        self._command: Command | None = None
        self._launch_commands: tuple[object, dict[tuple[object, ...], Sequence[str]]] = None, {}
        self._given_devices: DeviceClaim | None = None
        self._own_devices: DeviceClaim | None = None
        self._profiler: Profiler | None = None
        self._place: Place | None = None

    # What a backend overrides, together with `InferenceServer.list_endpoints`.

    def get_backend_name(self) -> str:
        """Return the backend's name, as in ``backend:`` and ``@pytest.mark.backend``."""
        raise NotImplementedError

    def get_binary_path(self) -> str:
        """Return the engine's binary: a path, or a name that is looked up on PATH."""
        raise NotImplementedError

    def get_launch_command(self) -> list[str]:
        """Return the command that starts the server."""
        raise NotImplementedError

    def get_health_endpoint(self) -> str:
        """Return the URL that answers 200 when the server is ready."""
        return self.url_for(self.settings.health_endpoint or self.endpoint_paths.get("health", "/health"))

    # What everybody uses.

    @property
    def model(self) -> str:
        """The model as configured, or "" for a backend that needs none."""
        return self.settings.model or ""

    @property
    def model_path(self) -> str:
        """The model as the engine is told: for a built-in one the path of its file."""
        return str(builtin_path(self.model)) if is_builtin(self.model) else self.model

    @property
    def host(self) -> str:
        """The address that the server listens on, or where its node is reached."""
        if self.attached:
            return urlsplit(self.server_url).hostname or ""
        return self._address or self.settings.host

    @property
    def port(self) -> int:
        """The port; before the start the one that it gets if nobody else has it."""
        if self.attached:
            parts = urlsplit(self.server_url)
            return parts.port or {"https": 443}.get(parts.scheme, 80)
        return self._port or ports.DEFAULT_PORT

    @property
    def server_url(self) -> str:
        """The URL under which clients reach the server from here, without a slash at the end."""
        if self.settings.url:
            return self.settings.url
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def serves(self) -> bool:
        """Whether clients are to reach it: not on the further nodes of a server that runs on several."""
        return self.share is None or self.share.rank == 0

    @property
    def binary_path(self) -> str:
        """The engine's binary: the configured one, else the backend's."""
        return self.settings.binary_path or self.get_binary_path()

    @property
    def config(self) -> Mapping[str, Any]:
        """The engine's own settings, as configured."""
        return self.settings.config

    @property
    def env_vars(self) -> Mapping[str, str | None]:
        """The environment variables of the server, as configured."""
        return self.settings.env_vars

    @property
    def debug_mode(self) -> bool:
        """Whether what the server leaves behind is an error."""
        return self.settings.debug_mode

    @property
    def attached(self) -> bool:
        """Whether the server was running already and is not ours to start or stop."""
        return self.settings.url is not None

    @property
    def api_key(self) -> str | None:
        """The API key that the server was given with ``--api-key`` or in the environment, or None."""
        argv = self.server_args() if self.attached else self._as_configured().argv
        values = option_values(argv, "--api-key")
        if values and values[0]:
            return values[0][0]
        return next(filter(None, map(self.env_vars.get, asked(self).api_key_variables)), None)

    @property
    def devices(self) -> DeviceClaim | None:
        """The GPUs that were claimed for it, or None: before its start, or if nothing is known of its needs."""
        return self._given_devices or self._own_devices

    @property
    def profiler(self) -> Profiler | None:
        """The profiler that the server is started for, or None."""
        settings = self.settings.profile
        if settings is None or not settings.enabled:
            return None
        if self._profiler is None or self._profiler.settings is not settings:
            self._profiler = TOOLS[settings.tool](self, settings)
        return self._profiler

    @property
    def profile_dir(self) -> Path:
        """The folder for the server's traces."""
        folder = (self.settings.profile or ProfileConfig()).output_dir
        # What is configured is absolute by now; the default is beside the logs.
        return self.output_dir.parent / Path(folder).expanduser() / self.name

    @property
    def profiler_env_vars(self) -> Mapping[str, str]:
        """The environment variables that the profiler adds."""
        return {} if self.profiler is None else self.profiler.env_vars(self._place or SHOWN)

    @property
    def profiled_at_launch(self) -> bool:
        """Whether it is started for a profiler, or profiled for its whole life: then it is no server for others."""
        profiler = self.profiler
        return profiler is not None and (profiler.at_launch or not profiler.settings.on_demand)

    @property
    def has_engine_below(self) -> bool:
        """Whether what is launched is a profiler, below which the engine runs."""
        return self.profiler is not None and self.profiler.has_engine_below

    def use_profiler(self, tool: str) -> None:
        """Have the next starts made for a profiler, which then profiles what it is asked for.

        Args:
            tool: The profiler. If it is configured already nothing changes.

        Raises:
            ProfileError: The server is configured for another one.
        """
        profiler = self.profiler
        if profiler is None:
            settings = dataclasses.replace(self.profile_settings(tool), enabled=True, on_demand=True)
            self.settings = dataclasses.replace(self.settings, profile=settings)
        elif profiler.name != tool:
            raise profiler.error(f"a server is started for one profiler, and {tool} is asked for as well")

    def check_profiler(self, tool: str) -> None:
        """Make sure that the server can be profiled with a tool, if it is started for it where that needs it.

        Raises:
            ProfileError: It cannot.
        """
        profiler = TOOLS[tool](self, self.profile_settings(tool))
        if not profiler.parts:
            raise profiler.error(
                "it can profile a server's whole life only: 'profile: {tool: amd}' or --infserver-profile"
            )
        if profiler.at_launch:
            self.use_profiler(tool)
        profiler.check()

    def profile_problem(self, *, also_on_demand: bool = True) -> str | None:
        """Return why the server cannot be profiled as configured, or None.

        Args:
            also_on_demand: Look also at what is profiled only when somebody asks for it.
        """
        if self.profiler is None or (self.profiler.settings.on_demand and not also_on_demand):
            return None
        try:
            self.profiler.check()
        except ProfileError as error:
            return str(error).removeprefix(f"{self}: ")
        return None

    def profile_settings(self, tool: str) -> ProfileConfig:
        """Return the settings of a profiler: the configured ones as far as they are about this one."""
        configured = self.settings.profile or ProfileConfig()
        if configured.tool == tool:
            return configured
        return dataclasses.replace(configured, tool=tool, args=(), binary_path=None)

    @property
    def pid(self) -> int | None:
        """The process id of the engine while it runs, else None."""
        return None

    def process_tree(self) -> list[int]:
        """Return the process ids of the server while it runs."""
        return []

    @property
    def secrets(self) -> frozenset[str]:
        """Values of the server's command and environment that must not be shown."""
        try:
            return self._as_configured().secrets
        except InferenceServerError:
            # A backend that cannot make its command: what is said about that is searched for secrets, too.
            return self.configured_secrets

    @property
    def configured_secrets(self) -> frozenset[str]:
        """Those of them that are known without asking the backend for its command."""
        return make_command((), self.env_vars).secrets if self._command is None else self._command.secrets

    def use_devices(self, claim: DeviceClaim | None) -> None:
        """Give the server GPUs for its next starts; they stay the caller's to release.

        Args:
            claim: The GPUs; None lets it claim its own at each start and release them at its end.
        """
        self._given_devices = claim
        self.device_keys = () if claim is None else tuple(device.key for device in claim.devices)

    def url_for(self, path: str) -> str:
        """Return the URL of a path on the server."""
        return f"{self.server_url}/{path.lstrip('/')}"

    def fill(self, words: Sequence[str]) -> list[str]:
        """Return the words of a command with ``{model}``, ``{host}`` and ``{port}`` filled in."""
        return filled(words, {"model": self.model_path, "host": self.host, "port": str(self.port)})

    def server_args(self) -> list[str]:
        """Return the engine's arguments from ``config``, as words."""
        for key in ARGUMENT_KEYS:
            if self.config.get(key) is not None:
                try:
                    return to_argv(self._argument_block(key))
                except ArgumentsError as error:
                    raise self.settings.error(f"'config.{key}': {error}", "config", key, error.key) from None
        return []

    def command(self) -> Command:
        """Return the command that the server was launched with, or that `start` would run, with its environment.

        Raises:
            ConfigError: It has an option that the installed version of the engine does not have any more.
        """
        return self.command_and_notes()[0] if self._command is None else self._command

    def command_and_notes(self) -> tuple[Command, list[str]]:
        """Return the command that `start` would run, and what is left out of it because the engine has dropped it.

        Raises:
            ConfigError: It has an option that the installed version of the engine does not have any more.
        """
        claimed = {} if self.devices is None else self.devices.env_vars
        profiler, place = self.profiler, self._place or SHOWN
        added = self.profiler_env_vars
        argv, notes = self._engine_argv({**self.env_vars, **claimed})
        if profiler is not None:
            argv = profiler.wrap([*argv, *profiler.flags(place)], place)
        return make_command(argv, {**added, **self.env_vars, **claimed, **_own_tmpdir(added)}), notes

    def _engine_argv(self, env_vars: Mapping[str, str | None]) -> tuple[Sequence[str], list[str]]:
        command = make_command(self._launch_command(), env_vars)
        changed = asked(self).changed_options
        if not changed:
            return command.argv, []
        try:
            argv, notes = up_to_date(
                command.argv,
                self.server_args(),
                changed,
                self.backend_name,
                lambda: installed_version(command.argv[0], asked(self).packages, command.env),
            )
        except OutdatedOption as error:
            raise self.settings.error(str(error), *place_of_flag(self.settings, error.flag)) from None
        return argv, notes

    def why_not_profiled(self, tool: str) -> str | None:
        """Return why this server cannot be profiled with a tool, in words, or None."""
        if self.settings.nodes > 1:
            return f"it runs on {self.settings.nodes} nodes, and profiles are made of servers on one node only"
        return None

    def require_engine(self) -> None:
        """Make sure that the engine is installed, before anything is started.

        Raises:
            ServerStartupError: It is not; the message says what to do.
        """
        require_binary(self._as_configured(), str(self), asked(self).install_hint)
        stop_command = self.settings.stop_command
        if stop_command is not None:
            hint = "It is the first word of 'stop_command'."
            require_binary(make_command(self.fill(stop_command), self.env_vars), str(self), hint)

    def __str__(self) -> str:
        return self.name if self.name == self.backend_name else f"{self.name} ({self.backend_name})"

    # The inside.

    def _check_settings(self) -> None:
        check_settings(self)

    def _as_configured(self) -> Command:
        return self._command or make_command(self._launch_command(), self.env_vars)

    def _launch_command(self) -> Sequence[str]:
        """Return the backend's command, for which it is asked once as long as nothing changes that it may depend on."""
        devices = () if self.devices is None else tuple(device.key for device in self.devices.devices)
        depends_on = self.host, self.port, devices, self.share
        settings, known = self._launch_commands
        if settings is not self.settings:
            # Shared with the copies of this object.
            settings, known = self._launch_commands = self.settings, {}
        if depends_on not in known:
            known[depends_on] = self._asked_for_command()
        return known[depends_on]

    def _asked_for_command(self) -> Sequence[str]:
        words = asked(self).get_launch_command()
        if isinstance(words, (str, bytes)) or not isinstance(words, Sequence) or not (words or self.attached):
            raise UserCodeError(
                f"{self}: {type(self).__name__}.get_launch_command() must return a list of words, not {words!r}"
            )
        return tuple(words)

    def _forget_commands(self) -> None:
        """Ask the backend again: a new start is made."""
        self._command = None
        self._launch_commands = self.settings, {}

    def health_url(self) -> str:
        """Return the URL that the backend's `get_health_endpoint` returns.

        Raises:
            UserCodeError: It has raised something, or returned something else.
        """
        url = asked(self).get_health_endpoint()
        if not isinstance(url, str) or "://" not in url:
            raise UserCodeError(f"{self}: {type(self).__name__}.get_health_endpoint() must return a URL, not {url!r}")
        return url

    def _argument_block(self, key: str) -> Mapping[str, Any] | Sequence[Any]:
        value = self.config[key]
        if isinstance(value, (Mapping, list, tuple)):
            return value
        message = f"'config.{key}' must be a mapping or a list: nothing is passed to a shell"
        raise self.settings.error(message, "config", key)

    def _headers(self) -> dict[str, str]:
        key = asked(self).api_key
        return {"Authorization": f"Bearer {key}"} if key else {}


def _own_tmpdir(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the profiler's TMPDIR, which counts more than the user's: the server gets that one back."""
    return {name: value for name, value in variables.items() if name == "TMPDIR"}
