"""InferenceServer: one server, from its settings to its end. Every backend is a subclass."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pytest_infserver.config.flags import ARGUMENT_KEYS
from pytest_infserver.config.loading import build_server
from pytest_infserver.config.model import ServerConfig
from pytest_infserver.config.tree import Tree
from pytest_infserver.config.validation import build_config
from pytest_infserver.errors import (
    InferenceServerError,
    LeakError,
    PortInUseError,
    ProfileError,
    ServerDiedError,
    ServerStartupError,
)
from pytest_infserver.launcher import diagnosis, handover, messages, ports
from pytest_infserver.launcher.arguments import ArgumentsError, option_values, to_argv
from pytest_infserver.launcher.attach import wait_for_url
from pytest_infserver.launcher.changed_options import OutdatedOption, up_to_date
from pytest_infserver.launcher.checks import check_settings, missing_model, place_of_flag
from pytest_infserver.launcher.command import Command, filled, make_command, require_binary
from pytest_infserver.launcher.devices import DeviceClaim, claim_for
from pytest_infserver.launcher.endpoints import existing
from pytest_infserver.launcher.engine_facts import EngineFacts
from pytest_infserver.launcher.engine_version import installed_version
from pytest_infserver.launcher.follower import FollowedProcess, Keeper, View
from pytest_infserver.launcher.hang import write_hang_report
from pytest_infserver.launcher.heartbeat import Heartbeat
from pytest_infserver.launcher.http_probe import Answer, ask, shown_seconds
from pytest_infserver.launcher.leaks.check import LeakCheck
from pytest_infserver.launcher.leaks.report import LeakReport, as_known_text, as_text, is_allowed
from pytest_infserver.launcher.leaks.temporary_files import PYTORCH_CACHES
from pytest_infserver.launcher.log import MAX_READ, ServerLog
from pytest_infserver.launcher.process import Exit, Launch, LaunchFailed, ServerProcess, Survivor
from pytest_infserver.launcher.readiness import NotReady, ReadinessCheck, wait_until_ready
from pytest_infserver.launcher.redaction import redact
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.models.builtin import builtin_path, ensure_builtin, is_builtin

logger = logging.getLogger("pytest_infserver")

Self = TypeVar("Self", bound="InferenceServer")

_PORT_ATTEMPTS = 3
_MEMORY_LIMIT = 10.0
"""Seconds that the driver gets to take a server's GPU memory back before its devices are released."""


@dataclasses.dataclass
class _StartToken:
    """One start that is under way: a cancellation that comes late must not hit the next one."""

    cancelled: bool = False


class InferenceServer(EngineFacts):
    """One inference server.

    A backend overrides `get_backend_name`, `get_binary_path`, `get_launch_command`, `get_health_endpoint` and
    `list_endpoints`; the attributes of `EngineFacts` are what it may say beyond that.

    Attributes:
        name: Name in test ids, reports and log folders.
        settings: Everything that was configured.
        output_dir: Directory that holds the server's log folder.
        survivors: Processes that had to be killed at the last stop.
        leak_report: Debug mode: what the server was found to have left behind at its last end.
        start_seconds: How long the last start took.
        launches: How often the server's process was launched.
        launch_log_start: Size of the log, in bytes, before the last launch.
        on_progress: Gets a line of text when something before the launch takes long.
        on_warning: Gets a text about something that works, but not as one would want it.
        on_wait: Gets the server some four times a second while it starts, and once when it does not any more.
        phase: What it is doing while it starts, as far as its log tells.
        taken_over: Whether it was running already when `take_over` made it this object's.
        why_not_kept: Why the last `keep` did not keep it, in words.
        holds_port: Whether its port is held between its end and its next start, until `release_port`.
        device_keys: Names of the devices that were reserved for it; others are told.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """Configure a server; nothing is started.

        Args:
            model: Model name or path, ``builtin:tiny`` or ``builtin:smollm2``.
            **settings: Any other field of `ServerConfig`; times are in seconds.

        Raises:
            ConfigError: A setting is unknown or has a wrong value.
        """
        origins = settings.pop("origins", None)
        backend = settings.pop("backend", None) or self.get_backend_name()
        data = {**settings, "model": model, "backend": backend}
        if origins is None:
            self.settings = build_server(data, f"{type(self).__name__}()")
        else:
            self.settings = build_config(Tree(data, origins))
        self.name: str = self.settings.name or self.get_backend_name()
        self.output_dir = Path(self.settings.output_dir).expanduser().absolute()
        self.survivors: tuple[Survivor, ...] = ()
        self.leak_report: LeakReport | None = None
        self.start_seconds: float | None = None
        self.on_progress: Callable[[str], None] = logger.info
        self.on_warning: Callable[[str], None] = logger.warning
        self.on_wait: Callable[[InferenceServer], None] = lambda server: None
        self.phase = ""
        self._start_began: float | None = None
        self._start_token: _StartToken | None = None
        self._port = self.settings.port
        self._log = ServerLog(self.output_dir, self.name)
        self.launch_log_start = 0
        self._process: ServerProcess | None = None
        self._leak_check: LeakCheck | None = None
        self._heartbeat: Heartbeat | None = None
        self._given_devices: DeviceClaim | None = None
        self._own_devices: DeviceClaim | None = None
        self._state = ServerState.NEW
        self._command: Command | None = None
        self._hang: str | None = None
        self._stop_refusal: str | None = None
        self._keeper: Keeper | None = None
        self._lifecycle = threading.RLock()
        self._owner = os.getpid()
        self.launches = 0
        self.taken_over = False
        self.holds_port = False
        self._reservation: ports.Reservation | None = None
        self.why_not_kept: str | None = None
        self.device_keys: Sequence[str] = ()
        self._check_settings()

    @classmethod
    def from_config(cls: type[Self], config: ServerConfig) -> Self:
        """Make a server from a resolved configuration.

        Raises:
            ConfigError: The configuration does not fit this backend; it points into the YAML file.
        """
        return cls(**config.keywords(), backend=config.backend, origins=config.origins)

    # What a backend overrides.

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

    def list_endpoints(self) -> dict[str, str]:
        """Return name to URL of the endpoints; while the server runs only of those that exist."""
        paths = dict(self.endpoint_paths)
        if self.state is ServerState.READY:
            paths = existing(self.server_url, paths, self.mounted_endpoints, self._headers())
        return {name: self.url_for(path) for name, path in {**paths, **self.settings.endpoints}.items()}

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
        """The address that the server listens on."""
        return self.settings.host if not self.attached else urlsplit(self.server_url).hostname or ""

    @property
    def port(self) -> int:
        """The port; before the start the one that it gets if nobody else has it."""
        if self.attached:
            parts = urlsplit(self.server_url)
            return parts.port or {"https": 443}.get(parts.scheme, 80)
        return self._port or ports.DEFAULT_PORT

    @property
    def server_url(self) -> str:
        """The URL under which clients on this machine reach the server, without a slash at the end."""
        if self.settings.url:
            return self.settings.url
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

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
    def pid(self) -> int | None:
        """The process id of the server's root process while it runs, else None."""
        process = self._process
        return process.pid if process is not None and process.exit is None else None

    @property
    def log_path(self) -> Path:
        """The server's log file."""
        return self._log.path

    @property
    def state(self) -> ServerState:
        """Where the server is in its life; a death is noticed at once."""
        if self._state is ServerState.READY and self._process is not None and self._process.exit is not None:
            self._state = ServerState.DIED
        return self._state

    @property
    def running(self) -> bool:
        """Whether the server is ready to be used."""
        return self.state is ServerState.READY

    @property
    def starting_seconds(self) -> float | None:
        """How long the start that is under way has taken so far, or None if there is none."""
        return None if self._start_began is None else time.monotonic() - self._start_began

    @property
    def launched(self) -> bool:
        """Whether there is something to stop: it runs, or has died."""
        return self._state not in (ServerState.NEW, ServerState.STOPPED, ServerState.FAILED)

    @property
    def api_key(self) -> str | None:
        """The API key that the server was given with ``--api-key`` or in the environment, or None."""
        argv = self.server_args() if self.attached else self._as_configured().argv
        values = option_values(argv, "--api-key")
        if values and values[0]:
            return values[0][0]
        return next(filter(None, map(self.env_vars.get, self.api_key_variables)), None)

    @property
    def devices(self) -> DeviceClaim | None:
        """The GPUs that were claimed for it, or None: before its start, or if nothing is known of its needs."""
        return self._given_devices or self._own_devices

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

    def read_log(self, start: int = 0, limit: int = MAX_READ) -> str:
        """Return the log from byte ``start`` on, at most its last ``limit`` bytes, secrets included."""
        # Before the first launch the file is that of an earlier server.
        return self._log.read(start, limit) if self.launches or self.taken_over else ""

    @property
    def log_size(self) -> int:
        """The size of the log in bytes."""
        return self._log.size() if self.launches or self.taken_over else 0

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
        command = make_command(self.get_launch_command(), {**self.env_vars, **claimed})
        if not self.changed_options:
            return command, []
        try:
            argv, notes = up_to_date(
                command.argv,
                self.server_args(),
                self.changed_options,
                self.get_backend_name(),
                lambda: installed_version(command.argv[0], self.packages, command.env),
            )
        except OutdatedOption as error:
            raise self.settings.error(str(error), *place_of_flag(self.settings, error.flag)) from None
        return dataclasses.replace(command, argv=tuple(argv)), notes

    @property
    def secrets(self) -> frozenset[str]:
        """Values of the server's command and environment that must not be shown."""
        return self._as_configured().secrets

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

    def check_health(self, timeout: float | None = None) -> bool:
        """Ask the server now whether it is healthy.

        Args:
            timeout: Seconds that it has to answer; ``heartbeat_timeout`` if None.
        """
        alive = self.attached or (self._process is not None and self._process.exit is None)
        return alive and self._ask_health(timeout).ok

    def start(self: Self) -> Self:
        """Start the server and return when it is ready; no effect when it is running.

        Raises:
            ServerStartupError: It did not become ready; nothing of it is left running.
            ServerStartupTimeout: It took too long.
            ConfigError: It has an option that the installed version of the engine does not have any more.
            ProfileError: The profile that is configured cannot be made.
        """
        if self._keeper is not None:
            self._keeper.start(self)
            return self
        if self.launched:
            self._require_owner("start it again")
        with self._lifecycle:
            if self.state is ServerState.READY:
                return self
            self._start_token = _StartToken()
            begin = self._start_began = time.monotonic()
            self.phase = self.first_phase
            try:
                if self._process is not None:
                    self._end_process()
                    self._await_memory(self.devices)
                    self._warn_of_leftovers()
                self._owner = os.getpid()
                self._state = ServerState.STARTING
                self._command = None
                self._hang = None
                if self.attached:
                    wait_for_url(self.server_url, self._ask_attached, self.settings.startup_timeout, str(self))
                else:
                    self._start_process()
                self._raise_if_cancelled()
                self._state = ServerState.READY
                self._start_heartbeat()
                self.start_seconds = time.monotonic() - begin
                # Not in a finally: an interrupt in it would leave the server running.
                self._end_waiting()
                return self
            except BaseException:
                self._state = ServerState.FAILED
                try:
                    self._end_process()
                finally:
                    self._release_devices()
                    self.release_port()
                self._warn_of_leftovers()
                self._end_waiting()
                raise

    def cancel_start(self) -> None:
        """Make a start that is under way in another thread fail soon with `ServerStartupError`.

        May be called from any thread and from a signal handler. It has no effect if no start is under way, or if one
        is as good as done: whoever wants the server gone calls `stop` afterwards.
        """
        token = self._start_token
        if token is not None:
            token.cancelled = True

    def kill(self) -> None:
        """End the server at once, without the time that `stop` gives it; also while another thread waits in `stop`."""
        self._require_owner("kill it")
        self.cancel_start()
        process = self._process
        if process is not None:
            process.stop(0)

    def stop(self) -> None:
        """Stop the server and everything that it started; no effect when it does not run.

        Raises:
            LeakError: Debug mode: it left something behind; that is gone by now.
            InferenceServerError: The server is shared with other tests, or belongs to another process.
        """
        if self._stop_refusal is not None:
            raise InferenceServerError(self._stop_refusal)
        self._require_owner("stop it")
        if self._keeper is not None:
            self._keeper.stop(self)
            return
        with self._lifecycle:
            orderly = self.state is ServerState.READY
            if self._state is ServerState.NEW:
                return
            had_process = self._process is not None
            try:
                self._state = ServerState.STOPPING
                orderly = self._end_process(orderly=orderly)
                self._await_memory(self._own_devices)
            except BaseException:
                if self._process is not None:
                    self._process.close()
                raise
            finally:
                self._state = ServerState.STOPPED
                self._release_devices()
                if not self.holds_port:
                    self.release_port()
            if orderly:
                self._report_leftovers()
            elif had_process:
                self._warn_of_leftovers()

    def keep(self, seconds: float) -> bool:
        """Let go of the running server without stopping it, for a later run that needs the same one.

        From then on it does not belong to this object, whose state is STOPPED.

        Args:
            seconds: When nobody has taken it over in that time, it is stopped.

        Returns:
            Whether that was possible; if not, `why_not_kept` says why, and the server is this object's as before.

        Raises:
            InferenceServerError: The server is shared with other tests, or belongs to another process.
        """
        if self._stop_refusal is not None:
            raise InferenceServerError(self._stop_refusal)
        self._require_owner("let go of it")
        with self._lifecycle:
            return handover.keep(self, seconds)

    def take_over(self) -> bool:
        """Take over a server that an earlier run has kept, if there is one that is just like this one and healthy.

        Returns:
            Whether that went well: the server is ready then, and `start` is not needed.
        """
        with self._lifecycle:
            return not self.launched and handover.take_over(self)

    def _report_leftovers(self) -> None:
        report = self.leak_report
        if report is not None and report.findings:
            text = as_text(str(self), report.findings)
            if report.failed:
                raise LeakError(text, report.findings)
            known = [*PYTORCH_CACHES, *self.known_leftovers]
            if all(is_allowed(finding, known) for finding in report.findings):
                text = as_known_text(str(self), report.findings)
            self.on_warning(text)
        elif report is None and self.survivors:
            text = messages.survivors(str(self), self.survivors, self.settings.stop_timeout)
            self.on_warning(redact(text, self.secrets))

    def why_died(self) -> str | None:
        """Return how and why the server died, or None if it did not."""
        if self.state is not ServerState.DIED or self._process is None:
            return None
        how = self._hang or str(self._process.exit)
        return messages.death(str(self), how, self._root_cause(self.cause_patterns), self.log_path, self.secrets)

    def raise_if_dead(self) -> None:
        """Raise if the server has died.

        Raises:
            ServerDiedError: It has; the message says how and why.
        """
        reason = self.why_died()
        if reason is not None:
            raise ServerDiedError(reason)

    def wait_death(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the server's end; tell whether it has died."""
        if self._process is not None:
            self._process.wait_exit(timeout)
        return self.state is ServerState.DIED

    def start_profile(self) -> None:
        """Begin to profile.

        Raises:
            ProfileError: Always: this version cannot profile.
        """
        raise ProfileError(f"{self}: this version of pytest-infserver cannot profile")

    def stop_profile(self) -> None:
        """End a profile.

        Raises:
            ProfileError: Always: no profile is running.
        """
        raise ProfileError(f"{self}: no profile is running")

    def pause_heartbeat(self) -> None:
        """Keep the server from being taken for hung, as under a debugger, until `resume_heartbeat`."""
        if self._heartbeat is not None:
            self._heartbeat.pause()

    def resume_heartbeat(self) -> None:
        """Undo one `pause_heartbeat`."""
        if self._heartbeat is not None:
            self._heartbeat.resume()

    def view(self) -> View:
        """Return what another process has to know to use this server; see `follow`."""
        process = self._process
        return View(
            port=self.port,
            pid=self.pid,
            supervisor_pid=None if process is None else process.supervisor_pid,
            running=self.running,
            launches=self.launches,
            log_path=self.log_path,
            launch_log_start=self.launch_log_start,
            start_seconds=self.start_seconds,
        )

    def follow(self, view: View, keeper: Keeper) -> FollowedProcess:
        """Stand for a server that another process owns.

        Args:
            view: What that one's `view` has returned.
            keeper: Starts and stops it.

        Returns:
            The process, which has to be told of its end.
        """
        self._keeper = keeper
        self._owner = os.getpid()
        self._port = None if self.attached else view.port
        self._log.path = view.log_path
        self._hang = None
        self.launches = view.launches
        self.taken_over = view.running and not view.launches
        self.launch_log_start = view.launch_log_start
        self.start_seconds = view.start_seconds
        process = FollowedProcess(view)
        self._process = None if self.attached else process
        self._state = ServerState.READY if view.running else ServerState.STOPPED
        return process

    def note_end(self, process: FollowedProcess, how: Exit, hang: str | None) -> None:
        """Note how a server that another process owns has ended.

        Args:
            process: What `follow` has returned.
            how: How.
            hang: Why it was killed, if it was taken for hung.
        """
        if process is self._process:
            self._hang = hang
        process.ended(how)

    @property
    def last_exit(self) -> tuple[Exit | None, str | None]:
        """How the process of the last launch has ended, if it has, and why it was killed if it hung."""
        return (None if self._process is None else self._process.exit), self._hang

    def refuse_stop(self, reason: str | None) -> None:
        """Make `stop` fail with ``reason``, for a server that others use too; None allows it again."""
        self._stop_refusal = reason

    def __enter__(self: Self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except LeakError as leak:
            if error is None:
                raise
            # What went wrong in the block comes first.
            self.on_warning(str(leak))

    def __str__(self) -> str:
        backend = self.get_backend_name()
        return self.name if self.name == backend else f"{self.name} ({backend})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state} {self.server_url}>"

    # The inside.

    def _require_owner(self, deed: str) -> None:
        if os.getpid() != self._owner:
            raise InferenceServerError(f"{self} belongs to process {self._owner}: only that one may {deed}")

    def _check_settings(self) -> None:
        check_settings(self)

    def _as_configured(self) -> Command:
        return self._command or make_command(self.get_launch_command(), self.env_vars)

    def _argument_block(self, key: str) -> Mapping[str, Any] | Sequence[Any]:
        value = self.config[key]
        if isinstance(value, (Mapping, list, tuple)):
            return value
        message = f"'config.{key}' must be a mapping or a list: nothing is passed to a shell"
        raise self.settings.error(message, "config", key)

    def _ask_health(self, limit: float | None = None) -> Answer:
        limit = limit or self.settings.heartbeat_timeout
        return ask(self.get_health_endpoint(), limit, self._headers(), pointless=self._start_is_cancelled)

    def _ask_attached(self) -> Answer:
        answer = self._ask_health()
        self._raise_if_cancelled()
        return answer

    def _start_is_cancelled(self) -> bool:
        token = self._start_token
        return token is not None and token.cancelled

    def _raise_if_cancelled(self) -> None:
        if self._start_is_cancelled():
            raise ServerStartupError(f"{self}: its start was cancelled", log_path=self.log_path)

    def _headers(self) -> dict[str, str]:
        key = self.api_key
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _start_process(self) -> None:
        if self.settings.profile is not None and self.settings.profile.enabled:
            raise ProfileError(
                f"{self}: 'profile' is enabled, but this version of pytest-infserver cannot profile; set"
                " 'enabled: false' under 'profile:' to run without."
            )
        if not ports.is_loopback(self.host) and self.api_key is None:
            self.on_warning(
                f"{self}: listens on {self.host}, where others may reach it, and has no API key; set one with the"
                " engine's --api-key, or leave 'host' at 127.0.0.1"
            )
        self.require_engine()
        for note in self.command_and_notes()[1]:
            self.on_warning(f"{self}: {note}")
        if is_builtin(self.model):
            try:
                ensure_builtin(self.model, self._note_download)
            except RuntimeError as error:
                raise ServerStartupError(f"{self} cannot start: {error}") from None
        if self.devices is None:
            self._own_devices = claim_for(self)
        tried: list[int] = []
        for attempt in range(_PORT_ATTEMPTS):
            try:
                self._launch(tried)
                return
            except PortInUseError:
                launched = self._process is not None
                self._end_process()
                if attempt == _PORT_ATTEMPTS - 1:
                    raise
                if self.settings.port is None:
                    self._port = None
                elif not (launched and self._reports_port_taken(self._is_drawn)):
                    # The port is the user's choice.
                    raise

    def require_engine(self) -> None:
        """Make sure that the engine is installed, before anything is started.

        Raises:
            ServerStartupError: It is not; the message says what to do.
        """
        require_binary(self._as_configured(), str(self), self.install_hint)
        stop_command = self.settings.stop_command
        if stop_command is not None:
            hint = "It is the first word of 'stop_command'."
            require_binary(make_command(self.fill(stop_command), self.env_vars), str(self), hint)

    def _launch(self, tried: list[int]) -> None:
        self._raise_if_cancelled()
        try:
            self.release_port()
            reservation = ports.reserve_port(self.host, self._port, avoid=tried, further=self.derived_ports)
        except ServerStartupError as error:
            raise type(error)(f"{self} cannot start: {error}") from None
        with contextlib.ExitStack() as stack:
            if self.holds_port:
                self._reservation = reservation
            else:
                stack.callback(reservation.release)
            self._port = reservation.port
            tried.append(reservation.port)
            try:
                output, folder_lock = self._log.open()
            except OSError as error:
                raise ServerStartupError(
                    f"{self} cannot start: its log cannot be written: {error}. Set 'output_dir' to a place that can."
                ) from None
            stack.callback(os.close, output)
            stack.callback(os.close, folder_lock)
            self.launch_log_start = self._log.size()
            self.launches += 1
            self.taken_over = False
            self._command = command = self.command_and_notes()[0]
            self._process = process = ServerProcess()
            self.leak_report = None
            self._leak_check = check = LeakCheck(self.env_vars) if self.debug_mode else None
            holders = [holder for holder in (reservation, check, self.devices) if holder is not None]
            locks = [lock for holder in holders for lock in holder.lock_fds]
            stop_command = self.settings.stop_command
            launch = Launch(
                argv=command.argv,
                env=command.env if check is None else check.environment(command.env),
                log_fd=output,
                stop_timeout=self.settings.stop_timeout,
                keep_fds=[folder_lock, *locks],
                stop_command=None if stop_command is None else self.fill(stop_command),
                tmpdir=None if check is None else check.tmpdir,
                private_tmpdir=check is not None and check.private_tmpdir,
                **handover.door_and_info(self),
            )
            if check is not None:
                stack.callback(check.release)
            try:
                process.launch(launch)
            except LaunchFailed as error:
                raise ServerStartupError(
                    f"{self} cannot start: {error}\n  command: {command}\n  log:     {self.log_path}",
                    log_path=self.log_path,
                ) from None
        self._wait_until_ready(process, command)
        process.mark_ready()

    def _wait_until_ready(self, process: ServerProcess, command: Command) -> None:
        check = ReadinessCheck(
            health_url=self.get_health_endpoint(),
            startup_timeout=self.settings.startup_timeout,
            download_timeout=self.settings.download_timeout,
            request_timeout=self.settings.heartbeat_timeout,
            fatal=self.fatal_patterns,
            downloading=self.download_patterns,
            phases=self.phases,
            on_wait=self._note_phase,
            owns_port=self._owns_port,
            cancelled=self._start_is_cancelled,
            headers=self._headers(),
        )
        outcome = wait_until_ready(check, process, self._log, self.launch_log_start)
        self._raise_if_cancelled()
        if isinstance(outcome, NotReady):
            # The rest of the tree may still be writing its reasons.
            self._end_process(keep=True)
            cause = self._root_cause((*self.cause_patterns, *self.fatal_patterns))
            # Engines take a path that does not exist for a name on the hub, and complain about its form.
            advice = missing_model(self) if self.model in (cause or "") else []
            taken = not outcome.timed_out and self._reports_port_taken(self._is_exchangeable)
            raise messages.startup_error(
                str(self), outcome, cause, command, self._log, self.launch_log_start, taken, advice
            )

    def _root_cause(self, patterns: Sequence[re.Pattern[bytes]]) -> str | None:
        return diagnosis.root_cause(self._log, patterns, self.launch_log_start, self.secrets, self.noise_patterns)

    def _note_download(self, text: str) -> None:
        self._raise_if_cancelled()
        self.on_progress(text)

    def _note_phase(self, phase: str | None) -> None:
        self.phase = phase or self.first_phase
        self._tell_waiting()

    def _end_waiting(self) -> None:
        self._start_began = self._start_token = None
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        try:
            self.on_wait(self)
        except Exception:
            # Whoever watches must not keep the server from starting.
            logger.exception("%s: on_wait failed", self)

    def _reports_port_taken(self, relevant: Callable[[int | None], bool]) -> bool:
        return diagnosis.reports_port_taken(self._log, relevant, self.launch_log_start, self.noise_patterns)

    def _is_exchangeable(self, port: int | None) -> bool:
        """Tell whether another launch may take another port instead; None is one that the log does not name."""
        return port is None or port in (self.port, *self.derived_ports(self.port)) or self._is_drawn(port)

    def _is_drawn(self, port: int | None) -> bool:
        """Tell whether the engine has drawn a port by itself: another launch draws another one."""
        if port is None or port == self.port:
            return False
        command = self._as_configured()
        named = any(str(port) in word for word in (*command.argv, *filter(None, command.env_vars.values())))
        return not named and (port >= ports.FIRST_EPHEMERAL or port in self.drawn_ports)

    def _owns_port(self) -> bool | None:
        process = self._process
        if not self.settings.own_listener or process is None:
            return None
        return ports.is_listener(self.port, process.pid, process.supervisor_pid)

    def _start_heartbeat(self) -> None:
        # A check that may take longer than hang_timeout would delay the news of a hang.
        limit = min(self.settings.heartbeat_timeout, self.settings.hang_timeout)
        self._heartbeat = Heartbeat(
            functools.partial(self._ask_health, limit),
            interval=self.settings.heartbeat_interval,
            hang_timeout=self.settings.hang_timeout,
            on_hang=functools.partial(self._kill_hung, self._process),
        )
        self._heartbeat.start()

    def _kill_hung(self, process: ServerProcess | None, seconds: float) -> None:
        # A server that was started again meanwhile is another one, and one that is being stopped has no heartbeat.
        heartbeat = self._heartbeat
        if process is None or process is not self._process or heartbeat is None:
            return
        how = f"its health check has failed for {shown_seconds(seconds)} s ({heartbeat.last})"
        stacks = write_hang_report(f"{self} hangs: {how}", process.supervisor_pid, self.log_path.parent, self.secrets)
        if process is not self._process or heartbeat is not self._heartbeat or process.exit is not None:
            return
        self._hang = f"hung and was killed: {how}; {stacks}"
        process.stop(0)

    def _end_process(self, *, keep: bool = False, orderly: bool = False) -> bool:
        """End the process and its tree.

        Args:
            keep: Remember it for what is asked of it later.
            orderly: It runs and is stopped on purpose.

        Returns:
            Whether it came to its end in order, so that what it leaves behind is its own fault.
        """
        if self._heartbeat is not None:
            self._heartbeat.end()
            self._heartbeat = None
        process = self._process
        if process is None:
            return False
        try:
            process.stop(self.settings.stop_timeout)
        except BaseException:
            # An interrupted stop: the supervisor ends the tree by itself.
            process.close()
            raise
        finally:
            self.survivors = process.survivors
            if not keep:
                self._process = None
        check, self._leak_check = self._leak_check, None
        if check is not None:
            allowed = [*self.known_leftovers, *self.settings.allow_leaks]
            self.leak_report = check.report(process, allowed, self.secrets)
        if orderly and process.stop_problem is not None:
            self.on_warning(f"{self}: its stop_command {process.stop_problem}; log: {self.log_path}")
        return orderly and not process.cut_short

    def _await_memory(self, claim: DeviceClaim | None) -> None:
        """Wait until the memory of GPUs is back: whoever gets them next needs it."""
        left = None if claim is None else claim.wait_until_back(_MEMORY_LIMIT)
        if left is not None:
            self.on_warning(f"{self}: {_MEMORY_LIMIT:g} s after its end {redact(left, self.secrets)}")

    def release_port(self) -> None:
        """Let others have the port that is held for the next start; see `holds_port`."""
        held, self._reservation = self._reservation, None
        if held is not None:
            held.release()

    def _release_devices(self) -> None:
        # Those that were given to it are somebody else's.
        own, self._own_devices = self._own_devices, None
        if own is not None:
            own.release()

    def _warn_of_leftovers(self) -> None:
        """Say what a server has left behind that had no chance to clean up."""
        report = self.leak_report
        # Its processes were ended before their time: they are not worth a word.
        left = [one for one in report.findings if one.kind not in ("process", "port")] if report is not None else []
        if left:
            self.on_warning(as_text(str(self), [one._replace(fails=False) for one in left]))
