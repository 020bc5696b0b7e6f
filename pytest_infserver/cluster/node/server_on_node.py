"""One server on its node. It runs the same launcher as pytest does on one machine."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.cluster.messages import Description, Failure, Have, Hello, News, Order, Stopped, machine_id
from pytest_infserver.cluster.node.folder_guard import guard
from pytest_infserver.cluster.parent import watch_parent
from pytest_infserver.cluster.work_folder import work_folder
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.runtime.told import ToldByOwner
from pytest_infserver.launcher.share import SeveralNodes, Share
from pytest_infserver.launcher.startup import ports
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.disk.files import open_read
from pytest_infserver.system.processes.memory import resident_memory
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.diagnosis.journal import Event
    from pytest_infserver.launcher.server import InferenceServer

_STEP = 0.02
_MAX_LOG = 1 << 20
"""Bytes of the log that one answer has at most."""
_MEMORY_INTERVAL = 1.0
_MEETING_PORTS = range(20000, 21000)
_STATES = {
    ServerState.STARTING: "starting",
    ServerState.READY: "running",
    ServerState.STOPPING: "stopping",
    ServerState.DIED: "dead",
}
"""What ``infserver ps`` calls them."""


class ServerOnNode:
    """A server that somebody on another machine uses. Methods run in threads; they raise nothing of their own."""

    def __init__(self, order: bytes) -> None:
        """Make the server; nothing is started.

        Args:
            order: An `Order` as JSON.
        """
        _take_normal_priority()
        # Ray's process on a node that was called dead while it stood still ends, and leaves this one (Ray 2.60).
        watch_parent(os.getppid(), lambda: os._exit(1))
        self._events: list[Event] = []
        self._said: list[tuple[bool, str]] = []
        self._started = False
        self._failure: Failure | None = None
        self._node = self._user = ""
        self._memory: tuple[float, tuple[int, int | None] | None] = (0.0, None)
        self._meeting: ports.Reservation | None = None
        self._folder = work_folder("infserver-node-")
        self._guard = guard(self._folder)
        self._server: InferenceServer | None = None
        try:
            self._server = self._made(Order.from_json(order))
        except Exception as error:
            self._started, self._failure = True, Failure.of(error)

    def _made(self, order: Order) -> InferenceServer:
        if order.keywords.get("cpus") is None:
            _forget_thread_limit()
        server = _create(order, self._folder)
        self._node, self._user = order.node, order.user
        server.told = ToldByOwner(host=order.address)
        server.give(port=server.allotment.port or order.port)
        server.on_warning = lambda text: self._said.append((True, text))
        server.on_progress = lambda text: self._said.append((False, text))
        server.journal.on_event = self._events.append
        server.runtime.work_folder = self._folder
        return server

    # What pytest asks for.

    def hello(self) -> Hello:
        """Return what is to be known before the start."""
        return Hello(str(self._folder), time.time(), machine_id(), _node_id())

    def meet(self) -> str | Failure:
        """Return HOST:PORT where the ranks of a server on several nodes can meet, theirs as long as this lives."""
        server = self._server
        if server is None:
            assert self._failure is not None
            return self._failure
        try:
            # Not where a server of ours or one of Ray's workers (10002 to 19999) looks for a port.
            self._meeting = ports.reserve_port(
                server.host, None, (server.port,), further=asked(server).meeting_ports, search=_MEETING_PORTS
            )
        except InferenceServerError as error:
            return Failure.of(error)
        host = f"[{server.host}]" if ":" in server.host else server.host
        return f"{host}:{self._meeting.port}"

    def begin(self, share: Share | None = None) -> None:
        """Start the server; `news` tells how that goes.

        Args:
            share: Which part of a server on several nodes it is.
        """
        if self._server is not None and share is not None:
            by_ray = asked(self._server).several_nodes is SeveralNodes.RAY
            self._server.share = _in_own_group(share) if by_ray else share
        starting = threading.Thread(target=self._start, name="infserver-start", daemon=True)
        starting.start()
        while starting.is_alive() and self._server is not None and self._server.state is ServerState.NEW:
            # A cancellation that comes next must find a start that is under way.
            time.sleep(_STEP)

    def news(self, have: Have, timeout: float) -> News | Failure:
        """Return what is new; wait for it up to ``timeout`` seconds."""
        server = self._server
        if server is None:
            assert self._failure is not None
            return self._failure
        deadline = time.monotonic() + timeout
        before = server.state, server.runtime.status.phase, self._started
        while not self._is_new(server, have) and before == (server.state, server.runtime.status.phase, self._started):
            if time.monotonic() >= deadline:
                break
            time.sleep(_STEP)
        return self._news(server, have)

    def stop(self) -> Stopped:
        """Stop the server."""
        server = self._server
        if server is None:
            return Stopped(None, None, None, ())
        failure = None
        try:
            server.stop()
        except Exception as error:
            failure = Failure.of(error)
        return Stopped(failure, server.stop_seconds, server.leak_report, server.survivors)

    # What others ask for.

    def describe(self) -> Description | None:
        """Return what ``infserver ps`` shows; None when there is nothing to show any more."""
        server = self._server
        state = None if server is None else _STATES.get(server.state)
        if server is None or state is None:
            return None
        launched = next((event.time for event in reversed(self._events) if event.kind == "launched"), None)
        return Description(
            name=server.name,
            state=state,
            model=clean(server.model, server.secrets),
            url=server.server_url if server.serves else f"({server.share})",
            pid=server.pid,
            node=self._node,
            age=None if launched is None else max(0.0, time.time() - launched),
            memory=resident_memory(server.process_tree()) or None,
            stop_timeout=server.runtime.stop_limit,
            user=self._user,
        )

    def stop_for(self, who: str) -> bool:
        """Stop the server for somebody else than its user; return whether it is gone."""
        return self._server is None or self._server.runtime.stop_for(who)

    # And again pytest.

    def cancel(self) -> None:
        """Cancel its start."""
        if self._server is not None:
            self._server.cancel_start()

    def kill(self) -> None:
        """End it at once."""
        if self._server is not None:
            self._server.kill()

    def pause(self) -> None:
        """Keep it from being taken for hung."""
        if self._server is not None:
            self._server.runtime.pause_heartbeat()

    def resume(self) -> None:
        """Undo one `pause`."""
        if self._server is not None:
            self._server.runtime.resume_heartbeat()

    def log_size(self) -> int:
        """Return the size of the log."""
        return 0 if self._server is None else self._server.log_size

    def start_profile(self, name: str, tool: str | None) -> Failure | None:
        """Begin a profile."""
        try:
            self._of_node.start_profile(name, tool)
        except Exception as error:
            return Failure.of(error)
        return None

    def stop_profile(self) -> Failure | list[str]:
        """End it; return the paths of its files below the folder."""
        try:
            return [str(path.relative_to(self._folder)) for path in self._of_node.stop_profile()]
        except Exception as error:
            return Failure.of(error)

    def files(self) -> list[tuple[str, int, int]]:
        """Return the path below the folder, size and mode of all files that the server has made, but its log."""
        found = []
        for path in sorted(self._folder.rglob("*")):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                    found.append((str(path.relative_to(self._folder)), status.st_size, status.st_mode & 0o777))
        return found

    def read(self, path: str, start: int, limit: int) -> bytes:
        """Return a part of one of these files."""
        whole = (self._folder / path).resolve()
        if not whole.is_relative_to(self._folder.resolve()):
            raise ValueError(f"{path} is none of the server's files")
        with open_read(whole) as file:
            file.seek(start)
            return file.read(limit)

    def close(self) -> None:
        """Remove the folder, at the end."""
        shutil.rmtree(self._folder, ignore_errors=True)

    # The inside.

    def _start(self) -> None:
        try:
            if self._server is not None:
                self._server.start()
        except Exception as error:
            self._failure = Failure.of(error)
        self._started = True

    @property
    def _of_node(self) -> InferenceServer:
        assert self._server is not None
        return self._server

    def _is_new(self, server: InferenceServer, have: Have) -> bool:
        return (
            len(self._events) > have.events
            or len(self._said) > have.said
            or server.log_size > have.log
            or (self._started and server.state is ServerState.FAILED)
            or server.state is ServerState.DIED
        )

    def _news(self, server: InferenceServer, have: Have) -> News:
        # First what others are only the consequence of: the log of an end is complete when the end is told.
        view, ended, started, failure = server.runtime.view(), server.runtime.last_exit(), self._started, self._failure
        size = server.log_size
        # Not `read_log_bytes`: that gives the end of what is asked for.
        log = server.runtime.log.read_head(have.log, min(_MAX_LOG, size - have.log)) if size > have.log else b""
        command = server.launched_command
        return News(
            now=time.time(),
            view=view,
            phase=server.runtime.status.phase,
            have=have,
            log=log,
            log_size=size,
            events=self._events[have.events :],
            said=self._said[have.said :],
            samples=_later(server, have.sample),
            memory=self._used(server),
            started=started,
            failure=failure,
            ended=ended,
            command=None if command is None else command.argv,
            device_keys=tuple(server.device_keys),
        )

    def _used(self, server: InferenceServer) -> tuple[int, int | None] | None:
        at, used = self._memory
        if time.monotonic() - at >= _MEMORY_INTERVAL:
            from pytest_infserver.reporting.record.memory_sampler import memory_of

            used = memory_of(server)
            self._memory = time.monotonic(), used
        return used


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _create(order: Order, folder: Path) -> InferenceServer:
    from pytest_infserver.launcher.factory import create_server

    keywords = dict(order.keywords)
    # Its own log and traces; they are brought to where the user wants them.
    keywords["output_dir"] = str(folder / "logs")
    profile = keywords.get("profile")
    if profile is not None:
        keywords["profile"] = {**profile, "output_dir": str(folder / "profiles")}
    if order.backend_class is None:
        return create_server(order.backend, **keywords)
    # Code, from the process that has made this actor: nobody else can give it an order.
    backend: type[InferenceServer] = pickle.loads(order.backend_class)
    return backend(**{**keywords, "backend": order.backend})


def _take_normal_priority() -> None:
    """Let the engine have the priority that it has without Ray, whose workers run at 15, if this user may."""
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 0)


def _forget_thread_limit() -> None:
    """Let the engine have as many threads as it has without Ray, whose workers get OMP_NUM_THREADS for their CPUs."""
    with contextlib.suppress(OSError):
        of_node = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        if not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in of_node):
            os.environ.pop("OMP_NUM_THREADS", None)


def _in_own_group(share: Share) -> Share:
    """Return a part with the cluster and the placement group of this actor, in which the engine is to run, too."""
    import ray
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    assert group is not None
    return replace(share, ray_address=ray.get_runtime_context().gcs_address, group=group.id.hex())


def _later(server: InferenceServer, time: float) -> list[tuple[float, float | None]]:
    found = []
    for sample in reversed(list(server.heartbeats)):
        if sample[0] <= time:
            break
        found.append(sample)
    return found[::-1]
