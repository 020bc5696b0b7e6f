"""The nodes of one server besides its first one: what runs there, its end, and what the end of one means for all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.cluster.actor import SLACK, Actor
from pytest_infserver.cluster.connection import ActorLost, ClusterConnection, ClusterLost, NoAnswer
from pytest_infserver.cluster.log_copy import LogCopy
from pytest_infserver.cluster.messages import Failure, Have, News, Order, Stopped
from pytest_infserver.cluster.placement import Placement
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher import diagnosis
from pytest_infserver.launcher.leaks.report import LeakReport
from pytest_infserver.launcher.log import ServerLog
from pytest_infserver.launcher.share import Share
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_POLL = 2.0
_CONTACT_LIMIT = 60.0
_GRACE = 5.0
"""Seconds that parts get to tell of their end after the first one has told of its own."""
_VERDICT_LIMIT = 10.0
"""Seconds that a node which does not answer gets until it is called lost, after the first one has ended."""
_STEP = 0.25
_FREE_LIMIT = 15.0
"""Seconds that Ray gets to end the workers of an engine that is gone."""


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


class Others(ABC):
    """The further nodes of one life of a server."""

    @abstractmethod
    def create(self, order: Order, name: str) -> None:
        """Have their actors created, if they have some.

        Args:
            order: That of the first node.
            name: What its actor is called.
        """

    @abstractmethod
    def join(self, head: Actor) -> Share:
        """Have them begin; return the part of the first node, which is to begin next.

        Raises:
            InferenceServerError: They cannot.
        """

    @abstractmethod
    def why_ended(self, before: float | None = None) -> str | None:
        """Return how that one has ended that has ended first, or None.

        Args:
            before: When the first node's part has ended, if it has: what has ended later is only a consequence.
        """

    @abstractmethod
    def how_died(self, how: str, at: float) -> str:
        """Return how a server has died, in words that follow its name.

        Args:
            how: How the first node's part has ended.
            at: When, in seconds since the epoch.
        """

    @abstractmethod
    def explained(self, failure: Failure) -> Failure:
        """Return why the first node's part did not start, with what is known of the others."""

    @abstractmethod
    def kill(self) -> None:
        """End them at once; nobody is waited for."""

    @abstractmethod
    def begin_stop(self, limit: float) -> None:
        """Have them stop; they have ``limit`` seconds."""

    @abstractmethod
    def await_stop(self) -> InferenceServerError | None:
        """Wait until they have stopped; return what is wrong with what they have left."""

    @abstractmethod
    def close(self) -> None:
        """End what there is of them."""


def others_of(
    connection: ClusterConnection, server: InferenceServer, placement: Placement, on_end: Callable[[], object]
) -> Others | None:
    """Return the further nodes of a server, or None if it runs on one.

    Args:
        connection: The cluster.
        server: The server.
        placement: Where it runs.
        on_end: Called, in a thread of its own, when a part on one of them has ended.
    """
    if placement.demand.nodes == 1:
        return None
    if placement.demand.workers:
        return Workers(server, placement, on_end)
    return Ranks(connection, server, placement, on_end)


class Ranks(Others):
    """The same command on each node."""

    def __init__(
        self,
        connection: ClusterConnection,
        server: InferenceServer,
        placement: Placement,
        on_end: Callable[[], object],
    ) -> None:
        """Prepare them; see `others_of`."""
        self._server = server
        self._ranks = [
            Rank(Actor(connection, placement, rank), server, Share(rank, placement.demand.nodes), on_end)
            for rank in range(1, placement.demand.nodes)
        ]
        self._stopping: list[threading.Thread] = []

    def create(self, order: Order, name: str) -> None:
        """Have one actor created on each node."""
        for rank in self._ranks:
            rank.create(order, name)

    def join(self, head: Actor) -> Share:
        """Have them begin to look for the first one."""
        meeting: str | Failure = head.ask("meet", SLACK)
        if isinstance(meeting, Failure):
            raise meeting.error(lambda text: text, self._server.log_path)
        for rank in self._ranks:
            rank.begin(meeting)
        return Share(0, len(self._ranks) + 1, meeting)

    def why_ended(self, before: float | None = None) -> str | None:
        """Return how that one has ended that has ended first, or None."""
        deadline = time.monotonic() + _VERDICT_LIMIT
        while silent := [rank for rank in self._ranks if not rank.answers()]:
            if time.monotonic() > deadline:
                return f"{silent[0]} does not answer any more"
            time.sleep(_STEP)
        ends = [rank.end for rank in self._ranks if rank.end is not None]
        first = min(ends, key=lambda end: (not end.lost, end.time), default=None)
        if first is None or (before is not None and not first.lost and first.time > before):
            return None
        return first.text

    def how_died(self, how: str, at: float) -> str:
        """Return how a server has died: by the part that has ended first, if that can be told."""
        deadline = time.monotonic() + _GRACE
        # An engine takes its time to end after it has lost its worker: the order of the ends proves little.
        while not any(rank.told() for rank in self._ranks) and time.monotonic() < deadline:
            if not all(rank.answers() for rank in self._ranks):
                break
            time.sleep(_STEP)
        first = self.why_ended(at)
        if first is not None:
            return f"died: {first}"
        return "; ".join([how, *filter(None, (rank.told() for rank in self._ranks))])

    def explained(self, failure: Failure) -> Failure:
        """Return why the first node's part did not start, with the others' own reasons."""
        for rank in self._ranks:
            rank.answers()
        lines = [f"\n  {text}" for text in (rank.told() for rank in self._ranks) if text is not None]
        return dataclasses.replace(failure, text=failure.text + "".join(lines))

    def kill(self) -> None:
        """End them at once."""
        for rank in self._ranks:
            rank.kill()

    def begin_stop(self, limit: float) -> None:
        """Have them stop, all at the same time."""
        if not self._stopping:
            self._stopping = [threading.Thread(target=rank.stop, args=(limit,), daemon=True) for rank in self._ranks]
            for thread in self._stopping:
                thread.start()

    def await_stop(self) -> InferenceServerError | None:
        """Wait until they have stopped; return what is wrong with what they have left."""
        for thread in self._stopping:
            thread.join()
        failures = [failure for rank in self._ranks if (failure := rank.count_leftovers()) is not None]
        for failure in failures[1:]:
            self._server.warn(str(failure))
        return failures[0] if failures else None

    def close(self) -> None:
        """End their actors."""
        threads = [threading.Thread(target=rank.close, daemon=True) for rank in self._ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


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
        self.actor.create(pickle.dumps(order), f"{name}:node-{self._share.rank}")

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
        """Ask it how it is; tell whether it has answered, or is known to have ended."""
        if self.end is None:
            self._ask(0.0)
        return self.end is not None or time.monotonic() - self._heard_at < _POLL

    def told(self) -> str | None:
        """Return how it has ended, or what its log says, in words; None if there is nothing to say."""
        if self.end is not None:
            return self.end.text
        cause = self._cause()
        telling = (*self._patterns, diagnosis.EXCEPTION)
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
        fresh = os.O_TRUNC if self._server.launches <= 1 else 0
        output: int | None = None
        try:
            output = os.open(self._log.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | fresh, 0o666)
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
        return diagnosis.root_cause(
            self._log, self._patterns, self._log_start, server.secrets, asked(server).noise_patterns
        )

    @property
    def _patterns(self) -> tuple[re.Pattern[bytes], ...]:
        server = asked(self._server)
        return (*server.cause_patterns, *server.fatal_patterns)

    def _local(self, text: str) -> str:
        there = Path(self._there, "logs", self._server.name, "server.log")
        return text.replace(str(there), str(self._log.path))


class Workers(Others):
    """Nodes on which the engine has its own workers, actors of its own in the group that it was given."""

    def __init__(self, server: InferenceServer, placement: Placement, on_end: Callable[[], object]) -> None:
        """Prepare to look after them; see `others_of`."""
        self._server = server
        self._placement = placement
        self._on_end = on_end
        self._over = threading.Event()
        self._lost: str | None = None

    def create(self, order: Order, name: str) -> None:
        """Do nothing: the engine does that."""

    def join(self, head: Actor) -> Share:
        """Watch the nodes from now on."""
        threading.Thread(target=self._watch, name=f"infserver-{self._server.name}-nodes", daemon=True).start()
        return Share(0, self._placement.demand.nodes)

    def why_ended(self, before: float | None = None) -> str | None:
        """Return which node is lost, if one is; a worker's end is told by the engine's log."""
        if self._lost is None:
            with contextlib.suppress(InferenceServerError):
                node = self._placement.lost_node()
                if node is not None:
                    rank = self._placement.nodes.index(node)
                    share = Share(rank, self._placement.demand.nodes)
                    self._lost = f"its node {node} ({share}) was lost, and the workers there with it"
        return self._lost

    def how_died(self, how: str, at: float) -> str:
        """Return how it has died: with its node, if that is lost."""
        lost = self.why_ended(at)
        return how if lost is None else f"died: {lost}"

    def explained(self, failure: Failure) -> Failure:
        """Return why it did not start, with the node that is lost."""
        lost = self.why_ended()
        return failure if lost is None else dataclasses.replace(failure, text=f"{failure.text}\n  {lost}")

    def kill(self) -> None:
        """Do nothing: Ray ends the workers of an engine that ends."""

    def begin_stop(self, limit: float) -> None:
        """Do nothing: the engine ends its workers, or Ray does it then."""
        self._over.set()

    def await_stop(self) -> InferenceServerError | None:
        """Wait until none of its GPUs is in use."""
        deadline = time.monotonic() + _FREE_LIMIT
        used = 0.0
        with contextlib.suppress(InferenceServerError):
            while (used := self._placement.gpus_in_use()) > 0 and time.monotonic() < deadline:
                if self._placement.lost_node() is not None:
                    # What is gone is not told of as free.
                    return None
                time.sleep(_STEP)
        if used > 0:
            self._server.warn(
                f"{self._server}: {_FREE_LIMIT:g} s after its end Ray's workers still have {used:g} of its GPUs; their"
                " placement group is removed, with which Ray kills them"
            )
            self._placement.give_back()
        return None

    def close(self) -> None:
        """Watch no more."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            if self.why_ended() is not None:
                self._on_end()
                return
