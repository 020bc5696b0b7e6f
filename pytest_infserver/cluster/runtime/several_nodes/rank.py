"""One part of a server on several nodes: the same command as on the first node, heard like that."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.cluster.connection.errors import ActorLost, ClusterLost, NoAnswer
from pytest_infserver.cluster.messages import Failure, Have, News, Order, Stopped
from pytest_infserver.cluster.runtime.actor import SLACK, Actor
from pytest_infserver.cluster.runtime.log_copy import LogCopy
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.diagnosis import root_cause
from pytest_infserver.launcher.diagnosis.log import ServerLog
from pytest_infserver.launcher.leaks.report import LeakReport
from pytest_infserver.launcher.share import Share
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.disk.files import open_append

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_POLL = 2.0
_CONTACT_LIMIT = 60.0
_STEP = 0.25


@dataclasses.dataclass(frozen=True)
class PartEnd:
    """How a part of a server has ended.

    Attributes:
        time: When, in seconds since the epoch, by this machine's clock.
        text: How, as a sentence without its end.
        lost: Whether its node or its actor is gone: nobody saw when the engine ended.
    """

    time: float
    text: str
    lost: bool


class Rank:
    """One of these commands: it is up as long as it runs, and what it writes is brought.

    Attributes:
        actor: What holds it.
        end: How it has ended, if it has.
    """

    def __init__(self, actor: Actor, server: InferenceServer, share: Share, on_end: Callable[[], object]) -> None:
        """Prepare it."""
        self.actor = actor
        self.end: PartEnd | None = None
        self._server = server
        self._share = share
        self._on_end = on_end
        self._have = Have()
        self._clock = 0.0
        self._there = ""
        self._log = ServerLog(server.output_dir, server.name)
        self._log_start = 0
        self._copy = LogCopy(None, 0, self._warn_of_log)
        self._heard_at = time.monotonic()
        self._over = False
        self._killed = False
        self._applying = threading.RLock()
        self._stopped: Stopped | None = None

    def __str__(self) -> str:
        return f"its part on {self.actor.node} ({self._share})"

    def create(self, order: Order, name: str) -> None:
        """Have its actor created."""
        node = self.actor.node
        # It listens nowhere for clients: its port is its own.
        order = dataclasses.replace(order, node=str(node), address=node.address, port=None)
        self.actor.create(order.as_json(), f"{name}:node-{self._share.rank}")

    def begin(self, meeting: str) -> None:
        """Have it start."""
        self._open_log()
        hello = self.actor.hello(self._server)
        self._there = hello.folder
        self._clock = self.actor.measured_clock()
        self._share = dataclasses.replace(self._share, meeting=meeting)
        self.actor.ask("begin", SLACK, self._share)
        self._heard_at = time.monotonic()
        threading.Thread(target=self._listen, name=f"infserver-{self._server.name}-node", daemon=True).start()

    def answers(self) -> bool:
        """Ask it how it is; return whether it has answered, or is known to have ended."""
        if self.end is None:
            self._ask(0.0)
        return self.end is not None or time.monotonic() - self._heard_at < _POLL

    def told(self) -> str | None:
        """Return how it has ended, or what its log says, in words; None if there is nothing to say."""
        if self.end is not None:
            return self.end.text
        cause = self._cause()
        telling = (*self._patterns, root_cause.EXCEPTION)
        if cause is None or not any(pattern.search(cause.encode()) for pattern in telling):
            # As long as it runs not every line about an error counts.
            return None
        return f"{self} says: {cause}; log: {self._log.path}"

    def kill(self) -> None:
        """End it at once; nobody is waited for."""
        self._killed = True
        self.actor.tell("kill")

    def stop(self, limit: float) -> None:
        """Have it stop."""
        with contextlib.suppress(InferenceServerError):
            if self._killed:
                # Now waiting for it: what is killed while it stops would count as not having cleaned up.
                self.actor.ask("kill", limit)
            self._stopped = self.actor.ask("stop", limit)
            self._ask(0.0)

    def count_leftovers(self) -> InferenceServerError | None:
        """Count what it has left among what the server has left; return what is wrong with it."""
        server = self._server
        # Once: it is asked again at the very end.
        stopped, self._stopped = self._stopped, None
        if stopped is None:
            return None
        server.survivors = (*server.survivors, *stopped.survivors)
        report = stopped.leak_report
        if report is not None:
            before = server.leak_report or LeakReport((), ())
            server.leak_report = LeakReport(
                (*before.findings, *report.findings),
                tuple(dict.fromkeys((*before.not_checked, *report.not_checked))),
            )
        if stopped.failure is None:
            return None
        text = f"on {self.actor.node} ({self._share}): {stopped.failure.text}"
        return dataclasses.replace(stopped.failure, text=text).error(self._local, self._log.path)

    def close(self) -> None:
        """End its actor."""
        self._over = True
        self.actor.end()
        with self._applying:
            self._copy.close()

    def _open_log(self) -> None:
        self._log.path = self._server.log_path.with_name(f"server.node-{self._share.rank}.log")
        # A restart goes on in the same file, as with the server's own log.
        output: int | None = None
        try:
            output = open_append(self._log.path, empty=self._server.launches <= 1)
        except OSError as error:
            # Without it the server still runs.
            self._warn_of_log(error)
        self._log_start = self._log.size()
        self._copy = LogCopy(output, self._log_start, self._warn_of_log)

    def _warn_of_log(self, error: OSError) -> None:
        self._server.on_warning(
            f"{self._server}: the log of {self} is not complete: {self._log.path} cannot be written: {error.strerror}"
        )

    def _listen(self) -> None:
        """Hear what is new until its end; in a thread of its own."""
        while not self._over and self.end is None:
            self._ask(_POLL)
            silent = time.monotonic() - self._heard_at
            if self.end is None and silent > _CONTACT_LIMIT:
                self._lose(f"{self} has not answered for {silent:.0f} s")
        if not self._over:
            self._on_end()

    def _ask(self, timeout: float) -> None:
        try:
            news: News | Failure = self.actor.ask("news", timeout + _POLL, self._have, timeout)
            self._hear(news)
            while self.end is None and isinstance(news, News) and self._have.log < news.log_size:
                news = self.actor.ask("news", _POLL, self._have, 0.0)
                self._hear(news)
        except NoAnswer:
            time.sleep(_STEP)
        except ActorLost as lost:
            node = self.actor.node
            if self.actor.node_is_lost(str(lost)):
                self._lose(f"its node {node} ({self._share}) was lost")
            else:
                self._lose(f"the actor that held {self} has ended: {lost}")
        except ClusterLost as lost:
            self._lose(str(lost))
        except InferenceServerError as error:
            self._lose(f"{self} could not be asked: {error}")

    def _hear(self, news: News | Failure) -> None:
        with self._applying:
            self._heard_at = time.monotonic()
            if isinstance(news, Failure):
                self._note_end(time.time(), f"{self} did not start: {self._local(news.text)}")
                return
            self._copy.take(news.log, news.have.log)
            said = news.said[self._have.said - news.have.said :]
            self._have = Have(
                log=self._copy.received,
                events=max(self._have.events, news.have.events + len(news.events)),
                said=self._have.said + len(said),
            )
            for is_warning, text in said:
                if is_warning:
                    self._server.warn(f"{self._local(text)} (on {self.actor.node})")
            if self._have.log < news.log_size:
                # First the rest of its log: it says why.
                return
            how, _ = news.ended
            if news.failure is not None:
                self._note_end(news.now - self._clock, f"{self} did not start: {self._local(news.failure.text)}")
            elif news.view.state is ServerState.DIED:
                cause = self._cause()
                words = f"{self} {how}" + (f": {cause}" if cause else "") + f"; log: {self._log.path}"
                self._note_end(news.now - self._clock - (news.view.dead_seconds or 0.0), words)

    def _lose(self, text: str) -> None:
        with self._applying:
            if self.end is None:
                self.end = PartEnd(time.time(), text, lost=True)

    def _note_end(self, at: float, text: str) -> None:
        if self.end is None:
            self.end = PartEnd(at, text, lost=False)

    def _cause(self) -> str | None:
        server = self._server
        return root_cause.root_cause(
            self._log, self._patterns, self._log_start, server.secrets, asked(server).noise_patterns
        )

    @property
    def _patterns(self) -> tuple[re.Pattern[bytes], ...]:
        server = asked(self._server)
        return (*server.cause_patterns, *server.fatal_patterns)

    def _local(self, text: str) -> str:
        there = Path(self._there, "logs", self._server.name, "server.log")
        return text.replace(str(there), str(self._log.path))
