"""LocalRuntime: a server that this process launches on this machine, or attaches to."""

from __future__ import annotations

from pytest_infserver.launcher.attach import wait_for_url
from pytest_infserver.launcher.keeping import handover
from pytest_infserver.launcher.runtime.process_runtime import ProcessRuntime
from pytest_infserver.launcher.startup import launching
from pytest_infserver.launcher.startup.probes.choice import start_probes
from pytest_infserver.system.http.probe import Answer


class LocalRuntime(ProcessRuntime):
    """Launches the server, or takes over one that an earlier run has kept."""

    def _launch(self) -> None:
        launching.launch(self)

    def keep(self, seconds: float) -> bool:
        """Let go of the running server for a later run; return whether that was possible."""
        self.require_owner("let go of it")
        with self.lifecycle:
            return handover.keep(self, seconds)

    def take_over(self) -> bool:
        """Take over a server that an earlier run has kept; return whether there was one."""
        with self.lifecycle:
            return not self.launched and handover.take_over(self)


class AttachedRuntime(ProcessRuntime):
    """A server that somebody else runs, and that is only used: there is no process to end."""

    def _launch(self) -> None:
        server = self.server
        self.profiling.check()
        server.journal.note("attached", url=server.server_url)
        wait_for_url(server.server_url, self._ask_once, server.settings.startup_timeout, str(server))

    def _ask_once(self) -> Answer:
        answer = self.ask(start_probes(self.server), self.server.settings.heartbeat_timeout)
        self.raise_if_cancelled()
        return answer

    def keep(self, seconds: float) -> bool:
        """Return False: there is nothing to let go of."""
        self.require_owner("let go of it")
        self.why_not_kept = "it was not started by us"
        return False
