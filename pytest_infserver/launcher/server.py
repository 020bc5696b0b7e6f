"""InferenceServer: one server, from its settings to its end. Every backend is a subclass."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pytest_infserver.config.model import ServerConfig
from pytest_infserver.errors import (
    InferenceServerError,
    LeakError,
    ProfileError,
    ServerDiedError,
    ServerStartupError,
    UserCodeError,
)
from pytest_infserver.launcher import handover, launching, messages, ports
from pytest_infserver.launcher.attach import handle, wait_for_url
from pytest_infserver.launcher.configured import ConfiguredServer
from pytest_infserver.launcher.devices import DeviceClaim
from pytest_infserver.launcher.endpoints import existing
from pytest_infserver.launcher.follower import FollowedProcess, Keeper, View
from pytest_infserver.launcher.hang import write_hang_report
from pytest_infserver.launcher.heartbeat import MAX_SAMPLES, Heartbeat, Samples
from pytest_infserver.launcher.http_probe import Answer, ask, shown_seconds
from pytest_infserver.launcher.journal import Journal
from pytest_infserver.launcher.leaks.check import LeakCheck
from pytest_infserver.launcher.leaks.report import LeakReport, as_known_text, as_text, finding_line, is_allowed
from pytest_infserver.launcher.leaks.temporary_files import PYTORCH_CACHES
from pytest_infserver.launcher.log import MAX_READ, ServerLog
from pytest_infserver.launcher.out_of_memory import Finding, OutOfMemoryWatch
from pytest_infserver.launcher.phases import without_percent
from pytest_infserver.launcher.process import Exit, ServerProcess, Survivor
from pytest_infserver.launcher.processes import descendants
from pytest_infserver.launcher.profiling.profiling import Profiling
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.text import clean

logger = logging.getLogger("pytest_infserver")

Self = TypeVar("Self", bound="InferenceServer")

_MEMORY_LIMIT = 10.0
"""Seconds that the driver gets to take a server's GPU memory back before its devices are released."""
_KILLED = "was killed by server.kill()"


@dataclasses.dataclass
class _StartToken:
    """One start that is under way: a cancellation that comes late must not hit the next one."""

    cancelled: bool = False


class InferenceServer(ConfiguredServer):
    """One inference server.

    A backend overrides `get_backend_name`, `get_binary_path`, `get_launch_command`, `get_health_endpoint` and
    `list_endpoints`; the attributes of `EngineFacts` are what it may say beyond that.

    Attributes:
        survivors: Processes that had to be killed at the last stop.
        leak_report: Debug mode: what the server was found to have left behind at its last end.
        start_seconds: How long the last start took.
        stop_seconds: How long the last stop took.
        journal: What has happened to it, also written beside its log.
        heartbeats: When its health was checked, and how long its answers took.
        launches: How often the server's process was launched.
        launch_log_start: Size of the log, in bytes, before the last launch.
        on_progress: Gets a line of text when something before the launch takes long.
        on_warning: Gets a text about something that works, but not as one would want it.
        on_wait: Gets the server some four times a second while it starts, and once when it does not any more.
        phase: What it is doing while it starts, as far as its log tells.
        taken_over: Whether it was running already when `take_over` made it this object's.
        why_not_kept: Why the last `keep` did not keep it, in words.
        holds_port: Whether its port is held between its end and its next start, until `release_port`.
        work_folder: A folder with its files that is of no use without the process that owns it, or None.
        memory: Bytes of resident memory and of GPU memory that it uses on another machine, as was told last.
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
        self.survivors: tuple[Survivor, ...] = ()
        self.leak_report: LeakReport | None = None
        self.start_seconds: float | None = None
        self.stop_seconds: float | None = None
        self.journal = Journal(lambda: self.secrets)
        self.heartbeats: Samples = deque(maxlen=MAX_SAMPLES)
        self.on_progress: Callable[[str], None] = logger.info
        self.on_warning: Callable[[str], None] = logger.warning
        self.on_wait: Callable[[InferenceServer], None] = lambda server: None
        self.phase = ""
        self._start_began: float | None = None
        self._start_token: _StartToken | None = None
        self._log = ServerLog(self.output_dir, self.name)
        self.launch_log_start = 0
        self._process: ServerProcess | None = None
        self._leak_check: LeakCheck | None = None
        self._heartbeat: Heartbeat | None = None
        self._memory_watch: OutOfMemoryWatch | None = None
        self._ready_at: float | None = None
        self._state = ServerState.NEW
        self._death_noted: ServerProcess | None = None
        self._last_exit: Exit | None = None
        self._why_killed: str | None = None
        self._stop_refusal: str | None = None
        self._keeper: Keeper | None = None
        self._profiling = Profiling(self)
        self._lifecycle = threading.RLock()
        self._owner = os.getpid()
        self._profile_problems: list[ProfileError] = []
        self.launches = 0
        self.taken_over = False
        self.holds_port = False
        self.work_folder: Path | None = None
        self.memory: tuple[int, int | None] | None = None
        self._reservation: ports.Reservation | None = None
        self.why_not_kept: str | None = None
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
        config = dataclasses.replace(self.settings, url=self.server_url, profile=None)
        return handle, (type(self), config, self.api_key)

    def __copy__(self: Self) -> Self:
        """Return a copy in this process, which is no such handle."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def list_endpoints(self) -> dict[str, str]:
        """Return name to URL of the endpoints; while the server runs only of those that exist."""
        paths = dict(self.endpoint_paths)
        if self.state is ServerState.READY:
            paths = existing(self.server_url, paths, self.mounted_endpoints, self._headers())
        return {name: self.url_for(path) for name, path in {**paths, **self.settings.endpoints}.items()}

    @property
    def pid(self) -> int | None:
        """The process id of the server's root process while it runs here, else None."""
        return None if self.remote else self._running_pid

    def process_tree(self) -> list[int]:
        """Return the process ids of the server while it runs, as far as this machine knows them."""
        process = self._process
        above = None if process is None or self.remote else process.supervisor_pid
        return [] if above is None else [one.pid for one in descendants(above)]

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
    def runs_elsewhere(self) -> bool:
        """Whether somebody else starts it, perhaps on another machine."""
        return self._keeper is not None

    @property
    def starting_seconds(self) -> float | None:
        """How long the start that is under way has taken so far, or None if there is none."""
        return None if self._start_began is None else time.monotonic() - self._start_began

    @property
    def launched(self) -> bool:
        """Whether there is something to stop: it runs, or has died."""
        return self._state not in (ServerState.NEW, ServerState.STOPPED, ServerState.FAILED)

    def read_log(self, start: int = 0, limit: int = MAX_READ) -> str:
        """Return the log from byte ``start`` on, at most its last ``limit`` bytes, secrets included."""
        # Before the first launch the file is that of an earlier server.
        return self._log.read(start, limit) if self.launches or self.taken_over else ""

    def read_log_bytes(self, start: int, limit: int, end: int | None = None) -> tuple[bytes, int]:
        """Return what `read_log` reads as bytes, up to byte ``end``, and how many before them were left out."""
        return self._log.read_bytes(start, limit, end) if self.launches or self.taken_over else (b"", 0)

    @property
    def log_size(self) -> int:
        """The size of the log in bytes."""
        return self._log.size() if self.launches or self.taken_over else 0

    def check_health(self, timeout: float | None = None) -> bool:
        """Ask the server now whether it is healthy.

        Args:
            timeout: Seconds that it has to answer; ``heartbeat_timeout`` if None.

        Raises:
            UserCodeError: Its backend does not say where to ask, but raises something.
        """
        __tracebackhide__ = True
        alive = self.attached or (self._process is not None and self._process.exit is None)
        try:
            return alive and self._ask_health(timeout).ok
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
            try:
                self.phase = asked(self).first_phase
                if self._process is not None:
                    self._note_death()
                    self._end_process()
                    self._warn_of_profiles(self._take_profile_problems())
                    self._await_memory(self.devices)
                    self._warn_of_leftovers()
                self._owner = os.getpid()
                self._state = ServerState.STARTING
                self._forget_commands()
                self._why_killed = self._last_exit = None
                self.journal.note("starting")
                if self.attached:
                    self._profiling.check()
                    self.journal.note("attached", url=self.server_url)
                    wait_for_url(self.server_url, self._ask_attached, self.settings.startup_timeout, str(self))
                else:
                    launching.launch(self)
                self._raise_if_cancelled()
                self._ready_at = time.monotonic()
                self._state = ServerState.READY
                if self.serves:
                    self._start_heartbeat()
                self._profiling.ready()
                self.start_seconds = time.monotonic() - begin
                self.journal.note("ready", seconds=round(self.start_seconds, 3), pid=self.pid)
                # Not in a finally: an interrupt in it would leave the server running.
                self._end_waiting()
                return self
            except BaseException as error:
                self._state = ServerState.FAILED
                try:
                    self._end_process()
                finally:
                    self._profiling.forget()
                    self._release_devices()
                    self.release_port()
                    messages.hide_secrets(error, self.secrets)
                    words = str(error).removeprefix(f"{self} ").removeprefix(f"{self}: ")
                    reason = words or type(error).__name__
                    self.journal.note("failed", error=reason, **self._end_fields())
                    self._end_waiting()
                self._warn_of_leftovers()
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
        if self._keeper is not None:
            self._keeper.kill(self)
            return
        self.cancel_start()
        process = self._process
        if process is not None:
            self._why_killed = self._why_killed or _KILLED
            process.stop(0)

    def stop_for(self, who: str) -> bool:
        """Stop the server for somebody who does not own it; its owner sees that as its death.

        Args:
            who: Who has asked for it, in words that follow "was stopped by".

        Returns:
            Whether it is gone.
        """
        process = self._process
        if process is None or process.pid is None:
            self.cancel_start()
            return True
        return process.stop_for(who, self._end_limit)

    def stop(self) -> None:
        """Stop the server and everything that it started; no effect when it does not run.

        Raises:
            LeakError: Debug mode: it left something behind; that is gone by now.
            ProfileError: The trace of its whole life is not complete. The server is gone.
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
            problems: list[ProfileError] = []
            begin = time.monotonic()
            self._note_death()
            try:
                if had_process:
                    self.journal.note("stopping")
                if orderly:
                    problems = self._profiling.before_stop()
                self._state = ServerState.STOPPING
                orderly = self._end_process(orderly=orderly)
                problems += self._take_profile_problems()
                self._await_memory(self._own_devices)
            except BaseException:
                self._end_heartbeat()
                if self._process is not None:
                    self._process.close()
                raise
            finally:
                self._state = ServerState.STOPPED
                self._release_devices()
                if not self.holds_port:
                    self.release_port()
                if had_process:
                    self.stop_seconds = time.monotonic() - begin
                    self.journal.note("stopped", seconds=round(self.stop_seconds, 3), **self._end_fields())
            if orderly:
                self._report_leftovers(problems)
            elif had_process:
                self._warn_of_leftovers()
                self._warn_of_profiles(problems)

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
            return not self.launched and not self.runs_elsewhere and handover.take_over(self)

    def _report_leftovers(self, problems: list[ProfileError]) -> None:
        report = self.leak_report
        if report is not None and report.findings:
            text = as_text(str(self), report.findings)
            if report.failed:
                self._warn_of_profiles(problems)
                raise LeakError(text, report.findings)
            known = [*PYTORCH_CACHES, *asked(self).known_leftovers]
            if all(is_allowed(finding, known) for finding in report.findings):
                text = as_known_text(str(self), report.findings)
            self.warn(text)
        elif report is None and self.survivors:
            text = messages.survivors(str(self), self.survivors, self.settings.stop_timeout)
            self.warn(text)
        if problems:
            self._warn_of_profiles(problems[1:])
            raise problems[0]

    def why_died(self) -> str | None:
        """Return how and why the server died, or None if it did not."""
        # Another thread may start it again meanwhile.
        process = self._process
        if self.state is not ServerState.DIED or process is None:
            return None
        finding = self._memory_finding()
        cause = launching.root_cause(self)
        self._note_death(cause)
        return messages.death(str(self), self._how_died(process), cause, self.log_path, self.secrets, finding)

    def _how_died(self, process: ServerProcess) -> str:
        how, finding = process.exit, self._memory_finding()
        words = self._why_killed or str(how)
        return words if finding is None else finding.end(words, None if how is None or self._why_killed else how.code)

    def _memory_finding(self) -> Finding | None:
        """Return what the kernel had to do with the end of a server that was ready."""
        process, watch = self._process, self._memory_watch
        how = None if process is None else process.exit
        if process is None or how is None or watch is None:
            return None if how is None else how.out_of_memory
        killed = self._why_killed is not None or process.pid in {survivor.pid for survivor in process.survivors}
        return watch.finding(process.pid, how, ours=killed)

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

    @property
    def profiles(self) -> list[Path]:
        """The files of all profiles of this server that were made here, in order."""
        return list(self._profiling.made)

    @property
    def profiles_asked_for(self) -> list[Path]:
        """Those of them that were begun and ended here, on demand."""
        return list(self._profiling.asked_for)

    def note_profiles(self, files: Sequence[Path]) -> None:
        """Count a profile among those that were asked for here; its files were brought from another machine."""
        self._profiling.made += files
        self._profiling.asked_for += files

    def start_profile(self, name: str = "profile", tool: str | None = None) -> None:
        """Begin to profile; `stop_profile` ends that.

        Args:
            name: What the trace is called.
            tool: The profiler; if None the configured one, else py-spy. All but py-spy need a server that was started
                for them: ``profile: {tool: nsys, on_demand: true}``.

        Raises:
            ProfileError: It cannot be done, or a profile is being made already.
        """
        if self._keeper is not None and self.node is not None:
            self._keeper.start_profile(self, name, tool)
        else:
            self._profiling.begin(name, tool)

    def stop_profile(self) -> list[Path]:
        """End the profile that `start_profile` has begun, and return its files, which are complete.

        Raises:
            ProfileError: There is none, or it is not complete.
        """
        if self._keeper is not None and self.node is not None:
            return self._keeper.stop_profile(self)
        return self._profiling.end()

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

    def warn(self, text: str) -> None:
        """Tell `on_warning` about something that works, but not as one would want it."""
        self.on_warning(clean(text, self.secrets))

    def pause_heartbeat(self) -> None:
        """Keep the server from being taken for hung, as under a debugger, until `resume_heartbeat`."""
        if self._keeper is not None:
            self._keeper.pause(self)
        if self._heartbeat is not None:
            self._heartbeat.pause()

    def resume_heartbeat(self) -> None:
        """Undo one `pause_heartbeat`."""
        if self._keeper is not None:
            self._keeper.resume(self)
        if self._heartbeat is not None:
            self._heartbeat.resume()

    def view(self) -> View:
        """Return what another process has to know to use this server; see `follow`."""
        process = self._process
        state, now = self.state, time.monotonic()
        died = state is ServerState.DIED
        end = process.exit_at if died and process is not None and process.exit_at is not None else now
        begin = self._ready_at if died or state is ServerState.READY else self._start_began
        heartbeat = self._heartbeat
        view = View(
            port=self.port,
            pid=self._running_pid,
            supervisor_pid=None if process is None else process.supervisor_pid,
            running=state is ServerState.READY,
            launches=self.launches,
            log_path=self.log_path,
            launch_log_start=self.launch_log_start,
            start_seconds=self.start_seconds,
            state=state,
            seconds=None if begin is None else max(0.0, end - begin),
            dead_seconds=now - end if died else None,
            how=self._how_died(process) if died and process is not None else None,
            pulse=None if heartbeat is None else heartbeat.pulse(),
            log_end=self.log_size if died else None,
            node=self.node,
            address=self._address,
            remote=self.remote,
        )
        return view if self._keeper is None else self._keeper.seen(self, view)

    def look(self) -> View:
        """Return its `view`, after asking who owns it, which takes no longer than a few seconds."""
        return self.view() if self._keeper is None else self._keeper.look(self)

    def log_size_now(self) -> int:
        """Return the size of the log in bytes, with what is still on its way here from another machine."""
        size = None if self._keeper is None else self._keeper.log_size(self)
        return self.log_size if size is None else size

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
        self.node, self._address, self.remote = view.node, view.address, view.remote
        self._port = None if self.attached else view.port
        self._log.path = view.log_path
        self._why_killed = None
        self.launches = view.launches
        self.taken_over = view.running and not view.launches
        self.launch_log_start = view.launch_log_start
        self.start_seconds = view.start_seconds
        self._ready_at = None if view.seconds is None else time.monotonic() - view.seconds
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
            self._why_killed = hang
        process.ended(how)

    @property
    def last_exit(self) -> tuple[Exit | None, str | None]:
        """How the process of the last launch has ended, if it has, and why it was killed if it hung."""
        how = None if self._process is None else self._process.exit
        if how is not None:
            how = dataclasses.replace(how, out_of_memory=self._memory_finding())
        return how, self._why_killed

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
        except (LeakError, ProfileError) as problem:
            if error is None:
                raise
            # What went wrong in the block comes first.
            self.warn(str(problem))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state} {clean(self.server_url)}>"

    # The inside.

    @property
    def _running_pid(self) -> int | None:
        """The process id of its root process on the machine where it runs."""
        process = self._process
        return process.engine_pid if process is not None and process.exit is None else None

    def _require_owner(self, deed: str) -> None:
        if os.getpid() != self._owner:
            raise InferenceServerError(f"{self} belongs to process {self._owner}: only that one may {deed}")

    def _ask_health(self, limit: float | None = None) -> Answer:
        limit = limit or self.settings.heartbeat_timeout
        return ask(self.health_url(), limit, self._headers(), pointless=self._start_is_cancelled)

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

    def _note_download(self, text: str) -> None:
        self._raise_if_cancelled()
        self.on_progress(clean(text, self.secrets))

    def _note_processes(self, *, now: bool = False) -> None:
        if self._memory_watch is not None and self._process is not None:
            self._memory_watch.look(self._process.pid, self._process.supervisor_pid, now=now)

    def _note_phase(self, phase: str | None) -> None:
        self._note_processes()
        before, self.phase = self.phase, phase or asked(self).first_phase
        if without_percent(self.phase) != without_percent(before):
            self.journal.note("phase", phase=without_percent(self.phase))
        self._tell_waiting()

    def _end_waiting(self) -> None:
        self._start_began = self._start_token = None
        self._tell_waiting()

    def _note_death(self, cause: str | None = None) -> None:
        """Note in the journal that the server has died, once, in the process that owns it."""
        process = self._process
        if process is None or process is self._death_noted or self.state is not ServerState.DIED:
            return
        if self._keeper is None and os.getpid() == self._owner:
            self._death_noted = process
            how = self._how_died(process)
            max_rss = 0 if process.exit is None else process.exit.max_rss
            ago = 0.0 if process.exit_at is None else time.monotonic() - process.exit_at
            self.journal.note("died", time.time() - ago, how=how, cause=cause, max_rss_bytes=max_rss or None)

    def _end_fields(self) -> dict[str, Any]:
        """Return what the journal says of the end of the last process."""
        how, self._last_exit = self._last_exit, None
        report = self.leak_report
        fields: dict[str, Any] = {}
        if how is not None:
            fields |= {"how": str(how), "max_rss_bytes": how.max_rss or None}
        if self.survivors:
            fields["survivors"] = [str(process) for process in self.survivors]
        if report is not None and report.findings:
            fields["leaks"] = [
                {"kind": one.kind, "text": finding_line(one), "fails": one.fails} for one in report.findings
            ]
        return fields

    def _tell_waiting(self) -> None:
        try:
            self.on_wait(self)
        except Exception:
            # Whoever watches must not keep the server from starting.
            logger.exception("%s: on_wait failed", self)

    def _owns_port(self) -> bool | None:
        process = self._process
        if not self.settings.own_listener or process is None:
            return None
        return ports.is_listener(self.port, process.pid, process.supervisor_pid)

    def _listens_elsewhere(self) -> str | None:
        """Return where it listens on its port if that is not where its clients are."""
        process = self._process
        if self.host == ServerConfig().host or process is None or not self.settings.own_listener:
            return None
        hosts = ports.listening_hosts(self.port, process.supervisor_pid)
        asked = ports.addresses_of(urlsplit(self.server_url).hostname or self.host)
        return None if hosts & {*asked, "0.0.0.0", "::"} else " and ".join(sorted(hosts)) or None

    def _start_heartbeat(self) -> None:
        # A check that may take longer than hang_timeout would delay the news of a hang.
        limit = min(self.settings.heartbeat_timeout, self.settings.hang_timeout)
        self._heartbeat = Heartbeat(
            functools.partial(self._ask_health, limit),
            interval=self.settings.heartbeat_interval,
            hang_timeout=self.settings.hang_timeout,
            on_hang=functools.partial(self._kill_hung, self._process),
            is_busy=self._profiling.is_running,
            samples=self.heartbeats,
        )
        self._heartbeat.start()

    def _end_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.end()
            self._heartbeat = None

    def _kill_hung(self, process: ServerProcess | None, seconds: float) -> None:
        # A server that was started again meanwhile is another one, and one that is being stopped has no heartbeat.
        heartbeat = self._heartbeat
        if process is None or process is not self._process or heartbeat is None:
            return
        how = f"its health check has failed for {shown_seconds(seconds)} s ({heartbeat.last})"
        stacks = write_hang_report(f"{self} hangs: {how}", process.supervisor_pid, self.log_path.parent, self.secrets)
        if process is not self._process or heartbeat is not self._heartbeat or process.exit is not None:
            return
        self._why_killed = f"hung and was killed: {how}; {stacks}"
        process.stop(0)

    def _end_process(self, *, keep: bool = False, orderly: bool = False) -> bool:
        """End the process and its tree.

        Args:
            keep: Remember it for what is asked of it later.
            orderly: It runs and is stopped on purpose.

        Returns:
            Whether it came to its end in order, so that what it leaves behind is its own fault.
        """
        self._end_heartbeat()
        process = self._process
        if process is None:
            return False
        try:
            process.stop(self._end_limit)
        except BaseException:
            # An interrupted stop: the supervisor ends the tree by itself.
            process.close()
            raise
        finally:
            # What gets no time to end does not do so in time.
            self.survivors = () if self._why_killed == _KILLED else process.survivors
            self._last_exit = process.exit
            if not keep:
                self._process = None
                self._end_memory_watch()
        check, self._leak_check = self._leak_check, None
        problem: UserCodeError | None = None
        if check is not None:
            allowed = [*self.settings.allow_leaks]
            try:
                allowed += asked(self).known_leftovers
            except UserCodeError as error:
                # What is left is seen to first.
                problem = error
            report = check.report(process, allowed, self.secrets)
            self.leak_report = report if self.profiler is None else report.without(self.profiler.leftovers)
        self._profile_problems = self._profiling.after_end()
        if problem is not None:
            raise problem
        if orderly and process.stop_problem is not None:
            self.warn(f"{self}: its stop_command {process.stop_problem}; log: {self.log_path}")
        return orderly and not process.cut_short

    def _end_memory_watch(self) -> None:
        if self._memory_watch is not None:
            self._memory_watch.close()
            self._memory_watch = None

    @property
    def _end_limit(self) -> float:
        """Seconds that it gets to end: a profiler inside of it may have to write its files then."""
        profiler, limit = self.profiler, self.settings.stop_timeout
        return limit if profiler is None or profiler.parts else max(limit, profiler.settings.flush_timeout)

    def _await_memory(self, claim: DeviceClaim | None) -> None:
        """Wait until the memory of GPUs is back: whoever gets them next needs it."""
        left = None if claim is None else claim.wait_until_back(_MEMORY_LIMIT)
        if left is not None:
            self.warn(f"{self}: {_MEMORY_LIMIT:g} s after its end {left}")

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

    def _take_profile_problems(self) -> list[ProfileError]:
        """Return what is wrong with the traces that the last end has written; once."""
        problems, self._profile_problems = self._profile_problems, []
        return problems

    def _warn_of_profiles(self, problems: list[ProfileError]) -> None:
        for problem in problems:
            self.warn(str(problem))

    def _warn_of_leftovers(self) -> None:
        """Say what a server has left behind that had no chance to clean up."""
        report = self.leak_report
        # Its processes were ended before their time: they are not worth a word.
        left = [one for one in report.findings if one.kind not in ("process", "port")] if report is not None else []
        if left:
            self.warn(as_text(str(self), [one._replace(fails=False) for one in left]))
