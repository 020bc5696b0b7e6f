"""ConfiguredServer: what is known of a server from its settings. Nothing in it runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.config.flags import ARGUMENT_KEYS, to_flag
from pytest_infserver.config.loading import build_server
from pytest_infserver.config.model import ProfileConfig
from pytest_infserver.config.tree import Tree
from pytest_infserver.config.validation import build_config
from pytest_infserver.errors import InferenceServerError, UserCodeError
from pytest_infserver.launcher.address import address_of, api_key_of, configured_key
from pytest_infserver.launcher.allotment import Allotment
from pytest_infserver.launcher.checks.options import check_options
from pytest_infserver.launcher.checks.reach import require_launchable
from pytest_infserver.launcher.checks.settings import check_settings, place_of_flag
from pytest_infserver.launcher.command import Command, make_command, require_binary
from pytest_infserver.launcher.devices import DeviceClaim
from pytest_infserver.launcher.engine.arguments import ArgumentsError, left_out, to_argv
from pytest_infserver.launcher.engine.changed_options import OutdatedOption, up_to_date
from pytest_infserver.launcher.engine.version import installed_version
from pytest_infserver.launcher.placeholders import fill_values, filled
from pytest_infserver.launcher.profiling.profiler import SHOWN
from pytest_infserver.launcher.profiling.tools import TOOLS
from pytest_infserver.launcher.runtime.told import ToldByOwner
from pytest_infserver.launcher.share import Share
from pytest_infserver.launcher.spec import ServerSpec
from pytest_infserver.launcher.startup import ports
from pytest_infserver.launcher.startup.named_ports import named_ports
from pytest_infserver.launcher.user_code import asked, is_ours
from pytest_infserver.models.builtin import builtin_path, is_builtin
from pytest_infserver.system.http.address import Address, parse_address
from pytest_infserver.system.secrets import MIN_LENGTH

if TYPE_CHECKING:
    from pytest_infserver.launcher.profiling.profiler import Profiler


class ConfiguredServer(ServerSpec):
    """The name, address, command and environment of a server.

    Attributes:
        name: Name in test ids, reports and log folders.
        backend_name: What `get_backend_name` has returned, once.
        settings: Everything that was configured.
        output_dir: Directory that holds the server's log folder.
        device_keys: Names of the devices that were reserved for it; others are told.
        own_devices: The GPUs that it has claimed itself; None if others were given to it, or none is needed.
        told: What the process has told that owns it, if this one does not.
        launched_command: The command of the last launch, or None.
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
        self.share: Share | None = None
        self.told = ToldByOwner()
        self.launched_command: Command | None = None
        self.own_devices: DeviceClaim | None = None
        self._given = Allotment(port=self.settings.port)
        self._launch_commands: tuple[object, dict[tuple[object, ...], Sequence[str]]] = None, {}
        self._given_devices: DeviceClaim | None = None
        self._profiler: Profiler | None = None

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
        if self.settings.url is not None:
            return parse_address(self.settings.url).host
        return self.told.host or self.settings.host

    @property
    def port(self) -> int:
        """The port; before the start the one that it gets if nobody else has it."""
        if self.settings.url is not None:
            return parse_address(self.settings.url).port
        return self._given.port or ports.DEFAULT_PORT

    @property
    def server_url(self) -> str:
        """The URL under which clients reach the server from here, with its base path, without a slash at the end."""
        return self.reach.url

    @property
    def address(self) -> Address:
        """Where the server is reached from here, and what a request to it needs."""
        key = asked(self).api_key
        return dataclasses.replace(self.reach, api_key=key, key_source=api_key_of(self, self._known_words())[1])

    @property
    def reach(self) -> Address:
        """Where the server is reached, without its key, for which the backend would be asked for its command."""
        return self.told.reach or address_of(self)

    @property
    def node(self) -> str | None:
        """The node of a cluster that it runs on, by name and address; None without a cluster."""
        return self.told.node

    @property
    def remote(self) -> bool:
        """Whether it runs on another machine than this one."""
        return self.told.remote

    @property
    def is_asked_at_port(self) -> bool:
        """Whether somebody asks it at its own port or socket, so that it must listen there while it runs."""
        ready = self.settings.ready
        return ready is None or any("port" not in one and not {"log", "command"} & set(one) for one in ready)

    @property
    def ports(self) -> Mapping[str, int]:
        """The further ports by name; before the start those that they get if nobody else has them."""
        return named_ports(self.settings.ports, self._given.ports, self.port)

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
        """The environment variables of the server as configured, placeholders filled in."""
        filled_in = fill_values(self.settings.env_vars, self.placeholders)
        key = configured_key(self.settings, filled_in)[0]
        if key is None:
            return filled_in
        variables = asked(self).api_key_variables
        if self.attached or not variables or self._has_key(filled_in):
            return filled_in
        # The engine needs the key, too; on its command line all users of the machine could read it.
        return {**filled_in, variables[0]: key}

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
        """The API key that requests to the server need, or None."""
        return api_key_of(self, self._known_words())[0]

    def _known_words(self) -> Sequence[str]:
        """Return the words that it was, or would be, launched with, also by another process; else its arguments."""
        if self.attached:
            return self.server_args()
        # A backend that draws its key, say, would say something else if it were asked here.
        return self.configured_command().argv if self.told.argv is None else self.told.argv

    @property
    def devices(self) -> DeviceClaim | None:
        """The GPUs that were claimed for it, or None: before its start, or if nothing is known of its needs."""
        return self._given_devices or self.own_devices

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
        return {} if self.profiler is None else self.profiler.env_vars(self._given.place or SHOWN)

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
        if self.told.secrets is not None:
            return self.told.secrets | self._key_secrets
        try:
            return self.configured_command().secrets | self._key_secrets
        except InferenceServerError:
            # A backend that cannot make its command: what is said about that is searched for secrets, too.
            return self.configured_secrets

    @property
    def configured_secrets(self) -> frozenset[str]:
        """Those of them that are known without asking the backend for its command."""
        if self.launched_command is not None:
            return self.launched_command.secrets | self._key_secrets
        # With a key `env_vars` asks the backend, and this is asked for when that has raised something.
        keyed = self.settings.api_key is not None or self.settings.api_key_env is not None
        return make_command((), self.settings.env_vars if keyed else self.env_vars).secrets | self._key_secrets

    @property
    def _key_secrets(self) -> frozenset[str]:
        keys = (self.settings.api_key, os.environ.get(self.settings.api_key_env or ""))
        return frozenset(key for key in keys if key is not None and len(key) >= MIN_LENGTH)

    def use_devices(self, claim: DeviceClaim | None) -> None:
        """Give the server GPUs for its next starts; they stay the caller's to release.

        Args:
            claim: The GPUs; None lets it claim its own at each start and release them at its end.
        """
        self._given_devices = claim
        self.device_keys = () if claim is None else tuple(device.key for device in claim.devices)

    @property
    def allotment(self) -> Allotment:
        """What this launch has been given so far."""
        claim = self.devices
        devices, variables = ((), {}) if claim is None else (claim.devices, claim.env_vars)
        return dataclasses.replace(
            self._given, devices=devices, device_variables=variables, profile=self.settings.profile
        )

    def give(self, **what: Any) -> None:
        """Give something to the next launch, or take it away.

        Args:
            **what: ``port``, ``ports``, ``place`` or ``peers``, as in `Allotment`.
        """
        self._given = dataclasses.replace(self._given, **what)

    def use_peers(self, servers: Iterable[ConfiguredServer]) -> None:
        """Tell the server where those are that it needs."""
        peers = {
            f"servers.{one.name}.{part}": value
            for one in servers
            for part, value in (("url", one.server_url), ("host", ports.hosts_of(one.host)[0]), ("port", str(one.port)))
        }
        self.give(peers=peers)

    def use_allotment(self, allotment: Allotment) -> None:
        """Answer for a launch that another process plans.

        Args:
            allotment: What that one has given to it.
        """
        if allotment == self.allotment:
            return
        claim = DeviceClaim()
        claim.devices, claim.env_vars = allotment.devices, allotment.device_variables
        self.use_devices(claim if allotment.devices or allotment.device_variables else None)
        self._given = allotment
        self.settings = dataclasses.replace(self.settings, profile=allotment.profile)

    def url_for(self, *parts: str) -> str:
        """Return the URL of a path on the server, given in one or several parts."""
        return self.reach.url_for(*parts)

    @property
    def placeholders(self) -> Mapping[str, str]:
        """What ``{model}``, ``{host}``, ``{port}``, ``{ports.NAME}`` and ``{servers.NAME.url}`` stand for."""
        named = {f"ports.{name}": str(port) for name, port in self.ports.items()}
        return {"model": self.model_path, "host": self.host, "port": str(self.port), **named, **self._given.peers}

    def entry(self, *words: str) -> list[str]:
        """Return what stands before the arguments: the binary and these words, or the configured ``entrypoint``."""
        chosen = self.settings.entrypoint
        return [self.binary_path, *words] if chosen is None else [self.settings.binary_path or chosen[0], *chosen[1:]]

    def fill(self, words: Sequence[str]) -> list[str]:
        """Return the words of a command with their placeholders filled in."""
        return filled(words, self.placeholders)

    def server_args(self) -> list[str]:
        """Return the engine's arguments from ``config``, as words."""
        for key in ARGUMENT_KEYS:
            if self.config.get(key) is not None:
                try:
                    words = self.fill(to_argv(self._argument_block(key)))
                    return [*words, *self._address_words(words)]
                except ArgumentsError as error:
                    raise self.settings.error(f"'config.{key}': {error}", "config", key, error.key) from None
        return self._address_words(())

    def command(self) -> Command:
        """Return the command that the server was launched with, or that `start` would run, with its environment.

        Raises:
            ConfigError: It has an option that the installed version of the engine does not have any more.
        """
        return self.launched_command or self.command_and_notes()[0]

    def configured_command(self) -> Command:
        """Return the command that was launched, or what the backend says of it: no profiler is in that yet."""
        return self.launched_command or make_command(self._launch_command(), self.env_vars)

    def command_and_notes(self) -> tuple[Command, list[str]]:
        """Return the command that `start` would run, and what is left out of it because the engine has dropped it.

        Raises:
            ConfigError: It has an option that the installed version of the engine does not have any more.
        """
        claimed = {} if self.devices is None else self.devices.env_vars
        profiler, place = self.profiler, self._given.place or SHOWN
        added = self.profiler_env_vars
        argv, notes = self._engine_argv({**self.env_vars, **claimed})
        # Our own backends know what they leave out.
        missing = [] if is_ours(type(self)) else left_out(self.server_args(), argv)
        if missing:
            notes.append(
                f"its command has nothing of {', '.join(missing)}, which is configured:"
                f" {type(self).__name__}.get_launch_command() has to add *self.server_args()"
            )
        if profiler is not None:
            argv = profiler.wrap([*argv, *profiler.flags(place)], place)
        return make_command(argv, {**added, **self.env_vars, **claimed, **_own_tmpdir(added)}), notes

    def _engine_argv(self, env_vars: Mapping[str, str | None]) -> tuple[Sequence[str], list[str]]:
        command = make_command(self._launch_command(), env_vars)
        try:
            argv, notes = up_to_date(
                command.argv,
                self.server_args(),
                asked(self).changed_options,
                self.backend_name,
                lambda: installed_version(command.argv[0], asked(self).packages, command.env),
            )
        except OutdatedOption as error:
            raise self.settings.error(str(error), *place_of_flag(self.settings, error.flag)) from None
        check_options(self, argv, command.env)
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
        require_binary(self.configured_command(), str(self), asked(self).install_hint)
        stop_command = self.settings.stop_command
        if stop_command is not None:
            hint = "It is the first word of 'stop_command'."
            require_binary(make_command(self.fill(stop_command), self.env_vars), str(self), hint)
        require_launchable(self)

    def __str__(self) -> str:
        return self.name if self.name == self.backend_name else f"{self.name} ({self.backend_name})"

    # The inside.

    def _check_settings(self) -> None:
        check_settings(self)

    def _launch_command(self) -> Sequence[str]:
        """Return the backend's command, for which it is asked once as long as nothing changes that it may depend on."""
        devices = () if self.devices is None else tuple(device.key for device in self.devices.devices)
        depends_on = self.host, self.port, tuple(self.ports.items()), devices, self.share
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

    def forget_commands(self) -> None:
        """Ask the backend again: a new start is made."""
        self.launched_command = None
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

    def _address_words(self, words: Sequence[str]) -> list[str]:
        """Return the arguments that tell the engine what the keys `uds`, `base_path` and `api_key` say."""
        if self.attached:
            return []
        settings, flags = self.settings, asked(self).address_flags
        key = configured_key(settings, self.env_vars)[0]
        told = {"uds": settings.uds, "base_path": settings.base_path, "api_key": key}
        return flags.words_for(told, words)

    def _has_key(self, variables_of: Mapping[str, str | None]) -> bool:
        """Return whether the engine is given a key by its own means."""
        written = [str(word) for key in ARGUMENT_KEYS for word in self.config.get(key) or ()]
        given = {to_flag(word).partition("=")[0] for word in written}
        flags, variables = asked(self).address_flags, asked(self).api_key_variables
        return bool(given & {*flags.api_key, *flags.key_file}) or any(map(variables_of.get, variables))

    def _headers(self) -> dict[str, str]:
        return asked(self).address.headers


def _own_tmpdir(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the profiler's TMPDIR, which counts more than the user's: the server gets that one back."""
    return {name: value for name, value in variables.items() if name == "TMPDIR"}
