"""ProcessRuntime: a tree of processes on this machine that this process watches and ends."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_infserver.config.model import ServerConfig
from pytest_infserver.errors import ProfileError, ServerStartupError, UserCodeError
from pytest_infserver.launcher.diagnosis import messages
from pytest_infserver.launcher.diagnosis.out_of_memory import Finding
from pytest_infserver.launcher.health.heartbeat import Pulse
from pytest_infserver.launcher.leaks.check import LeakCheck
from pytest_infserver.launcher.runtime.launched import Launched
from pytest_infserver.launcher.runtime.leftovers import (
    end_fields,
    report_leftovers,
    warn_of_leftovers,
    warn_of_profiles,
)
from pytest_infserver.launcher.runtime.own import OwnRuntime
from pytest_infserver.launcher.runtime.runtime import Runtime
from pytest_infserver.launcher.runtime.status import KILLED
from pytest_infserver.launcher.runtime.watch import Watch
from pytest_infserver.launcher.startup import ports
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.supervision.supervised_process import Exit, ServerProcess
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle

_MEMORY_GRACE = 10.0
"""Seconds that the driver gets to take a server's GPU memory back before its devices are released: other runs, too,
are better off without them until then."""
_MEMORY_STEP = 0.1
_WAITS_FOR_MEMORY = "waiting for GPU memory"


class ProcessRuntime(OwnRuntime):
    """Watches the server, and ends it; how it is launched is left open.

    Attributes:
        watch: Asks for its health and looks at its log.
        reservation: Its port, from before a launch until nobody needs it any more, if `holds_port`.
    """

    runs_elsewhere = False

    def __init__(self, server: ServerHandle, before: Runtime | None = None) -> None:
        super().__init__(server, before)
        self.watch = Watch(self)
        self.reservation: ports.Reservation | None = None
        self._made: Launched | None = None
        self._leak_check: LeakCheck | None = None
        self._death_noted: ServerProcess | None = None
        self._last_exit: Exit | None = None
        self._profile_problems: list[ProfileError] = []

    def take(self, made: Launched) -> None:
        """Have what was launched, or taken over, as the server's from now on."""
        self._made, self._leak_check = made, made.leak_check
        self.change(process=made.process)

    def let_go(self) -> None:
        """Have nothing that was launched any more."""
        made, self._made = self._made, None
        # One that has died stays dead without its process.
        self.change(process=None, state=self.state)
        if made is not None:
            made.memory_watch.close()

    # Its start.

    def _end_last(self) -> None:
        if self.process is not None:
            self.note_death()
            self.end_process()
            warn_of_profiles(self.server, self._take_profile_problems())
            warn_of_leftovers(self.server)
        self._last_exit = None

    def await_memory(self) -> None:
        """Wait until the memory of the server's GPUs is back, which the one before it has had.

        Raises:
            ServerStartupError: It is not back in time, or the start was cancelled.
        """
        server, limit, begin = self.server, self.server.settings.memory_release_timeout, time.monotonic()
        while limit and server.devices is not None:
            left = server.devices.not_back()
            if left is None:
                return
            self.raise_if_cancelled()
            if time.monotonic() - begin >= limit:
                raise ServerStartupError(
                    f"{server} cannot start: {left}, and it has waited {limit:g} s for that. End what holds it, raise"
                    " 'memory_release_timeout', or set that to 0 to start all the same."
                )
            super().note_phase(_WAITS_FOR_MEMORY)
            time.sleep(_MEMORY_STEP)

    def _become_ready(self) -> None:
        self.change(ready_at=time.monotonic(), state=ServerState.READY)
        if self.server.serves:
            self.watch.begin()
        self.profiling.ready()

    def _undo(self, error: BaseException) -> None:
        try:
            self.end_process()
        finally:
            self.profiling.forget()
            self._release_devices()
            self.release_port()

    def _failure_fields(self) -> dict[str, Any] | None:
        return end_fields(self.server, self._take_last_exit())

    def _after_failure(self, error: BaseException) -> None:
        warn_of_leftovers(self.server)

    def note_download(self, text: str) -> None:
        """Tell how the download of a built-in model goes on.

        Raises:
            ServerStartupError: The start was cancelled.
        """
        self.raise_if_cancelled()
        self.server.on_progress(clean(text, self.server.secrets))

    def note_phase(self, phase: str | None) -> None:
        """Take in what the server is doing while it starts.

        Args:
            phase: What its log tells, if it tells anything.

        Raises:
            ServerStartupError: Its log is longer than it may be.
        """
        self.note_processes()
        excess = self.watch.look_at_log()
        if excess is not None:
            raise ServerStartupError(f"{self.server} was ended: {excess}", log_path=self.log.path)
        super().note_phase(phase)

    def note_processes(self, *, now: bool = False) -> None:
        """Look at its processes, which may be gone when they are asked about.

        Args:
            now: Whether to look at their memory, too, which otherwise is done now and then.
        """
        made = self._made
        if made is not None:
            made.process.look()
            made.memory_watch.look(made.process.pid, made.process.supervisor_pid, now=now)

    def owns_ports(self, numbers: Sequence[int]) -> bool | None:
        """Return whether its own processes listen on all of these ports; None if nobody can tell."""
        process = self.process
        if not self.server.settings.own_listener or process is None:
            return None
        found = [ports.is_listener(number, process.pid, process.supervisor_pid) for number in numbers]
        return False if False in found else (None if None in found else True)

    def listens_elsewhere(self) -> str | None:
        """Return where it listens on its port if that is not where its clients are."""
        server, process = self.server, self.process
        reach = server.reach
        own = process is not None and server.settings.own_listener and reach.uds is None
        if server.host == ServerConfig().host or process is None or not own:
            return None
        hosts = {host for host, port in ports.listening_places(process.supervisor_pid) if port == server.port}
        addresses = ports.addresses_of(reach.host)
        return None if hosts & {*addresses, "0.0.0.0", "::"} else " and ".join(sorted(hosts)) or None

    def listens_at(self) -> list[str]:
        """Return where its processes listen, as far as that can be seen."""
        process = self.process
        places = sorted(ports.listening_places(process.supervisor_pid)) if process is not None else []
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in places]

    # Its health.

    def pause_heartbeat(self) -> None:
        """Keep the server from being taken for hung, as under a debugger, until `resume_heartbeat`."""
        self.watch.pause()

    def resume_heartbeat(self) -> None:
        """Undo one `pause_heartbeat`."""
        self.watch.resume()

    def pulse(self) -> Pulse | None:
        """Return what the heartbeat knows; nobody is asked."""
        return self.watch.pulse()

    # Its end.

    def kill(self) -> None:
        """End the server at once."""
        self.cancel_start()
        process = self.process
        if process is not None:
            self.change(why_killed=self.status.why_killed or KILLED)
            process.stop(0)

    def stop(self) -> None:
        """Stop the server and everything that it started."""
        server = self.server
        with self.lifecycle:
            if self.status.state is ServerState.NEW:
                return
            orderly = self.state is ServerState.READY
            had_process = self.process is not None
            problems: list[ProfileError] = []
            begin = time.monotonic()
            self.note_death()
            try:
                if had_process:
                    server.journal.note("stopping")
                if orderly:
                    problems = self.profiling.before_stop()
                self.change(state=ServerState.STOPPING)
                orderly = self.end_process(orderly=orderly)
                problems += self._take_profile_problems()
                if server.own_devices is not None:
                    server.own_devices.wait_until_back(_MEMORY_GRACE)
            except BaseException:
                self.watch.end()
                if self.process is not None:
                    self.process.close()
                raise
            finally:
                self.change(state=ServerState.STOPPED)
                self._release_devices()
                if not self.holds_port:
                    self.release_port()
                if had_process:
                    server.stop_seconds = time.monotonic() - begin
                    fields = end_fields(server, self._take_last_exit())
                    server.journal.note("stopped", seconds=round(server.stop_seconds, 3), **fields)
            if orderly:
                report_leftovers(server, problems)
            elif had_process:
                warn_of_leftovers(server)
                warn_of_profiles(server, problems)

    def end_process(self, *, keep: bool = False, orderly: bool = False) -> bool:
        """End the process and its tree.

        Args:
            keep: Remember it for what is asked of it later.
            orderly: It runs and is stopped on purpose.

        Returns:
            Whether it came to its end in order, so that what it leaves behind is its own fault.
        """
        self.watch.end()
        server, process = self.server, self.process
        if process is None:
            return False
        try:
            process.stop(self.stop_limit)
        except BaseException:
            # An interrupted stop: the supervisor ends the tree by itself.
            process.close()
            raise
        finally:
            # What gets no time to end does not do so in time.
            server.survivors = () if self.status.was_killed else process.survivors
            self._last_exit = process.exit
            self.change(last_end=process.exit)
            if not keep:
                self.let_go()
        check, self._leak_check = self._leak_check, None
        problem: UserCodeError | None = None
        if check is not None:
            allowed = [*server.settings.allow_leaks]
            try:
                allowed += asked(server).known_leftovers
            except UserCodeError as error:
                # What is left is seen to first.
                problem = error
            report = check.report(process, allowed, server.secrets)
            server.leak_report = report if server.profiler is None else report.without(server.profiler.leftovers)
        self._profile_problems = self.profiling.after_end()
        if problem is not None:
            raise problem
        if orderly and process.stop_problem is not None:
            server.warn(f"{server}: its stop_command {process.stop_problem}; log: {self.log.path}")
        return orderly and not process.cut_short

    def memory_finding(self) -> Finding | None:
        """Return what the kernel had to do with the end of a server that was ready."""
        status, made = self.status, self._made
        process = status.process
        how = None if process is None else process.exit
        if process is None or how is None or made is None:
            return None if how is None else how.out_of_memory
        killed = status.why_killed is not None or process.pid in {survivor.pid for survivor in process.survivors}
        return made.memory_watch.finding(process.pid, how, ours=killed)

    def start_finding(self, how: Exit | None) -> Finding | None:
        """Return what the kernel had to do with the end of a server that did not become ready.

        Args:
            how: How it has ended, if it has.
        """
        made = self._made
        return None if made is None else made.memory_watch.finding(made.process.pid, how)

    def note_death(self, cause: str | None = None) -> None:
        """Note in the journal that the server has died, once, in the process that owns it."""
        status = self.status
        process = status.process
        if process is None or process is self._death_noted or self.state is not ServerState.DIED:
            return
        if os.getpid() == self.owner:
            self._death_noted = process
            how = messages.how_died(process, status.why_killed, self.memory_finding())
            max_rss = 0 if process.exit is None else process.exit.max_rss
            ago = 0.0 if process.exit_at is None else time.monotonic() - process.exit_at
            fields = {"how": how, "cause": cause, "max_rss_bytes": max_rss or None}
            self.server.journal.note("died", time.time() - ago, **fields)

    def note_child_death(self, death: str) -> None:
        """Tell that one of its processes was killed by a signal while it was in use.

        Args:
            death: Which process, and by which signal, in words.
        """
        server = self.server
        server.journal.note("child_died", how=death)
        if server.settings.on_child_death == "tell":
            # Else it is the reason of the server's end.
            server.warn(f"{server}: its {death}, while it was in use")

    def release_port(self) -> None:
        """Let others have the port that is held for the next start."""
        held, self.reservation = self.reservation, None
        if held is not None:
            held.release()

    def _release_devices(self) -> None:
        # Those that were given to it are somebody else's.
        own, self.server.own_devices = self.server.own_devices, None
        if own is not None:
            own.release()

    def _take_profile_problems(self) -> list[ProfileError]:
        """Return what is wrong with the traces that the last end has written; once."""
        problems, self._profile_problems = self._profile_problems, []
        return problems

    def _take_last_exit(self) -> Exit | None:
        how, self._last_exit = self._last_exit, None
        return how
