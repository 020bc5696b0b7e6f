"""One life of a server on a node, as pytest sees it: its actor, what is heard of it, and its files that are brought."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.connection.errors import ActorAway, ActorLost, ClusterLost, NoAnswer
from pytest_infserver.cluster.messages import Failure, News, Stopped, machine_id
from pytest_infserver.cluster.placement.placement import Placement
from pytest_infserver.cluster.runtime.actor import Actor
from pytest_infserver.cluster.runtime.log_copy import LogCopy
from pytest_infserver.cluster.runtime.loss import Loss, NotBegun
from pytest_infserver.cluster.runtime.node_files import NodeFiles
from pytest_infserver.cluster.runtime.node_profile import NodeProfile
from pytest_infserver.cluster.runtime.order import order_for
from pytest_infserver.cluster.runtime.several_nodes.choice import others_of
from pytest_infserver.cluster.runtime.told import Told
from pytest_infserver.errors import InferenceServerError, ProfileError, ServerStartupError
from pytest_infserver.launcher.command import make_command
from pytest_infserver.launcher.health.heartbeat import Pulse
from pytest_infserver.launcher.runtime.followed import FollowedProcess, apply_view, note_end
from pytest_infserver.launcher.runtime.view import View
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.supervision.exit import Exit

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_POLL = 2.0
"""Seconds after which a node answers even if nothing is new."""
_ANSWER_LIMIT = 3.0
"""Seconds that such an answer may be late until it is asked for once more."""
_SLACK = 30.0
"""Seconds that an answer may take on a busy machine, beyond what the question itself takes."""
_CONTACT_LIMIT = 60.0
"""Seconds without an answer after which a node is given up."""
_STOP_SLACK = 60.0
_STEP = 0.25
_SIZE_LIMIT = 1.0


class Life:
    """From `begin` to `end` or `abandon`; what is heard is applied to the server's handle.

    Attributes:
        view: How the server was when it was heard of last.
        profile: The profiles that are made of it.
    """

    def __init__(self, connection: ClusterConnection, server: InferenceServer, placement: Placement, name: str) -> None:
        """Prepare it; `begin` begins it.

        Args:
            connection: The cluster.
            server: The server's handle.
            placement: Where it runs.
            name: What its actor is called, after the run.
        """
        self._runtime = server.runtime
        self._server = server
        self._placement = placement
        self._actor = Actor(connection, placement)
        self._others = others_of(connection, server, placement, self._other_ended)
        self._name = f"infserver:{name}:{server.name}"
        self._heard_at = time.monotonic()
        self._log = LogCopy(None, 0, self._warn_of_log)
        self._loss = Loss(connection, server, placement)
        self._files = NodeFiles(server, self.ask)
        self.profile = NodeProfile(server, self.ask, self._files)
        self._told = Told(server, self._files, lambda offset: self._log.place(offset))
        self._folder_lock: int | None = None
        self._applying = threading.RLock()
        self._changed = threading.Condition()
        self._news: News | None = None
        self._failure: InferenceServerError | None = None
        self._over = False
        self._is_gone = False
        self._is_stopping = False
        self._is_closed = False
        self._ready_size: int | None = None
        self._killed = False
        self._process: FollowedProcess | None = None

    @property
    def has_told_failure(self) -> bool:
        """Whether its journal says why it did not start."""
        return self._told.has_told_failure

    @property
    def view(self) -> View:
        """How the server was when it was heard of last, in this machine's terms."""
        assert self._news is not None
        view = self._news.view
        node = self._placement.nodes[0]
        return dataclasses.replace(
            view,
            launches=self._server.launches,
            log_path=self._server.log_path,
            launch_log_start=self._log.place(view.launch_log_start),
            log_end=None if view.log_end is None else self._log.place(view.log_end),
            start_seconds=self._server.start_seconds,
            node=str(node),
            address=node.address,
            remote=self._server.remote,
        )

    @property
    def pulse(self) -> Pulse | None:
        """What its heartbeat knew when it was heard of last."""
        pulse = None if self._news is None else self._news.view.pulse
        return None if pulse is None else pulse.later(self.silent)

    @property
    def silent(self) -> float:
        """Seconds since its node has answered last; it does that every few seconds."""
        return time.monotonic() - self._heard_at

    # Its beginning.

    def begin(self) -> None:
        """Have the node begin to start the server.

        Raises:
            InferenceServerError: It cannot.
        """
        server, node = self._server, self._placement.nodes[0]
        try:
            output, self._folder_lock = self._runtime.log.open()
        except OSError as error:
            raise ServerStartupError(
                f"{server} cannot start: its log cannot be written: {error}. Set 'output_dir' to a place that can."
            ) from None
        log_start, launches = self._runtime.log.size(), self._runtime.status.launches + 1
        self._runtime.change(launch_log_start=log_start, launches=launches, taken_over=False)
        self._log = LogCopy(output, log_start, self._warn_of_log)
        # What must not be shown of an earlier life is not to be shown of this one either.
        server.told = dataclasses.replace(server.told, node=str(node), host=node.address, reach=None)
        server.journal.open(server.log_path.parent)
        server.journal.note("placed", node=", ".join(map(str, self._placement.nodes)))
        order = order_for(server, self._placement)
        try:
            self._actor.create(order.as_json(), self._name)
            if self._others is not None:
                self._others.create(order, self._name)
            hello = self._actor.hello(server)
            self._files.folder = hello.folder
            server.told = dataclasses.replace(server.told, remote=hello.machine != machine_id())
            self._told.clock = self._actor.measured_clock()
            self.ask("begin", _SLACK, None if self._others is None else self._others.join(self._actor))
        except ActorLost as lost:
            why = self._loss.why(str(lost))
            if self._placement.lost:
                raise self._loss.start_error(why) from None
            raise NotBegun(f"{server} cannot start on {node}: {lost}") from None
        self._heard_at = time.monotonic()
        threading.Thread(target=self._listen, name=f"infserver-{server.name}", daemon=True).start()

    def await_ready(self) -> None:
        """Wait until the server is ready; tell meanwhile what it does.

        Raises:
            InferenceServerError: It did not become ready.
        """
        cancelled = False
        while True:
            with self._changed:
                self._changed.wait_for(self._is_decided, _STEP)
                if self._is_decided():
                    break
            self._server.tell_waiting()
            if self._runtime.start_is_cancelled() and not cancelled:
                # If it cannot be told, that decides, too.
                with contextlib.suppress(InferenceServerError):
                    self.ask("cancel", _SLACK)
                    cancelled = True
        if self._failure is not None:
            raise self._failure
        self._runtime.raise_if_cancelled()
        self._files.bring_launch_files()

    def _is_decided(self) -> bool:
        return self._failure is not None or self._process is not None

    # What is heard.

    def ask(self, method: str, timeout: float, *arguments: Any) -> Any:
        """Call a method of `ServerOnNode`."""
        return self._actor.ask(method, timeout, *arguments)

    def log_size(self) -> int | None:
        """Return the size of the log as it is on the node now, or None if that does not say so soon."""
        if self._over:
            return None
        with contextlib.suppress(InferenceServerError):
            size: int = self.ask("log_size", _SIZE_LIMIT)
            return self._log.place(size)
        return None

    def catch_up(self, limit: float) -> None:
        """Have all that the server has written by now here."""
        deadline = time.monotonic() + limit
        while True:
            self._hear(self.ask("news", limit, self._told.have, 0.0))
            news = self._news
            if news is None or self._told.have.log >= news.log_size or time.monotonic() > deadline:
                return

    def _listen(self) -> None:
        """Hear what is new until the server's end; in a thread of its own."""
        while not self._over:
            try:
                self._hear(self.ask("news", _POLL + _ANSWER_LIMIT, self._told.have, _POLL))
            except NoAnswer as problem:
                node = self._loss.lost_node() if isinstance(problem, ActorAway) else None
                if node is not None:
                    self._lose(self._loss.with_node(node))
                elif self.silent > _CONTACT_LIMIT:
                    # Not to be started there again.
                    self._placement.lost = True
                    self._lose(f"was lost: its node {self._actor.node} has not answered for {self.silent:.0f} s")
                else:
                    time.sleep(_STEP)
            except ActorLost as lost:
                self._lose(self._loss.why(str(lost)))
            except ClusterLost as lost:
                self._lose(f"was lost: {lost}")
            except InferenceServerError as error:
                self._lose(f"was lost: its node {self._actor.node} could not be asked: {error}")
            except Exception as error:
                self._lose(f"was lost: what its node tells cannot be understood: {error!r}")

    def _hear(self, news: News | Failure) -> None:
        with self._applying:
            if self._is_closed:
                # The handle may stand for the next life by now.
                return
            self._heard_at = time.monotonic()
            if isinstance(news, Failure):
                self._decide(self._start_failure(news))
                return
            self._log.take(news.log, news.have.log)
            self._told.note_log(self._log.received)
            self._told.note(news)
            self._news = news
            server = self._server
            self._runtime.memory = news.memory
            server.device_keys = news.device_keys
            if news.view.secrets is not None:
                server.told = dataclasses.replace(server.told, secrets=news.view.secrets)
            if server.launched_command is None and news.command is not None:
                server.launched_command = make_command(news.command, server.env_vars)
            is_ready = news.view.state is ServerState.READY and news.started and self._process is None
            if is_ready and self._ready_size is None:
                self._ready_size = news.log_size
            if self._told.have.log < (self._ready_size or 0 if is_ready else news.log_size):
                # First what it had written by then: an end is told when its last words are here. One that is ready
                # may write faster than that is brought.
                return
            if news.failure is not None and self._process is None:
                self._files.bring_launch_files()
                failure = news.failure if self._others is None else self._others.explained(news.failure)
                self._decide(self._start_failure(failure))
            elif is_ready:
                self._become_ready()
            elif news.view.state is ServerState.DIED and news.started:
                self._files.bring_launch_files()
                if self._process is None:
                    # It was ready for so short a time that nobody has heard of that.
                    self._process = self._followed(dataclasses.replace(self.view, running=True))
                how, hang = news.ended
                if self._others is not None:
                    died_at = news.now - self._told.clock - (news.view.dead_seconds or 0.0)
                    words = hang or str(how)
                    told = self._others.how_died(words, died_at)
                    hang = hang if told == words else told
                self._end(how or Exit(None, 0), hang and self._files.local(hang))
            elif server.state is ServerState.STARTING and news.phase:
                self._runtime.change(phase=news.phase)

    def _warn_of_log(self, error: OSError) -> None:
        # What a full disk does not take is lost, as it would be for a server on this machine.
        self._server.warn(
            f"{self._server}: its log is not complete: {self._server.log_path} cannot be written: {error.strerror}"
        )

    def _become_ready(self) -> None:
        self._process = self._followed(self.view)
        self._tell()

    def _followed(self, view: View) -> FollowedProcess:
        return apply_view(self._runtime, view)

    def _decide(self, error: InferenceServerError) -> None:
        self._failure = error
        self._be_over()
        self._tell()

    def _be_over(self) -> None:
        self._over = True
        if self._others is not None:
            # Nothing of it goes on without the rest.
            self._others.kill()

    def _other_ended(self) -> None:
        """Note that its part on another node has ended: the end of all, unless it is the consequence of another."""
        with contextlib.suppress(InferenceServerError):
            self.catch_up(_SLACK)
        if self._is_stopping:
            # It is meant to end; it may do so before it is told to, by the end of the first one.
            return
        if not self._over and self._others is not None:
            self._killed = True
            self._actor.tell("kill")
            why = self._others.why_ended() or "its part on another node has ended"
            self._lose(why if self._process is None else f"died: {why}", is_gone=False)

    def _end(self, how: Exit, hang: str | None) -> None:
        """Note the end of the server's process."""
        self._be_over()
        if self._process is not None and self._process.exit is None:
            note_end(self._server, self._process, how, hang)
        self._tell()

    def _lose(self, why: str, *, is_gone: bool = True) -> None:
        """Note that nothing will be heard of the server any more.

        Args:
            why: Why.
            is_gone: Whether its actor does not answer any more.
        """
        with self._applying:
            if self._over:
                return
            self._is_gone = is_gone
            server = self._server
            if self._process is None:
                self._decide(self._loss.start_error(why))
                return
            server.journal.note("died", how=why)
            self._end(Exit(None, 0), why)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _start_failure(self, failure: Failure) -> InferenceServerError:
        """Return why the node could not start it, with the node: "this machine" and "PATH" are those of that one."""
        head, end, rest = failure.text.partition("\n")
        text = f"{head}\n  node:    {self._actor.node}{end}{rest}"
        return dataclasses.replace(failure, text=text).error(self._files.shown, self._server.log_path)

    # Its end.

    def end(self) -> None:
        """Stop the server, bring what it has written, and end its actor.

        Raises:
            LeakError: Debug mode: it left something behind; that is gone by now.
            ProfileError: A trace is not complete.
        """
        self._is_stopping = True
        server = self._server
        profile = server.settings.profile
        limit = server.settings.stop_timeout + _STOP_SLACK + (0.0 if profile is None else profile.flush_timeout)
        begin = time.monotonic()
        failure: InferenceServerError | None = None
        if self._is_gone:
            if self._others is not None:
                self._others.begin_stop(limit)
            self._close()
            return
        try:
            if self._others is not None:
                self._others.begin_stop(limit)
            if self._killed:
                # Now waiting for it: what is killed while it stops would count as not having cleaned up.
                self.ask("kill", limit)
            stopped: Stopped = self.ask("stop", limit)
            server.stop_seconds = time.monotonic() - begin
            server.leak_report, server.survivors = stopped.leak_report, stopped.survivors
            if stopped.failure is not None:
                failure = stopped.failure.error(self._files.shown, self._server.log_path)
            if self._others is not None:
                failure = self._first(failure, self._others.await_stop())
            self.catch_up(_SLACK)
            self._files.bring_launch_files()
            self.profile.end()
            self._files.bring_profiles()
        except (ActorLost, ClusterLost) as lost:
            # With it goes the server; who waits for it hears that as its death.
            self._lose(self._loss.why(str(lost)) if isinstance(lost, ActorLost) else f"was lost: {lost}")
        except ProfileError as error:
            failure = failure or error
        except InferenceServerError as error:
            server.warn(f"{server}: its node could not be asked how it ended: {error}")
        finally:
            self._close()
        if failure is not None:
            raise failure

    def _first(
        self, failure: InferenceServerError | None, another: InferenceServerError | None
    ) -> InferenceServerError | None:
        if failure is not None and another is not None:
            self._server.warn(str(another))
        return failure or another

    def abandon(self) -> None:
        """End what there is of it, after a start that has failed or was interrupted."""
        try:
            if self._others is not None:
                self._others.kill()
                self._others.begin_stop(self._server.settings.stop_timeout + _STOP_SLACK)
            if self._is_gone:
                return
            self.ask("cancel", _SLACK)
            self.ask("stop", self._server.settings.stop_timeout + _STOP_SLACK)
            self.catch_up(_SLACK)
        except InferenceServerError:
            # Its supervisor ends it without an actor, too.
            pass
        finally:
            self._close()

    def _close(self) -> None:
        with self._applying:
            self._over = self._is_closed = True
        self._actor.end(is_gone=self._is_gone)
        if self._others is not None:
            self._others.await_stop()
            self._others.close()
        with self._applying:
            self._log.close()
            lock, self._folder_lock = self._folder_lock, None
            if lock is not None:
                os.close(lock)
