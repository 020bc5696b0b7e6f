"""How a running server passes from one run to the next: one lets go of it, the other takes it over."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.fingerprint import fingerprint
from pytest_infserver.launcher.kept import KeptServer, kept_servers
from pytest_infserver.launcher.log import ServerLog
from pytest_infserver.launcher.out_of_memory import OutOfMemoryWatch
from pytest_infserver.launcher.places import servers_dir
from pytest_infserver.launcher.process import ServerProcess
from pytest_infserver.launcher.processes import read_process
from pytest_infserver.launcher.socket_files import connect
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_HEALTH_LIMIT = 5.0
"""Seconds in which a kept server must answer its health check."""
_CONNECT_LIMIT = 1.0


def door_and_info(server: InferenceServer) -> dict[str, Any]:
    """Return for a launch where the supervisor answers other processes, and what it tells them."""
    folder = servers_dir()
    if folder is None:
        return {"door": None, "info": {}}
    # Now and not when it is kept: a file that changes meanwhile is not what this server was started from.
    mark = "" if server.debug_mode or server.profiled_at_launch else fingerprint(server)
    info = {
        "name": server.name,
        "backend": server.backend_name,
        "model": clean(server.model, server.secrets),
        "url": clean(server.server_url, server.secrets),
        "port": server.port,
        "debug_mode": server.debug_mode,
        "device_keys": list(server.device_keys),
        "log_path": str(server.log_path),
        "started": time.time(),
        "fingerprint": mark,
    }
    return {"door": str(folder), "info": info}


def keep(server: InferenceServer, seconds: float) -> bool:
    """See `InferenceServer.keep`."""
    process = server._process
    server.why_not_kept = _obstacle(server, seconds)
    if server.why_not_kept is not None or process is None:
        return False
    for problem in server._profiling.before_stop():
        server.warn(str(problem))
    if not process.keep(seconds):
        server.why_not_kept = "its supervisor did not agree: it is about to end"
        return False
    server._end_heartbeat()
    server._process = None
    server._end_memory_watch()
    server._state = ServerState.STOPPED
    server.journal.note("kept", seconds=seconds)
    # Its supervisor holds the port.
    server.release_port()
    return True


def _obstacle(server: InferenceServer, seconds: float) -> str | None:
    if server.attached:
        return "it was not started by us"
    if server.debug_mode:
        return "in debug mode each run ends with a look at what its servers leave behind"
    if server.profiler is not None and server.profiled_at_launch:
        return f"it is profiled with {server.profiler.name}"
    if server.state is not ServerState.READY or server._process is None:
        return f"it does not run: its state is {server.state}"
    if server._process.door is None:
        return (
            "there is no private folder in which a later run could find it; set INFSERVER_STATE_DIR to one of this"
            " user's, with mode 0700"
        )
    if not 0 < seconds < math.inf:
        return f"{seconds:g} s is no time to keep it"
    return None


def take_over(server: InferenceServer) -> bool:
    """See `InferenceServer.take_over`."""
    if server.attached or server.debug_mode or server.profiled_at_launch:
        return False
    backend = server.backend_name
    # Two of another name may be the same to a client, but their logs are not.
    candidates = [kept for kept in kept_servers() if (kept.name, kept.backend) == (server.name, backend)]
    if not candidates:
        # The usual case, which does not need a fingerprint: that takes its time.
        return False
    begin = time.monotonic()
    mark = fingerprint(server)
    for kept in candidates:
        if kept.fingerprint == mark and _try(server, kept):
            server.start_seconds = time.monotonic() - begin
            return True
    return False


def _try(server: InferenceServer, kept: KeptServer) -> bool:
    """Take a kept server over if no other run is quicker and it is in order; stop it if it is not."""
    before = server._port, server._log, server._state, server._owner
    process = ServerProcess()
    try:
        if not _claim(server, kept, process):
            return False
        server._process, server._port = process, kept.port
        problem = _problem(server, kept)
        if problem is None:
            _become_ready(server, kept)
            return True
        server.warn(f"{server}: the server that was kept at {kept.url} {problem}; it is stopped")
        process.stop(server.settings.stop_timeout)
    except BaseException:
        # The supervisor ends what nobody owns.
        process.close()
        server._end_heartbeat()
        server._process = None
        server.taken_over = False
        server._port, server._log, server._state, server._owner = before
        raise
    server._process = None
    server._port, server._log, server._state, server._owner = before
    return False


def _claim(server: InferenceServer, kept: KeptServer, process: ServerProcess) -> bool:
    question = {
        "fingerprint": kept.fingerprint,
        "stop_timeout": server.settings.stop_timeout,
        "info": {"name": server.name},
    }
    try:
        channel = connect(kept.path, _CONNECT_LIMIT)
    except OSError:
        return False
    return process.take_over(channel, question)


def _problem(server: InferenceServer, kept: KeptServer) -> str | None:
    """Return what speaks against a kept server that is ours now, in words that follow its name."""
    root = read_process(kept.pid)
    if kept.start is not None and root is not None and root.start != kept.start:
        return "is another process by now"
    if server._owns_port() is False:
        return "does not listen on its port any more"
    answer = server._ask_health(min(_HEALTH_LIMIT, server.settings.heartbeat_timeout))
    return None if answer.ok else f"does not answer its health check ({answer})"


def _become_ready(server: InferenceServer, kept: KeptServer) -> None:
    server._owner = os.getpid()
    server._log = ServerLog(server.output_dir, server.name)
    server._log.adopt(Path(kept.log_path))
    server.launch_log_start = server._log.size()
    server._command = server.command_and_notes()[0]
    server._why_killed = None
    server.survivors = ()
    server.leak_report = None
    server.taken_over = True
    server.device_keys = kept.device_keys
    server._memory_watch = OutOfMemoryWatch(kept.pid)
    server._note_processes(now=True)
    server._ready_at = time.monotonic()
    server._state = ServerState.READY
    server.journal.open(server.log_path.parent, goes_on=True)
    server.journal.note("taken_over", pid=kept.pid, port=kept.port, log_start=server.launch_log_start)
    server._start_heartbeat()
