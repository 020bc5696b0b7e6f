"""Runtime: what runs a server, and what this process knows of it."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_infserver.errors import InferenceServerError, ServerStartupError
from pytest_infserver.launcher.diagnosis import messages
from pytest_infserver.launcher.diagnosis.cause import cause_of_failure
from pytest_infserver.launcher.diagnosis.log import MAX_READ, ServerLog
from pytest_infserver.launcher.health.heartbeat import MAX_SAMPLES, Pulse, Samples
from pytest_infserver.launcher.profiling.profiling import Profiling
from pytest_infserver.launcher.runtime.status import Status
from pytest_infserver.launcher.runtime.view import View
from pytest_infserver.launcher.startup.phases import without_percent
from pytest_infserver.launcher.startup.probes.choice import health_probes
from pytest_infserver.launcher.startup.probes.probe import Probe
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.supervision.supervised_process import Exit, ServerProcess
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.http.probe import Answer
from pytest_infserver.system.processes.table import descendants

if TYPE_CHECKING:
    from pytest_infserver.launcher.diagnosis.out_of_memory import Finding
    from pytest_infserver.launcher.handle import ServerHandle

_NOT_LAUNCHED = (ServerState.NEW, ServerState.STOPPED, ServerState.FAILED)


class StartToken:
    """One start that is under way: a cancellation that comes late must not hit the next one.

    Attributes:
        cancelled: Whether somebody has cancelled it.
    """

    def __init__(self) -> None:
        self.cancelled = False


class Blocks(Protocol):
    """Takes part in ``with`` blocks on a server that several users may have at the same time."""

    def enter(self, server: ServerHandle) -> None:
        """Note that a block begins."""

    def leave(self, server: ServerHandle) -> bool:
        """End the innermost block; return False if the server has to be stopped for that."""


class Runtime(ABC):
    """What runs one server. Not for users: what they need of it `InferenceServer` offers.

    Attributes:
        server: The server.
        status: How it is, as far as it was noted; read it once to see one moment.
        log: Its log.
        profiling: The profiles that are made of it.
        heartbeats: When its health was checked, and how long its answers took.
        owner: Process id of the process that may stop it.
        holds_port: Whether its port is held between its end and its next start, until `release_port`.
        work_folder: A folder with its files that is of no use without the process that owns it, or None.
        memory: Bytes of resident memory and of GPU memory that it uses on another machine, as was told last.
        stop_refusal: Why `InferenceServer.stop` fails, for a server that others use too; None if it does not.
        why_not_kept: Why the last `keep` did not keep it, in words.
        blocks: Ends its ``with`` blocks; None for a server that these start and stop.
    """

    runs_elsewhere = True
    """Whether somebody else starts it, perhaps on another machine."""

    def __init__(self, server: ServerHandle, before: Runtime | None = None) -> None:
        """Begin.

        Args:
            server: The server.
            before: What has run it so far, whose log, profiles and status go on.
        """
        self.server = server
        self.log: ServerLog = ServerLog(server.output_dir, server.name) if before is None else before.log
        self.profiling: Profiling = Profiling(server) if before is None else before.profiling
        self.heartbeats: Samples = deque(maxlen=MAX_SAMPLES) if before is None else before.heartbeats
        self.status: Status = Status() if before is None else before.status
        self.stop_refusal: str | None = None if before is None else before.stop_refusal
        self.blocks: Blocks | None = None if before is None else before.blocks
        self.owner = os.getpid()
        self.holds_port = False
        self.work_folder: Path | None = None
        self.memory: tuple[int, int | None] | None = None
        self.why_not_kept: str | None = None
        self._token: StartToken | None = None
        self._changing = threading.Lock()

    def change(self, **changes: Any) -> None:
        """Replace the status by one with other values.

        Args:
            **changes: Fields of `Status`.
        """
        with self._changing:
            self.status = dataclasses.replace(self.status, **changes)

    # What each kind does in its own way.

    @abstractmethod
    def start(self) -> ServerHandle:
        """Start the server and return it when it is ready; no effect when it is running."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the server and everything that it started."""

    @abstractmethod
    def kill(self) -> None:
        """End the server at once."""

    def keep(self, seconds: float) -> bool:
        """Let go of the running server for a later run; return whether that was possible."""
        self.why_not_kept = "it is not this process that runs it"
        return False

    def take_over(self) -> bool:
        """Take over a server that an earlier run has kept; return whether there was one."""
        return False

    def pause_heartbeat(self) -> None:  # noqa: B027
        """Keep the server from being taken for hung, as under a debugger, until `resume_heartbeat`."""

    def resume_heartbeat(self) -> None:  # noqa: B027
        """Undo one `pause_heartbeat`."""

    def release_port(self) -> None:  # noqa: B027
        """Let others have the port that is held for the next start; see `holds_port`."""

    def look(self) -> View:
        """Return its `view`, after asking who owns it, which takes no longer than a few seconds."""
        return self.view()

    def log_size_now(self) -> int:
        """Return the size of the log in bytes, with what is still on its way here from another machine."""
        return self.log_size

    def start_profile(self, name: str, tool: str | None) -> None:
        """Begin a profile; see `InferenceServer.start_profile`."""
        self.profiling.begin(name, tool)

    def stop_profile(self) -> list[Path]:
        """End it, and return its files."""
        return self.profiling.end()

    def pulse(self) -> Pulse | None:
        """Return what the heartbeat knows; nobody is asked."""
        return None

    def memory_finding(self) -> Finding | None:
        """Return what the kernel had to do with the end of a server that was ready."""
        process = self.status.process
        return None if process is None or process.exit is None else process.exit.out_of_memory

    # Its start.

    def begin_token(self) -> None:
        """Note that a start is under way, which `cancel_start` cancels."""
        self._token = StartToken()
        self.change(start_began=time.monotonic())

    def cancel_start(self) -> None:
        """Make a start that is under way fail soon; from any thread, and from a signal handler."""
        token = self._token
        if token is not None:
            token.cancelled = True

    def start_is_cancelled(self) -> bool:
        """Return whether the start that is under way was cancelled."""
        token = self._token
        return token is not None and token.cancelled

    def raise_if_cancelled(self) -> None:
        """Raise if the start that is under way was cancelled.

        Raises:
            ServerStartupError: It was.
        """
        if self.start_is_cancelled():
            raise ServerStartupError(f"{self.server}: its start was cancelled", log_path=self.log.path)

    def end_waiting(self) -> None:
        """Note that no start is under way any more, and tell so."""
        self._token = None
        self.change(start_began=None)
        self.server.tell_waiting()

    def note_phase(self, phase: str | None) -> None:
        """Take in what the server is doing while it starts, and tell so.

        Args:
            phase: What that is, if anybody knows.
        """
        server, before = self.server, self.status.phase
        self.change(phase=phase or asked(server).first_phase)
        if without_percent(self.status.phase) != without_percent(before):
            server.journal.note("phase", phase=without_percent(self.status.phase))
        server.tell_waiting()

    # How it is.

    @property
    def process(self) -> ServerProcess | None:
        """The process of the last launch, as far as it is known."""
        return self.status.process

    @property
    def state(self) -> ServerState:
        """Where the server is in its life; a death is noticed at once."""
        return state_of(self.status)

    @property
    def launched(self) -> bool:
        """Whether there is something to stop: it runs, or has died."""
        return self.status.state not in _NOT_LAUNCHED

    @property
    def starting_seconds(self) -> float | None:
        """How long the start that is under way has taken so far, or None if there is none."""
        begin = self.status.start_began
        return None if begin is None else time.monotonic() - begin

    @property
    def running_pid(self) -> int | None:
        """The process id of its root process on the machine where it runs."""
        process = self.status.process
        return process.engine_pid if process is not None and process.exit is None else None

    def process_tree(self) -> list[int]:
        """Return the process ids of the server while it runs, as far as this machine knows them."""
        process = self.status.process
        above = None if process is None or self.server.remote else process.supervisor_pid
        return [] if above is None else [one.pid for one in descendants(above)]

    def require_owner(self, deed: str) -> None:
        """Make sure that this process may do something with the server.

        Raises:
            InferenceServerError: It belongs to another one.
        """
        if os.getpid() != self.owner:
            raise InferenceServerError(f"{self.server} belongs to process {self.owner}: only that one may {deed}")

    @property
    def stop_limit(self) -> float:
        """Seconds that it gets to end: a profiler inside of it may have to write its files then."""
        profiler, limit = self.server.profiler, self.server.settings.stop_timeout
        return limit if profiler is None or profiler.parts else max(limit, profiler.settings.flush_timeout)

    def stop_for(self, who: str) -> bool:
        """Stop the server for somebody who does not own it; its owner sees that as its death.

        Args:
            who: Who has asked for it, in words that follow "was stopped by".

        Returns:
            Whether it is gone.
        """
        process = self.status.process
        if process is None or process.pid is None:
            self.cancel_start()
            return True
        return process.stop_for(who, self.stop_limit)

    # Its health.

    def ask_health(self, limit: float | None = None) -> Answer:
        """Ask for its health once.

        Args:
            limit: Seconds that it has to answer; ``heartbeat_timeout`` if None.
        """
        return self.ask(health_probes(self.server), limit or self.server.settings.heartbeat_timeout)

    def ask(self, probes: Sequence[Probe], limit: float) -> Answer:
        """Return the first answer that is not good, else the last one; without probes it is good that it runs."""
        answer = Answer(None, "is not asked, it runs", 0.0, good=True)
        for probe in probes:
            answer = probe.look(limit, self.start_is_cancelled)
            if not answer.ok:
                break
        return answer

    # Its log.

    def use_log_folder(self, name: str) -> None:
        """Write the log into another folder below ``output_dir`` than the one of the server's own name.

        Args:
            name: The folder's name.
        """
        assert not self.status.launches
        self.log = ServerLog(self.server.output_dir, name)

    @property
    def has_log(self) -> bool:
        """Whether the log is that of a launch of this server, not of an earlier one."""
        status = self.status
        return bool(status.launches) or status.taken_over

    @property
    def log_size(self) -> int:
        """The size of the log in bytes."""
        return self.log.size() if self.has_log else 0

    def read_log(self, start: int = 0, limit: int = MAX_READ) -> str:
        """Return the log from byte ``start`` on, at most its last ``limit`` bytes."""
        return self.log.read(start, limit) if self.has_log else ""

    def read_log_bytes(self, start: int, limit: int, end: int | None = None) -> tuple[bytes, int]:
        """Return what `read_log` reads as bytes, up to byte ``end``, and how many before them were left out."""
        return self.log.read_bytes(start, limit, end) if self.has_log else (b"", 0)

    # Its end.

    def last_exit(self) -> tuple[Exit | None, str | None]:
        """Return how the process of the last launch has ended, if it has, and why it was ended before its time."""
        status = self.status
        how = None if status.process is None else status.process.exit
        if how is not None:
            how = dataclasses.replace(how, out_of_memory=self.memory_finding())
        return how, status.why_killed

    def why_died(self) -> str | None:
        """Return how and why the server died, or None if it did not."""
        # Another thread may start it again meanwhile.
        status = self.status
        if status.process is None or state_of(status) is not ServerState.DIED:
            return None
        finding = self.memory_finding()
        cause = cause_of_failure(self.server)
        self.note_death(cause)
        how = messages.how_died(status.process, status.why_killed, finding)
        return messages.death(str(self.server), how, cause, self.log.path, self.server.secrets, finding)

    def note_death(self, cause: str | None = None) -> None:  # noqa: B027
        """Note in the journal that the server has died, once, in the process that owns it."""

    def view(self) -> View:
        """Return what another process has to know to use this server."""
        server, status, now = self.server, self.status, time.monotonic()
        process, state = status.process, state_of(status)
        died = state is ServerState.DIED and process is not None
        end = process.exit_at if died and process is not None and process.exit_at is not None else now
        begin = status.ready_at if died or state is ServerState.READY else status.start_began
        command, told = server.launched_command, server.told
        return View(
            port=server.port,
            pid=self.running_pid,
            supervisor_pid=None if process is None else process.supervisor_pid,
            running=state is ServerState.READY,
            launches=status.launches,
            log_path=self.log.path,
            launch_log_start=status.launch_log_start,
            start_seconds=server.start_seconds,
            state=state,
            seconds=None if begin is None else max(0.0, end - begin),
            dead_seconds=now - end if died else None,
            how=None
            if not died or process is None
            else messages.how_died(process, status.why_killed, self.memory_finding()),
            pulse=self.pulse(),
            log_end=self.log_size if died else None,
            node=server.node,
            address=told.host,
            remote=server.remote,
            secrets=None if command is None else command.secrets,
            devices=tuple(server.device_keys),
            stop_seconds=server.stop_seconds,
            end=status.last_end,
            command=told.command if command is None else str(command),
            argv=told.argv if command is None else command.argv,
            ports={} if server.attached else dict(server.ports),
            child_deaths=() if process is None else tuple((now - at, what) for at, what in process.child_deaths),
            reach=None if server.remote or server.attached else server.reach,
            awake=status.awake,
        )


def state_of(status: Status) -> ServerState:
    """Return where a server is in its life: one that was ready and whose process has ended has died."""
    gone = status.process is not None and status.process.exit is not None
    return ServerState.DIED if status.state is ServerState.READY and gone else status.state
