"""How a running server passes from one run to the next: one lets go of it, the other takes it over."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.diagnosis.log import ServerLog
from pytest_infserver.launcher.diagnosis.out_of_memory import OutOfMemoryWatch
from pytest_infserver.launcher.keeping.fingerprint import Fingerprint, differences, take_fingerprint
from pytest_infserver.launcher.keeping.kept import KeptServer, kept_servers
from pytest_infserver.launcher.keeping.outputs import is_output
from pytest_infserver.launcher.profiling.chosen import is_profiled_at_launch
from pytest_infserver.launcher.runtime.launched import Launched
from pytest_infserver.launcher.startup.probes.choice import health_probes
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.supervision.supervised_process import ServerProcess
from pytest_infserver.system.disk.places import servers_dir
from pytest_infserver.system.disk.socket_files import connect
from pytest_infserver.system.processes.open_files import identity, open_for_writing
from pytest_infserver.system.processes.table import descendants, read_process
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle
    from pytest_infserver.launcher.runtime.process_runtime import ProcessRuntime
    from pytest_infserver.launcher.runtime.status import Status

_HEALTH_LIMIT = 5.0
"""Seconds in which a kept server must answer its health check."""
_CONNECT_LIMIT = 1.0
_MAX_SHOWN = 6


def control_socket_and_info(server: ServerHandle) -> dict[str, Any]:
    """Return for a launch where the supervisor answers other processes, and what it tells them."""
    folder = servers_dir()
    if folder is None:
        return {"control_socket": None, "info": {}}
    # Now and not when it is kept: a file that changes meanwhile is not what this server was started from.
    taken = None if server.debug_mode or is_profiled_at_launch(server) else take_fingerprint(server)
    info = {
        "name": server.name,
        "backend": server.backend_name,
        "model": clean(server.model, server.secrets),
        "url": clean(server.reach.shown(server.server_url), server.secrets),
        "port": server.port,
        "ports": dict(server.ports),
        "debug_mode": server.debug_mode,
        "device_keys": list(server.device_keys),
        "log_path": str(server.log_path),
        "started": time.time(),
        "fingerprint": "" if taken is None else taken.mark,
        "parts": {} if taken is None else taken.told(),
    }
    return {"control_socket": str(folder), "info": info}


def keep(runtime: ProcessRuntime, seconds: float) -> bool:
    """See `InferenceServer.keep`."""
    server, process = runtime.server, runtime.process
    runtime.why_not_kept = _obstacle(runtime, seconds)
    if runtime.why_not_kept is not None or process is None:
        return False
    for problem in runtime.profiling.before_stop():
        server.warn(str(problem))
    if not process.keep(seconds):
        runtime.why_not_kept = "its supervisor did not agree: it is about to end"
        return False
    runtime.watch.end()
    runtime.let_go()
    runtime.change(state=ServerState.STOPPED)
    server.journal.note("kept", seconds=seconds)
    # Its supervisor holds the port.
    runtime.release_port()
    return True


def _obstacle(runtime: ProcessRuntime, seconds: float) -> str | None:
    server, process = runtime.server, runtime.process
    if server.debug_mode:
        return "in debug mode each run ends with a look at what its servers leave behind"
    if server.profiler is not None and is_profiled_at_launch(server):
        return f"it is profiled with {server.profiler.name}"
    if runtime.state is not ServerState.READY or process is None:
        return f"it does not run: its state is {runtime.state}"
    if process.control_socket is None:
        return (
            "there is no private folder in which a later run could find it; set INFSERVER_STATE_DIR to one of this"
            " user's, with mode 0700"
        )
    if not 0 < seconds < math.inf:
        return f"{seconds:g} s is no time to keep it"
    return None


def take_over(runtime: ProcessRuntime) -> bool:
    """See `InferenceServer.take_over`."""
    server = runtime.server
    if server.debug_mode or is_profiled_at_launch(server):
        return False
    backend = server.backend_name
    # Two of another name may be the same to a client, but their logs are not.
    candidates = [kept for kept in kept_servers() if (kept.name, kept.backend) == (server.name, backend)]
    if not candidates:
        # The usual case, which does not need a fingerprint: that takes its time.
        return False
    begin = time.monotonic()
    now = take_fingerprint(server)
    unlike = []
    for kept in candidates:
        found = _differences(server, kept, now)
        if found:
            unlike.append((kept, found))
        elif _try(runtime, kept):
            server.start_seconds = time.monotonic() - begin
            return True
    if unlike:
        _tell_differences(server, *min(unlike, key=lambda one: len(one[1])))
    return False


def _differences(server: ServerHandle, kept: KeptServer, now: Fingerprint) -> list[str]:
    if kept.fingerprint == now.mark:
        return []
    written = open_for_writing(process.pid for process in descendants(kept.supervisor_pid))
    begin, words = time.time() - kept.age, now.words
    found = differences(
        now,
        kept.parts,
        lambda word: clean(word, server.secrets),
        lambda path: identity(path) in written or is_output(words, path, begin),
    )
    return ["what it was started with is not known"] if found is None else found


def _tell_differences(server: ServerHandle, kept: KeptServer, found: Sequence[str]) -> None:
    more = f", and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
    server.warn(
        f"{server}: the one that is kept ({kept.label}) is not taken over, since it is not the same any more:"
        f" {', '.join(found[:_MAX_SHOWN])}{more}"
    )


def _try(runtime: ProcessRuntime, kept: KeptServer) -> bool:
    """Take a kept server over if no other run is quicker and it is in order; stop it if it is not."""
    server = runtime.server
    before = server.allotment.port, server.allotment.ports, runtime.log, runtime.status, runtime.owner
    process = ServerProcess()
    process.on_child_death = runtime.note_child_death
    try:
        if not _claim(server, kept, process):
            return False
        runtime.take(Launched(process, OutOfMemoryWatch(kept.pid)))
        server.give(port=kept.port, ports=kept.ports)
        problem = _problem(runtime, kept)
        if problem is None:
            _become_ready(runtime, kept)
            return True
        server.warn(f"{server}: the server that was kept at {kept.url} {problem}; it is stopped")
        process.stop(server.settings.stop_timeout)
    except BaseException:
        # The supervisor ends what nobody owns.
        process.close()
        runtime.watch.end()
        _put_back(runtime, *before)
        raise
    _put_back(runtime, *before)
    return False


def _put_back(
    runtime: ProcessRuntime, port: int | None, ports: Mapping[str, int], log: ServerLog, status: Status, owner: int
) -> None:
    runtime.let_go()
    runtime.server.give(port=port, ports=ports)
    runtime.log, runtime.owner = log, owner
    runtime.change(state=status.state, taken_over=status.taken_over)


def _claim(server: ServerHandle, kept: KeptServer, process: ServerProcess) -> bool:
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


def _problem(runtime: ProcessRuntime, kept: KeptServer) -> str | None:
    """Return what speaks against a kept server that is ours now, in words that follow its name."""
    server = runtime.server
    root = read_process(kept.pid)
    if kept.start is not None and root is not None and root.start != kept.start:
        return "is another process by now"
    asked_ports = [probe.port for probe in health_probes(server) if probe.port is not None]
    if runtime.owns_ports(list(dict.fromkeys(asked_ports))) is False:
        return "does not listen on its port any more"
    answer = runtime.ask_health(min(_HEALTH_LIMIT, server.settings.heartbeat_timeout))
    return None if answer.ok else f"does not answer its health check ({answer})"


def _become_ready(runtime: ProcessRuntime, kept: KeptServer) -> None:
    server = runtime.server
    runtime.owner = os.getpid()
    runtime.log = ServerLog(server.output_dir, server.name)
    runtime.log.adopt(Path(kept.log_path))
    server.launched_command = server.command_and_notes()[0]
    server.survivors = ()
    server.leak_report = None
    server.device_keys = kept.device_keys
    runtime.note_processes(now=True)
    runtime.change(
        launch_log_start=runtime.log.size(),
        why_killed=None,
        taken_over=True,
        ready_at=time.monotonic(),
        state=ServerState.READY,
    )
    server.journal.open(server.log_path.parent, goes_on=True)
    server.journal.note("taken_over", pid=kept.pid, port=kept.port, log_start=runtime.status.launch_log_start)
    runtime.watch.begin()
