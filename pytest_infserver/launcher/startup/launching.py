"""How a server's process is launched: its port, its log, its supervisor, and the wait until it is ready."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.errors import PortInUseError, ServerStartupError
from pytest_infserver.launcher.checks.options import learn_in_background
from pytest_infserver.launcher.checks.settings import missing_model, require_one_node
from pytest_infserver.launcher.command import Command
from pytest_infserver.launcher.devices import claim_for
from pytest_infserver.launcher.diagnosis import messages, root_cause
from pytest_infserver.launcher.diagnosis.cause import cause_of_failure
from pytest_infserver.launcher.diagnosis.out_of_memory import OutOfMemoryWatch
from pytest_infserver.launcher.keeping import handover
from pytest_infserver.launcher.leaks.check import LeakCheck
from pytest_infserver.launcher.runtime.launched import Launched
from pytest_infserver.launcher.startup import ports
from pytest_infserver.launcher.startup.launch_files import write_launch_files
from pytest_infserver.launcher.startup.named_ports import with_named
from pytest_infserver.launcher.startup.probes.choice import start_probes
from pytest_infserver.launcher.startup.readiness import NotReady, ReadinessCheck, wait_until_ready
from pytest_infserver.launcher.startup.socket_path import require_free_socket
from pytest_infserver.launcher.supervision.supervised_process import Launch, LaunchFailed, ServerProcess
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.models.builtin import ensure_builtin, is_builtin

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle
    from pytest_infserver.launcher.runtime.process_runtime import ProcessRuntime

_PORT_ATTEMPTS = 3


def launch(runtime: ProcessRuntime) -> None:
    """Launch a server's process and return when the server is ready; part of `InferenceServer.start`.

    Raises:
        ServerStartupError: It did not become ready. What runs of it is left to the caller.
        ConfigError: It has an option that the installed version of the engine does not have any more.
        ProfileError: The profile that is configured cannot be made.
    """
    server = runtime.server
    _prepare(runtime)
    tried: list[int] = []
    try:
        _launch_on_some_port(runtime, tried)
    except PortInUseError:
        raise
    except ServerStartupError:
        if server.profiler is None or not root_cause.has_line(
            runtime.log, server.profiler.own_failures, runtime.status.launch_log_start
        ):
            raise
        server.warn(f"{server}: {server.profiler.name} itself failed at the start, which is tried once more")
        runtime.end_process()
        _launch_on_some_port(runtime, tried)


def _launch_on_some_port(runtime: ProcessRuntime, tried: list[int]) -> None:
    server = runtime.server
    for attempt in range(_PORT_ATTEMPTS):
        try:
            _launch_once(runtime, tried)
            return
        except PortInUseError:
            launched = runtime.process is not None
            runtime.end_process()
            if attempt == _PORT_ATTEMPTS - 1:
                raise
            if server.settings.port is None:
                server.give(port=None)
            elif not (
                launched and _reports_port_taken(runtime, functools.partial(_is_drawn, server))
            ) and not _await_rest(runtime):
                # The port is the user's choice.
                raise


def _await_rest(runtime: ProcessRuntime) -> bool:
    """Wait until a server without SO_REUSEADDR can have the user's port, and return whether it could not before."""
    server = runtime.server
    own = (server.port, *asked(server).derived_ports(server.port), *server.allotment.ports.values())
    told: set[int] = set()

    def heard(port: int) -> None:
        runtime.raise_if_cancelled()
        if not told:
            server.on_progress(
                f"{server} cannot listen on port {port} yet, where connections of a server before it are in TIME_WAIT"
                " (a minute); with SO_REUSEADDR it could"
            )
        told.add(port)

    return ports.await_rest(server.host, own, heard)


def _prepare(runtime: ProcessRuntime) -> None:
    """Do what is done once per start."""
    server = runtime.server
    if server.share is None:
        require_one_node(server.settings)
    if server.serves and _is_open(server) and asked(server).api_key is None:
        server.warn(
            f"{server}: listens on {server.host}, where others may reach it, and has no API key; set one with the"
            " engine's --api-key, or leave 'host' at 127.0.0.1"
        )
    asked(server).require_engine()
    require_free_socket(str(server), server.reach)
    runtime.profiling.check()
    command, notes = server.command_and_notes()
    for note in notes:
        server.warn(f"{server}: {note}")
    learn_in_background(server, command.env)
    if is_builtin(server.model):
        try:
            ensure_builtin(server.model, runtime.note_download)
        except ServerStartupError:
            # It was cancelled meanwhile.
            raise
        except RuntimeError as error:
            raise ServerStartupError(f"{server} cannot start: {error}") from None
    if server.devices is None and not (server.share is not None and server.share.group):
        # In a placement group the devices are those of Ray's workers.
        server.own_devices = claim_for(server)
    runtime.await_memory()


def _is_open(server: ServerHandle) -> bool:
    """Return whether other machines may reach it."""
    return server.reach.uds is None and not ports.is_loopback(server.host)


def _launch_once(runtime: ProcessRuntime, tried: list[int]) -> None:
    server = runtime.server
    runtime.raise_if_cancelled()
    with contextlib.ExitStack() as stack:
        reservation = _reserve_port(runtime, tried, stack)
        try:
            output, folder_lock = runtime.log.open()
        except OSError as error:
            raise ServerStartupError(
                f"{server} cannot start: its log cannot be written: {error}. Set 'output_dir' to a place that can."
            ) from None
        stack.callback(os.close, output)
        stack.callback(os.close, folder_lock)
        server.journal.open(runtime.log.path.parent)
        server.leak_report = None
        check = LeakCheck(server.env_vars) if server.debug_mode else None
        launches = runtime.status.launches + 1
        runtime.change(launch_log_start=runtime.log.size(), launches=launches, taken_over=False)
        tmpdir = check.tmpdir if check is not None and check.private_tmpdir else None
        place = runtime.profiling.prepare(server.env_vars.get("TMPDIR") or tmpdir)
        server.give(place=place)
        server.launched_command = command = server.command_and_notes()[0]
        # From here on whoever interrupts this finds what there is to end.
        made = Launched(ServerProcess(), OutOfMemoryWatch(), check)
        made.process.on_child_death = runtime.note_child_death
        runtime.take(made)
        launch = _launch_data(runtime, command, check, output, [folder_lock, *_locks(server, check, reservation)])
        if check is not None:
            stack.callback(check.release)
        _leave_launch_files(server, command, launch)
        try:
            made.process.launch(launch)
        except LaunchFailed as error:
            raise ServerStartupError(
                f"{server} cannot start: {error}\n  command: {command}\n  log:     {server.log_path}",
                log_path=server.log_path,
            ) from None
        log_start = runtime.status.launch_log_start
        server.journal.note("launched", launch=launches, pid=made.process.pid, port=server.port, log_start=log_start)
        runtime.profiling.launched()
    if server.serves:
        _wait_until_ready(runtime, made.process, command)
    runtime.note_processes(now=True)
    made.process.mark_ready()


def _locks(server: ServerHandle, check: LeakCheck | None, reservation: ports.Reservation) -> list[int]:
    """Return the descriptors of what stays locked as long as the server's supervisor lives."""
    holders = [holder for holder in (reservation, check, server.devices) if holder is not None]
    return [lock for holder in holders for lock in holder.lock_fds]


def _launch_data(
    runtime: ProcessRuntime, command: Command, check: LeakCheck | None, output: int, keep_fds: Sequence[int]
) -> Launch:
    server, settings = runtime.server, runtime.server.settings
    place, profiler = server.allotment.place, server.profiler
    has_engine_below = profiler is not None and profiler.has_engine_below
    return Launch(
        argv=command.argv,
        env=command.env if check is None else check.environment(command.env),
        log_fd=output,
        stop_timeout=settings.stop_timeout,
        keep_fds=keep_fds,
        stop_command=None if settings.stop_command is None else server.fill(settings.stop_command),
        tmpdir=None if check is None else check.tmpdir,
        # nsys has its own, and gives the engine this one.
        private_tmpdir=check is not None and check.private_tmpdir and "TMPDIR" not in server.profiler_env_vars,
        pid_file=place.pid_file if place is not None and has_engine_below else None,
        scratch=None if place is None else place.scratch,
        work_folder=None if runtime.work_folder is None else str(runtime.work_folder),
        cwd=settings.cwd,
        stop_signal=getattr(signal, settings.stop_signal),
        fails_with_child=settings.on_child_death == "fail",
        **handover.control_socket_and_info(server),
    )


def _leave_launch_files(server: ServerHandle, command: Command, launch: Launch) -> None:
    try:
        write_launch_files(server.log_path.parent, command, launch.env)
    except OSError as error:
        server.warn(f"{server}: its command and environment cannot be written beside its log: {error}")


def _reserve_port(runtime: ProcessRuntime, tried: list[int], stack: contextlib.ExitStack) -> ports.Reservation:
    server = runtime.server
    try:
        reservation = _held_port(runtime)
        if reservation is None:
            runtime.release_port()
            further = server.settings.ports
            fixed = [port for port in further.values() if port is not None]
            own = ports.reserve_port(
                server.host,
                server.allotment.port,
                avoid=[*tried, *fixed],
                further=asked(server).derived_ports,
                # Of a run's servers nobody expects 8000, and runs in containers do not see each other's promises.
                at_random=runtime.holds_port,
            )
            reservation = with_named(own, server.host, further, tried)
    except ServerStartupError as error:
        raise type(error)(f"{server} cannot start: {error}") from None
    if runtime.holds_port:
        runtime.reservation = reservation
    else:
        stack.callback(reservation.release)
    server.give(port=reservation.port, ports=reservation.named)
    tried += [reservation.port, *reservation.named.values()]
    return reservation


def _held_port(runtime: ProcessRuntime) -> ports.Reservation | None:
    """Return what is held for this start: given up for a moment, it would be another server's."""
    server, held = runtime.server, runtime.reservation
    if held is None or held.port != server.allotment.port:
        return None
    further = [*asked(server).derived_ports(held.port), *held.named.values()]
    return held if ports.is_still_free(server.host, held, further) else None


def _wait_until_ready(runtime: ProcessRuntime, process: ServerProcess, command: Command) -> None:
    server = runtime.server
    backend = asked(server)
    probes = start_probes(server)
    asked_ports = [probe.port for probe in probes if probe.port is not None]
    check = ReadinessCheck(
        probes=probes,
        startup_timeout=server.settings.startup_timeout,
        download_timeout=server.settings.download_timeout,
        request_timeout=server.settings.heartbeat_timeout,
        fatal=backend.fatal_patterns,
        downloading=backend.download_patterns,
        phases=backend.phases,
        on_wait=runtime.note_phase,
        owns_port=functools.partial(runtime.owns_ports, list(dict.fromkeys(asked_ports))),
        elsewhere=runtime.listens_elsewhere,
        listens_at=runtime.listens_at,
        cancelled=runtime.start_is_cancelled,
        own_probes=server.settings.ready is not None,
        stall_timeout=server.settings.download_stall_timeout,
    )
    log_start = runtime.status.launch_log_start
    outcome = wait_until_ready(check, process, runtime.log, log_start)
    runtime.raise_if_cancelled()
    if isinstance(outcome, NotReady):
        # The rest of the tree may still be writing its reasons.
        runtime.end_process(keep=True)
        finding = runtime.start_finding(outcome.exit)
        cause = cause_of_failure(server, in_start=True)
        # Engines take a path that does not exist for a name on the hub, and complain about its form.
        advice = missing_model(server) if server.model in (cause or "") else []
        taken = not outcome.timed_out and _reports_port_taken(runtime, functools.partial(_is_exchangeable, server))
        raise messages.startup_error(
            str(server), outcome, cause, command, runtime.log, log_start, taken, advice, finding
        )


def _reports_port_taken(runtime: ProcessRuntime, relevant: Callable[[int | None], bool]) -> bool:
    noise = asked(runtime.server).noise_patterns
    return root_cause.reports_port_taken(runtime.log, relevant, runtime.status.launch_log_start, noise)


def _is_exchangeable(server: ServerHandle, port: int | None) -> bool:
    """Return whether another launch may take another port instead; None is one that the log does not name."""
    return port is None or port in (server.port, *asked(server).derived_ports(server.port)) or _is_drawn(server, port)


def _is_drawn(server: ServerHandle, port: int | None) -> bool:
    """Return whether the engine has drawn a port by itself: another launch draws another one."""
    if port is None or port == server.port:
        return False
    command = server.command()
    named = any(ports.names_port(word, port) for word in (*command.argv, *filter(None, command.env_vars.values())))
    return not named and (port >= ports.FIRST_EPHEMERAL or port in asked(server).drawn_ports)
