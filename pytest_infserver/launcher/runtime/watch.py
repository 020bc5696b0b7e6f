"""Watches a server that runs in this process's charge: its health, its log, its processes."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from pytest_infserver.launcher.health.hang import write_hang_report
from pytest_infserver.launcher.health.heartbeat import Heartbeat, Pulse
from pytest_infserver.launcher.health.log_growth import LogGrowth
from pytest_infserver.launcher.startup.probes.choice import health_probes
from pytest_infserver.launcher.startup.probes.probe import Probe
from pytest_infserver.launcher.user_code import is_ours
from pytest_infserver.system.http.probe import Answer, shown_seconds

if TYPE_CHECKING:
    from pytest_infserver.launcher.runtime.runtime import Runtime
    from pytest_infserver.launcher.supervision.supervised_process import ServerProcess


class Watch:
    """One heartbeat after another, and what is seen beside it."""

    def __init__(self, runtime: Runtime) -> None:
        """Watch nothing yet.

        Args:
            runtime: What runs the server.
        """
        settings = runtime.server.settings
        self._runtime = runtime
        self._heartbeat: Heartbeat | None = None
        self._log_growth = LogGrowth(settings.log_limit, settings.on_log_limit == "fail")
        self._pauses = 0
        self._pausing = threading.Lock()
        self._probes: list[Probe] | None = None

    def begin(self) -> None:
        """Ask for the server's health from now on."""
        runtime, settings = self._runtime, self._runtime.server.settings
        process = runtime.process
        self._forget_probes()
        # A check that may take longer than hang_timeout would delay the news of a hang.
        limit = min(settings.heartbeat_timeout, settings.hang_timeout)
        heartbeat = Heartbeat(
            functools.partial(self._beat, process, limit),
            interval=settings.heartbeat_interval,
            hang_timeout=settings.hang_timeout,
            on_hang=functools.partial(self._kill_hung, process),
            is_busy=runtime.profiling.is_running,
            samples=runtime.heartbeats,
        )
        with self._pausing:
            # Whoever has paused it means the server, which was started again meanwhile.
            for _ in range(self._pauses):
                heartbeat.pause()
            self._heartbeat = heartbeat
        heartbeat.start()

    def end(self) -> None:
        """Do not ask any more."""
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            heartbeat.end()
        self._forget_probes()

    def _forget_probes(self) -> None:
        probes, self._probes = self._probes, None
        for probe in probes or ():
            probe.close()

    def pause(self) -> None:
        """Keep the server from being taken for hung until `resume`; may be nested."""
        with self._pausing:
            self._pauses += 1
            if self._heartbeat is not None:
                self._heartbeat.pause()

    def resume(self) -> None:
        """Undo one `pause`."""
        with self._pausing:
            self._pauses = max(0, self._pauses - 1)
            if self._heartbeat is not None:
                self._heartbeat.resume()

    def pulse(self) -> Pulse | None:
        """Return what is known now; nobody is asked."""
        heartbeat = self._heartbeat
        return None if heartbeat is None else heartbeat.pulse()

    def look_at_log(self) -> str | None:
        """Tell of a log that becomes too long; return why the server has to end because of it, or None."""
        runtime = self._runtime
        if runtime.process is None:
            return None
        for text in self._log_growth.look(runtime.log.path):
            runtime.server.warn(f"{runtime.server}: {text}")
        return self._log_growth.reason_to_end(runtime.log.path)

    def _beat(self, process: ServerProcess | None, limit: float) -> Answer:
        runtime = self._runtime
        if process is not None:
            process.look()
        excess = self.look_at_log()
        if excess is not None and process is not None and process is runtime.process and process.exit is None:
            self.end()
            runtime.change(why_killed=f"was killed: {excess}")
            process.stop(0)
        return self.ask(limit)

    def ask(self, limit: float) -> Answer:
        """Ask for the server's health as a heartbeat does: what is asked is worked out once for all of them.

        Args:
            limit: Seconds that it has to answer.
        """
        runtime = self._runtime
        # Code of the user's may say something else each time.
        if not is_ours(type(runtime.server)):
            return runtime.ask_health(limit)
        probes = self._probes
        if probes is None:
            probes = self._probes = health_probes(runtime.server)
            for probe in probes:
                probe.keep()
        return runtime.ask(probes, limit)

    def _kill_hung(self, process: ServerProcess | None, seconds: float) -> None:
        # A server that was started again meanwhile is another one, and one that is being stopped has no heartbeat.
        runtime, heartbeat = self._runtime, self._heartbeat
        server = runtime.server
        if process is None or process is not runtime.process or heartbeat is None:
            return
        how = f"its health check has failed for {shown_seconds(seconds)} s ({heartbeat.last})"
        folder = runtime.log.path.parent
        stacks = write_hang_report(f"{server} hangs: {how}", process.supervisor_pid, folder, server.secrets)
        if process is not runtime.process or heartbeat is not self._heartbeat or process.exit is not None:
            return
        runtime.change(why_killed=f"hung and was killed: {how}; {stacks}")
        process.stop(0)
