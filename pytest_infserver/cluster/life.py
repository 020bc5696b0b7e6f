"""One life of a server on a node, as pytest sees it: its actor, what is heard of it, and its files that are brought."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pytest_infserver import __version__
from pytest_infserver.cluster.actor import Actor
from pytest_infserver.cluster.backend_class import by_value
from pytest_infserver.cluster.connection import ActorAway, ActorLost, ClusterConnection, ClusterLost, NoAnswer, Node
from pytest_infserver.cluster.demand import Demand
from pytest_infserver.cluster.log_copy import LogCopy
from pytest_infserver.cluster.messages import Failure, Have, News, Order, Stopped, machine_id
from pytest_infserver.cluster.placement import Placement
from pytest_infserver.cluster.several_nodes import others_of
from pytest_infserver.errors import InferenceServerError, ProfileError, ServerStartupError
from pytest_infserver.launcher.command import make_command
from pytest_infserver.launcher.ends import Exit
from pytest_infserver.launcher.follower import FollowedProcess, View
from pytest_infserver.launcher.heartbeat import Pulse
from pytest_infserver.launcher.profiling.traces import claim
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.reporting.server_table import as_user
from pytest_infserver.system.text import clean

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
_LOOK_LIMIT = 5.0
_SIZE_LIMIT = 1.0
_CHUNK = 8 << 20
_DOUBLE_SUFFIXES = (".speedscope.json", ".json.gz")
_NOT_BROUGHT = {"server.log", "events.jsonl", "server.previous.log"}


class NodeLost(ServerStartupError):
    """A node was lost while a server started there: on another one it may start."""


class NotBegun(NodeLost):
    """A server's actor has ended before the server was launched: with another one it may start."""


class Life:
    """From `begin` to `end` or `abandon`; what is heard is applied to the server's handle.

    Attributes:
        view: How the server was when it was heard of last.
        has_told_failure: Whether its journal says why it did not start.
        ended_profile: The files of a profile that the server's end has ended, or why they are not there.
    """

    def __init__(self, connection: ClusterConnection, server: InferenceServer, placement: Placement, name: str) -> None:
        """Prepare it; `begin` begins it."""
        self._connection = connection
        self._server = server
        self._placement = placement
        self._actor = Actor(connection, placement)
        self._others = others_of(connection, server, placement, self._other_ended)
        self._name = f"infserver:{name}:{server.name}"
        self._have = Have()
        self._heard_at = time.monotonic()
        self._clock = 0.0
        self._there = ""
        self._log = LogCopy(None, 0, self._warn_of_log)
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
        self._brought: set[str] = set()
        self.has_told_failure = False
        self._is_profiled = False
        self.ended_profile: list[Path] | ProfileError | None = None

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
            output, self._folder_lock = server._log.open()
        except OSError as error:
            raise ServerStartupError(
                f"{server} cannot start: its log cannot be written: {error}. Set 'output_dir' to a place that can."
            ) from None
        server.launch_log_start = server._log.size()
        self._log = LogCopy(output, server.launch_log_start, self._warn_of_log)
        server.launches += 1
        server.taken_over = False
        server.node, server._address = str(node), node.address
        server.journal.open(server.log_path.parent)
        server.journal.note("placed", node=", ".join(map(str, self._placement.nodes)))
        order = Order(
            version=__version__,
            backend=server.settings.backend or server.backend_name,
            backend_class=by_value(type(server)),
            keywords=_keywords(server, self._placement.demand),
            node=str(node),
            address=node.address,
            port=server._port,
            user=as_user(os.getpid(), socket.gethostname()),
        )
        try:
            self._actor.create(pickle.dumps(order), self._name)
            if self._others is not None:
                self._others.create(order, self._name)
            hello = self._actor.hello(server)
            self._there, server.remote = hello.folder, hello.machine != machine_id()
            self._clock = self._actor.measured_clock()
            self.ask("begin", _SLACK, None if self._others is None else self._others.join(self._actor))
        except ActorLost as lost:
            why = self._why_lost(str(lost))
            if self._placement.lost:
                raise self._start_error(why) from None
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
            self._server._tell_waiting()
            if self._server._start_is_cancelled() and not cancelled:
                # If it cannot be told, that decides, too.
                with contextlib.suppress(InferenceServerError):
                    self.ask("cancel", _SLACK)
                    cancelled = True
        if self._failure is not None:
            raise self._failure
        self._server._raise_if_cancelled()
        self._bring_launch_files()

    def _is_decided(self) -> bool:
        return self._failure is not None or self._process is not None

    # What is heard.

    def ask(self, method: str, timeout: float, *arguments: Any) -> Any:
        """Call a method of `NodeServer`."""
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
            self._hear(self.ask("news", limit, self._have, 0.0))
            news = self._news
            if news is None or self._have.log >= news.log_size or time.monotonic() > deadline:
                return

    def _listen(self) -> None:
        """Hear what is new until the server's end; in a thread of its own."""
        while not self._over:
            try:
                self._hear(self.ask("news", _POLL + _ANSWER_LIMIT, self._have, _POLL))
            except NoAnswer as problem:
                node = self._lost_node() if isinstance(problem, ActorAway) else None
                if node is not None:
                    self._lose(self._with_node(node))
                elif self.silent > _CONTACT_LIMIT:
                    # Not to be started there again.
                    self._placement.lost = True
                    self._lose(f"was lost: its node {self._actor.node} has not answered for {self.silent:.0f} s")
                else:
                    time.sleep(_STEP)
            except ActorLost as lost:
                self._lose(self._why_lost(str(lost)))
            except ClusterLost as lost:
                self._lose(f"was lost: {lost}")
            except InferenceServerError as error:
                self._lose(f"was lost: its node {self._placement.nodes[0]} could not be asked: {error}")
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
            self._have = dataclasses.replace(self._have, log=self._log.received)
            self._note(news)
            self._news = news
            server = self._server
            server.memory = news.memory
            server.device_keys = news.device_keys
            if server._command is None and news.command is not None:
                server._command = make_command(news.command, server.env_vars)
            is_ready = news.view.state is ServerState.READY and news.started and self._process is None
            if is_ready and self._ready_size is None:
                self._ready_size = news.log_size
            if self._have.log < (self._ready_size or 0 if is_ready else news.log_size):
                # First what it had written by then: an end is told when its last words are here. One that is ready
                # may write faster than that is brought.
                return
            if news.failure is not None and self._process is None:
                self._bring_launch_files()
                failure = news.failure if self._others is None else self._others.explained(news.failure)
                self._decide(self._start_failure(failure))
            elif is_ready:
                self._become_ready()
            elif news.view.state is ServerState.DIED and news.started:
                self._bring_launch_files()
                if self._process is None:
                    # It was ready for so short a time that nobody has heard of that.
                    self._process = self._followed(dataclasses.replace(self.view, running=True))
                how, hang = news.ended
                if self._others is not None:
                    died_at = news.now - self._clock - (news.view.dead_seconds or 0.0)
                    words = hang or str(how)
                    told = self._others.how_died(words, died_at)
                    hang = hang if told == words else told
                self._end(how or Exit(None, 0), hang and self._local(hang))
            elif server.state is ServerState.STARTING and news.phase:
                server.phase = news.phase

    def _warn_of_log(self, error: OSError) -> None:
        # What a full disk does not take is lost, as it would be for a server on this machine.
        self._server.warn(
            f"{self._server}: its log is not complete: {self._server.log_path} cannot be written: {error.strerror}"
        )

    def _note(self, news: News) -> None:
        server = self._server
        events = news.events[self._have.events - news.have.events :]
        said = news.said[self._have.said - news.have.said :]
        samples = [sample for sample in news.samples if sample[0] > self._have.sample]
        for event in events:
            fields = dict(event.fields)
            if event.kind in ("starting", "ready", "profile"):
                # This side says them itself.
                continue
            if event.kind == "launched":
                fields.update(launch=server.launches, log_start=self._log.place(fields.get("log_start", 0)))
                server._port = fields.get("port", server._port)
            self.has_told_failure |= event.kind == "failed"
            fields = {key: self._shown(value) for key, value in fields.items()}
            server.journal.note(event.kind, event.time - self._clock, **fields)
        for is_warning, text in said:
            (server.warn if is_warning else server.on_progress)(self._shown(text))
        for at, seconds in samples:
            server.heartbeats.append((at - self._clock, seconds))
        self._have = dataclasses.replace(
            self._have,
            events=self._have.events + len(events),
            said=self._have.said + len(said),
            sample=samples[-1][0] if samples else self._have.sample,
        )

    def _become_ready(self) -> None:
        self._process = self._followed(self.view)
        self._tell()

    def _followed(self, view: View) -> FollowedProcess:
        return self._server.follow(view, self._server._keeper)  # type: ignore[arg-type]

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
            self._server.note_end(self._process, how, hang)
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
                self._decide(self._start_error(why))
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
        return dataclasses.replace(failure, text=text).error(self._shown, self._server.log_path)

    def _start_error(self, why: str) -> ServerStartupError:
        server = self._server
        kind = NodeLost if self._placement.lost else ServerStartupError
        what = f"{why}, while it started" if why.startswith("was lost") else f"did not start: {why}"
        return kind(f"{server} {what}\n  log:     {server.log_path}", log_path=server.log_path)

    def _why_lost(self, reason: str) -> str:
        """Return why the server's actor is gone, to follow the server's name."""
        node = self._lost_node()
        if node is None and "node has died" in reason:
            node = self._actor.node
        if node is not None:
            return self._with_node(node)
        return (
            f"was lost: the process that held it on {self._actor.node} has ended: {reason} (Ray's own logs"
            " there may say more: /tmp/ray/session_latest/logs)"
        )

    def _with_node(self, node: Node) -> str:
        self._placement.lost = True
        try:
            self._connection.nodes(_LOOK_LIMIT)
        except ClusterLost as lost:
            return f"was lost: {lost}"
        except NoAnswer:
            return f"was lost with its node {node}; the cluster's head node does not answer either"
        return f"was lost with its node {node}"

    def _lost_node(self) -> Node | None:
        """Return the node of the server that is gone, if one is."""
        for node in self._placement.nodes:
            if node.has_no_ray():
                return node
        with contextlib.suppress(InferenceServerError):
            alive = {one.id for one in self._connection.nodes(_LOOK_LIMIT) if one.alive}
            return next((node for node in self._placement.nodes if node.id not in alive), None)
        return None

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
                failure = stopped.failure.error(self._shown, self._server.log_path)
            if self._others is not None:
                failure = self._first(failure, self._others.await_stop())
            self.catch_up(_SLACK)
            self._bring_launch_files()
            self._end_profile()
            self._bring_profiles()
        except (ActorLost, ClusterLost) as lost:
            # With it goes the server; who waits for it hears that as its death.
            self._lose(self._why_lost(str(lost)) if isinstance(lost, ActorLost) else f"was lost: {lost}")
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

    # Its files.

    @property
    def _here(self) -> Path:
        return self._server.log_path.parent

    def _local(self, value: Any) -> Any:
        """Return a text with the folder of the node's files replaced by that to which they are brought."""
        if not isinstance(value, str) or not self._there:
            return value
        return value.replace(f"{self._there}/logs/{self._server.name}", str(self._here)).replace(
            f"{self._there}/profiles/{self._server.name}", str(self._server.profile_dir)
        )

    def _shown(self, value: Any) -> Any:
        """Return what a node says as users may see it: it does not know all secrets that this process knows."""
        value = self._local(value)
        return clean(value, self._server.secrets) if isinstance(value, str) else value

    def _bring_launch_files(self) -> None:
        """Bring what lies beside the log: how it was launched, and reports about hangs."""
        with contextlib.suppress(InferenceServerError, OSError):
            for path, size, mode in self.ask("files", _SLACK):
                parts = PurePosixPath(path).parts
                if parts[0] == "logs" and parts[-1] not in _NOT_BROUGHT and path not in self._brought:
                    self._brought.add(path)
                    self._bring(path, size, self._here / parts[-1], mode)

    def start_profile(self, name: str, tool: str | None) -> None:
        """Begin a profile."""
        failure: Failure | None = self.ask("start_profile", self._profile_limit, name, tool)
        if failure is not None:
            raise failure.error(self._shown, self._server.log_path)
        self._is_profiled = True

    def stop_profile(self) -> list[Path]:
        """End it, and return its files."""
        self._is_profiled = False
        answer: Failure | list[str] = self.ask("stop_profile", self._profile_limit)
        brought = self._bring_profiles()
        if isinstance(answer, Failure):
            raise answer.error(self._shown, self._server.log_path)
        files = [brought[path] for path in answer if path in brought]
        self._server._profiling.asked_for += files
        return files

    def _end_profile(self) -> None:
        """End a profile that the end of the server has ended; `ClusterKeeper` gives it to whoever has begun it."""
        if self._is_profiled:
            try:
                self.ended_profile = self.stop_profile()
            except ProfileError as error:
                self.ended_profile = error

    @property
    def _profile_limit(self) -> float:
        profile = self._server.settings.profile
        return _STOP_SLACK + (1200.0 if profile is None else profile.flush_timeout)

    def _bring_profiles(self) -> dict[str, Path]:
        """Bring the traces that are not here yet; return path on the node to path here."""
        files = [
            (path, size, mode)
            for path, size, mode in self.ask("files", _SLACK)
            if _is_trace(path) and path not in self._brought and size
        ]
        brought: dict[str, Path] = {}
        try:
            for top, whole in _by_trace(files).items():
                target = self._claim(top, is_folder=len(PurePosixPath(whole[0][0]).parts) > 3)
                for path, size, mode in whole:
                    place = target.joinpath(*PurePosixPath(path).parts[3:])
                    place.parent.mkdir(parents=True, exist_ok=True)
                    self._bring(path, size, place, mode)
                    self._brought.add(path)
                    brought[path] = place
        except OSError as error:
            where = f"{self._server}: its traces cannot be brought from {self._server.node}"
            raise ProfileError(f"{where}: {error}") from None
        if brought:
            self._server._profiling.made += brought.values()
            self._server.journal.note("profile", files=[str(path) for path in brought.values()])
        return brought

    def _claim(self, name: str, *, is_folder: bool) -> Path:
        """Take a name in the folder for traces that nothing has yet."""
        suffix = next((one for one in _DOUBLE_SUFFIXES if name.endswith(one)), PurePosixPath(name).suffix)
        if is_folder:
            suffix = ""
        return claim(self._server.profile_dir, name.removesuffix(suffix), suffix)

    def _bring(self, path: str, size: int, target: Path, mode: int) -> None:
        part = target.with_name(f".{target.name}.part")
        part.unlink(missing_ok=True)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(handle, "wb") as file:  # noqa: PTH123
                at = 0
                while at < size:
                    data: bytes = self.ask("read", _CONTACT_LIMIT, path, at, _CHUNK)
                    if not data:
                        break
                    file.write(data)
                    at += len(data)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _keywords(server: InferenceServer, demand: Demand) -> Mapping[str, Any]:
    values = server.settings.keywords()
    if demand.nodes > 1 and demand.gpus and not demand.workers:
        # On its node it has no more than its share.
        values["gpus"] = demand.gpus_each
    profile = values.get("profile")
    if profile is not None:
        values["profile"] = dataclasses.asdict(profile)
    return values


def _is_trace(path: str) -> bool:
    """Return whether a file of a node is one of a server's traces: ``profiles/NAME/TRACE``, and folders in it."""
    parts = PurePosixPath(path).parts
    return parts[0] == "profiles" and len(parts) > 2


def _by_trace(files: Sequence[tuple[str, int, int]]) -> dict[str, list[tuple[str, int, int]]]:
    """Return the files of each trace by its name: that of a file, or of a folder with several."""
    traces: dict[str, list[tuple[str, int, int]]] = {}
    for entry in files:
        # profiles/SERVER/TRACE, or profiles/SERVER/TRACE/...
        traces.setdefault(PurePosixPath(entry[0]).parts[2], []).append(entry)
    return traces
