"""InferenceServer: one server, from its settings to its end. Every backend is a subclass."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pytest_infserver.config.model import ServerConfig
from pytest_infserver.errors import InferenceServerError, LeakError, ProfileError, UserCodeError
from pytest_infserver.launcher.attach import attached_config
from pytest_infserver.launcher.diagnosis.log import MAX_READ
from pytest_infserver.launcher.engine.endpoints import existing
from pytest_infserver.launcher.engine.served_names import asked_names, served_names
from pytest_infserver.launcher.handle import ServerHandle
from pytest_infserver.launcher.health.heartbeat import Samples
from pytest_infserver.launcher.operations.sleeping import fall_asleep, forget_sleep, wake_up
from pytest_infserver.launcher.runtime.local import AttachedRuntime, LocalRuntime
from pytest_infserver.launcher.runtime.runtime import Runtime
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    import openai

    from pytest_infserver.launcher.engine_process import EngineProcess
    from pytest_infserver.load.results import LoadResult
    from pytest_infserver.system.http.address import Address

_NOT_HERE = "this process has only a handle of the server: stop it in the one that has started it"

Self = TypeVar("Self", bound="InferenceServer")


class InferenceServer(ServerHandle):
    """One inference server.

    A backend overrides `get_backend_name`, `get_binary_path`, `get_launch_command`, `get_health_endpoint` and
    `list_endpoints`; the attributes of `EngineFacts` are what it may say beyond that.

    Attributes:
        survivors: Processes that had to be killed at the last stop.
        leak_report: Debug mode: what the server was found to have left behind at its last end.
        start_seconds: How long the last start took.
        stop_seconds: How long the last stop took.
        journal: What has happened to it, also written beside its log.
        on_progress: Gets a line of text when something before the launch takes long.
        on_warning: Gets a text about something that works, but not as one would want it.
        on_wait: Gets the server some four times a second while it starts, and once when it does not any more.
        runtime: What runs it. For this package's own use.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """Configure a server; nothing is started.

        Args:
            model: Model name or path, ``builtin:tiny`` or ``builtin:smollm2``.
            **settings: Any other field of `ServerConfig`; times are in seconds.

        Raises:
            ConfigError: A setting is unknown or has a wrong value.
        """
        super().__init__(model, settings)
        self.runtime: Runtime = (AttachedRuntime if self.attached else LocalRuntime)(self)
        self._check_settings()

    @classmethod
    def from_config(cls: type[Self], config: ServerConfig) -> Self:
        """Make a server from a resolved configuration.

        Raises:
            ConfigError: The configuration does not fit this backend; it points into the YAML file.
        """
        return cls(**config.keywords(), backend=config.backend, origins=config.origins)

    def __reduce__(self) -> tuple[Any, ...]:
        """Give another process, as one of multiprocessing, a server that is attached to this one as it runs now."""
        return read_only_handle, (type(self), self.settings, self.address)

    def __copy__(self: Self) -> Self:
        """Return a copy in this process, which is no such handle."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    # What tests do with it.

    def list_endpoints(self) -> dict[str, str]:
        """Return name to URL of the endpoints; while the server runs only of those that exist."""
        paths = dict(self.endpoint_paths)
        if self.state is ServerState.READY:
            paths = existing(self.address, paths, self.mounted_endpoints)
        reach = self.reach
        return {
            # One that is called like one of the further ports is there.
            name: (reach.at(name) if name in reach.ports else reach).url_for(path)
            for name, path in {**paths, **self.settings.endpoints}.items()
        }

    @property
    def api_model(self) -> str:
        """The name that requests to the server need in ``model``.

        It is the first of `api_models`, else ``model``.
        """
        return next(iter(asked(self).api_models), self.model)

    @property
    def api_models(self) -> Sequence[str]:
        """The names that requests may have in ``model``: the model's own ones, and those of its LoRA adapters.

        The server's command tells them. One that runs and does not say what its model is called is asked.
        """
        names = served_names(self._known_words(), asked(self), self.model if self.attached else self.model_path)
        if names or not (self.attached or self.running):
            return names
        return asked_names(asked(self).address)

    def client(self, **settings: Any) -> openai.OpenAI:
        """Return a new ``openai.OpenAI`` for this server, without retries (extra ``openai``).

        Args:
            **settings: Arguments of ``openai.OpenAI`` that replace ours, such as ``timeout``.

        Raises:
            InferenceServerError: The package openai is not installed.
        """
        from pytest_infserver.launcher.clients.openai_clients import make_client

        return make_client(self, **settings)

    def async_client(self, **settings: Any) -> openai.AsyncOpenAI:
        """Return a new ``openai.AsyncOpenAI`` for this server, which need not be closed and is good in any event loop.

        Args:
            **settings: Arguments of ``openai.AsyncOpenAI`` that replace ours.

        Raises:
            InferenceServerError: The package openai is not installed.
        """
        from pytest_infserver.launcher.clients.openai_clients import make_async_client

        return make_async_client(self, **settings)

    @property
    def process(self) -> EngineProcess:
        """The engine's process of the last launch, with the methods of `subprocess.Popen` that tests use.

        Raises:
            InferenceServerError: There is none: the server was not started, or is attached.
        """
        from pytest_infserver.launcher.engine_process import engine_process

        return engine_process(self)

    def load(self, **workload: Any) -> LoadResult:
        """Send many requests to the running server, from a process of their own, and return what that shows.

        Args:
            **workload: Fields of `pytest_infserver.load.workload.Workload`, such as ``concurrency=16``, ``rate=5.0``,
                ``requests=200``, ``prompt_tokens=256``, ``output_tokens=64``; times are in seconds.

        Raises:
            ConfigError: A setting is unknown or has a wrong value, or the ``tool`` cannot do that.
            InferenceServerError: The server does not run, or the extra ``load`` or the tool is not installed.
            LoadInterrupted: Ctrl-C, with the result so far.
        """
        from pytest_infserver.launcher.operations.load_target import load_target
        from pytest_infserver.load.workload import make_workload

        made = make_workload(**workload)
        if made.tool is None:
            from pytest_infserver.load.running import measure
        else:
            from pytest_infserver.load.tools.guidellm import measure
        self.raise_if_dead()
        if not (self.attached or self.running):
            raise InferenceServerError(f"{self.name} does not run: start it before a load")
        return measure(load_target(self, lambda: self.api_model, self.process_tree), made)

    # Its life.

    @property
    def phase(self) -> str:
        """What it is doing while it starts, as far as its log tells."""
        return self.runtime.status.phase

    @property
    def pid(self) -> int | None:
        """The process id of the server's root process while it runs here, else None."""
        return None if self.remote else self.runtime.running_pid

    def process_tree(self) -> list[int]:
        """Return the process ids of the server while it runs, as far as this machine knows them."""
        return self.runtime.process_tree()

    @property
    def heartbeats(self) -> Samples:
        """When its health was checked, and how long its answers took."""
        return self.runtime.heartbeats

    def check_health(self, timeout: float | None = None) -> bool:
        """Ask the server now whether it is healthy.

        Args:
            timeout: Seconds that it has to answer; ``heartbeat_timeout`` if None.

        Raises:
            UserCodeError: Its backend does not say where to ask, but raises something.
        """
        __tracebackhide__ = True
        process = self.runtime.process
        alive = self.attached or (process is not None and process.exit is None)
        try:
            return alive and self.runtime.ask_health(timeout).ok
        except UserCodeError as error:
            # The traceback would only show this package's own lines.
            raise error.with_traceback(None) from None

    def start(self: Self) -> Self:
        """Start the server and return when it is ready; no effect when it is running.

        Raises:
            ServerStartupError: It did not become ready; nothing of it is left running.
            ServerStartupTimeout: It took too long.
            ConfigError: It has an option that the installed version of the engine does not have any more.
            ProfileError: The profile that is configured cannot be made.
            UserCodeError: Its backend has raised something.
        """
        if not self.running:
            forget_sleep(self.runtime)
        # In one line: what interrupts it after that would leave the server running.
        return cast("Self", self.runtime.start())

    def cancel_start(self) -> None:
        """Make a start that is under way in another thread fail soon with `ServerStartupError`.

        May be called from any thread and from a signal handler. It has no effect if no start is under way, or if one
        is as good as done: whoever wants the server gone calls `stop` afterwards.
        """
        self.runtime.cancel_start()

    def kill(self) -> None:
        """End the server at once, without the time that `stop` gives it; also while another thread waits in `stop`."""
        self.runtime.require_owner("kill it")
        self.runtime.kill()

    def stop(self) -> None:
        """Stop the server and everything that it started; no effect when it does not run.

        Raises:
            LeakError: Debug mode: it left something behind; that is gone by now.
            ProfileError: The trace of its whole life is not complete. The server is gone.
            InferenceServerError: The server is shared with other tests, or belongs to another process.
        """
        __tracebackhide__ = True
        try:
            self._require_stoppable("stop it")
            forget_sleep(self.runtime)
            self.runtime.stop()
        except InferenceServerError as error:
            # The traceback would only show this package's own lines.
            raise error.with_traceback(None) from None

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
        self._require_stoppable("let go of it")
        return self.runtime.keep(seconds)

    @property
    def why_not_kept(self) -> str | None:
        """Why the last `keep` did not keep it, in words."""
        return self.runtime.why_not_kept

    def take_over(self) -> bool:
        """Take over a server that an earlier run has kept, if there is one that is just like this one and healthy.

        Returns:
            Whether that went well: the server is ready then, and `start` is not needed.
        """
        return self.runtime.take_over()

    @property
    def awake(self) -> bool:
        """Whether it runs and was not put to sleep."""
        return self.running and self.runtime.status.awake

    def sleep(self, level: int = 1) -> None:
        """Have the engine give its GPU memory back until `wake`; its process goes on, and is not taken for hung.

        Args:
            level: How deep, for vLLM: at 1 the weights are kept in main memory, at 2 they are not.

        Raises:
            InferenceServerError: It cannot, does not run, or is shared with other tests.
        """
        self._require_stoppable("put it to sleep")
        fall_asleep(self.runtime, level)

    def wake(self) -> None:
        """Undo `sleep`; no effect if it is awake.

        Raises:
            InferenceServerError: It has died meanwhile, or has refused.
        """
        wake_up(self.runtime)

    def pause_heartbeat(self) -> None:
        """Keep the server from being taken for hung, as under a debugger, until `resume_heartbeat`; may be nested."""
        self.runtime.pause_heartbeat()

    def resume_heartbeat(self) -> None:
        """Undo one `pause_heartbeat`."""
        self.runtime.resume_heartbeat()

    # Its log.

    @property
    def log_size(self) -> int:
        """The size of the log in bytes."""
        return self.runtime.log_size

    def read_log(self, start: int = 0, limit: int = MAX_READ) -> str:
        """Return the log from byte ``start`` on, at most its last ``limit`` bytes, secrets included."""
        return self.runtime.read_log(start, limit)

    def wait_for_log(
        self, regex: str | re.Pattern[str], since: int | None = None, timeout: float = 30
    ) -> re.Match[str]:
        """Wait until something in the server's log matches, and return the match.

        Args:
            regex: What to look for, as `re.search` does; ``^`` and ``$`` are the ends of lines.
            since: Byte of the log from which on it counts, such as an earlier ``server.log_size``; if None the
                beginning of the last launch.
            timeout: Seconds.

        Raises:
            LogTimeoutError: Nothing has matched in time.
            ServerDiedError: The server has died before.
            InferenceServerError: It does not run, or has no log here.
        """
        from pytest_infserver.launcher.diagnosis.log_wait import wait_for_log

        return wait_for_log(self, regex, since, timeout)

    # Its profiles.

    @property
    def profiles(self) -> list[Path]:
        """The files of all profiles of this server that were made here, in order."""
        return list(self.runtime.profiling.made)

    def start_profile(self, name: str = "profile", tool: str | None = None) -> None:
        """Begin to profile; `stop_profile` ends that.

        Args:
            name: What the trace is called.
            tool: The profiler; if None the configured one, else py-spy. All but py-spy need a server that was started
                for them: ``profile: {tool: nsys, on_demand: true}``.

        Raises:
            ProfileError: It cannot be done, or a profile is being made already.
        """
        self.runtime.start_profile(name, tool)

    def stop_profile(self) -> list[Path]:
        """End the profile that `start_profile` has begun, and return its files, which are complete.

        Raises:
            ProfileError: There is none, or it is not complete.
        """
        return self.runtime.stop_profile()

    @contextlib.contextmanager
    def profiling(self, name: str = "profile", tool: str | None = None) -> Iterator[list[Path]]:
        """Profile what is done inside of a ``with`` block; the value is the list of files, filled at its end.

        Args:
            name: What the trace is called.
            tool: The profiler, as in `start_profile`.

        Raises:
            ProfileError: It cannot be done, or the profile is not complete.
        """
        self.start_profile(name, tool)
        files: list[Path] = []
        try:
            yield files
        except BaseException:
            try:
                files += self.stop_profile()
            except ProfileError as problem:
                # What went wrong in the block comes first.
                self.warn(str(problem))
            raise
        files += self.stop_profile()

    def __enter__(self: Self) -> Self:
        self.start()
        if self.runtime.blocks is not None:
            self.runtime.blocks.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        if self.runtime.blocks is not None and self.runtime.blocks.leave(self):
            return
        try:
            self.stop()
        except (LeakError, ProfileError) as problem:
            if error is None:
                raise
            # What went wrong in the block comes first.
            self.warn(str(problem))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state} {clean(self.server_url)}>"

    def _require_stoppable(self, deed: str) -> None:
        if self.runtime.stop_refusal is not None:
            raise InferenceServerError(self.runtime.stop_refusal)
        self.runtime.require_owner(deed)


def read_only_handle(backend: type[InferenceServer], config: ServerConfig, address: Address) -> InferenceServer:
    """Return a server for a process that may only use it.

    Args:
        backend: Its class.
        config: Its configuration.
        address: Where it runs.
    """
    server = backend.from_config(attached_config(config, address))
    server.runtime.stop_refusal = _NOT_HERE
    return server
