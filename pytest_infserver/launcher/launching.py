"""How a server's process is launched: its port, its log, its supervisor, and the wait until it is ready."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.errors import PortInUseError, ServerStartupError, UserCodeError
from pytest_infserver.launcher import diagnosis, handover, messages, ports
from pytest_infserver.launcher.checks import missing_model, require_one_node
from pytest_infserver.launcher.command import Command
from pytest_infserver.launcher.devices import claim_for
from pytest_infserver.launcher.launch_files import write_launch_files
from pytest_infserver.launcher.leaks.check import LeakCheck
from pytest_infserver.launcher.out_of_memory import OutOfMemoryWatch
from pytest_infserver.launcher.process import Launch, LaunchFailed, ServerProcess
from pytest_infserver.launcher.readiness import NotReady, ReadinessCheck, wait_until_ready
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.models.builtin import ensure_builtin, is_builtin

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_PORT_ATTEMPTS = 3


def launch(server: InferenceServer) -> None:
    """Launch a server's process and return when the server is ready; part of `InferenceServer.start`.

    Raises:
        ServerStartupError: It did not become ready. What runs of it is left to the caller.
        ConfigError: It has an option that the installed version of the engine does not have any more.
        ProfileError: The profile that is configured cannot be made.
    """
    _prepare(server)
    tried: list[int] = []
    for attempt in range(_PORT_ATTEMPTS):
        try:
            _launch_once(server, tried)
            return
        except PortInUseError:
            launched = server._process is not None
            server._end_process()
            if attempt == _PORT_ATTEMPTS - 1:
                raise
            if server.settings.port is None:
                server._port = None
            elif not (launched and _reports_port_taken(server, functools.partial(_is_drawn, server))):
                # The port is the user's choice.
                raise


def root_cause(server: InferenceServer, *, in_start: bool = False) -> str | None:
    """Return what the log of the last launch says of why it failed, or None.

    Args:
        server: The server.
        in_start: Whether it did not become ready, so that the lines count after which none does.
    """
    backend = asked(server)
    try:
        patterns = (*backend.cause_patterns, *(backend.fatal_patterns if in_start else ()))
        noise = backend.noise_patterns
    except UserCodeError as error:
        # Somebody waits for the reason of an end: this is what is known of it.
        return str(error)
    return diagnosis.root_cause(server._log, patterns, server.launch_log_start, server.secrets, noise)


def _prepare(server: InferenceServer) -> None:
    """Do what is done once per start."""
    if server.share is None:
        require_one_node(server.settings)
    if server.serves and not ports.is_loopback(server.host) and asked(server).api_key is None:
        server.warn(
            f"{server}: listens on {server.host}, where others may reach it, and has no API key; set one with the"
            " engine's --api-key, or leave 'host' at 127.0.0.1"
        )
    asked(server).require_engine()
    server._profiling.check()
    for note in server.command_and_notes()[1]:
        server.warn(f"{server}: {note}")
    if is_builtin(server.model):
        try:
            ensure_builtin(server.model, server._note_download)
        except RuntimeError as error:
            raise ServerStartupError(f"{server} cannot start: {error}") from None
    if server.devices is None and not (server.share is not None and server.share.group):
        # In a placement group the devices are those of Ray's workers.
        server._own_devices = claim_for(server)


def _launch_once(server: InferenceServer, tried: list[int]) -> None:
    server._raise_if_cancelled()
    with contextlib.ExitStack() as stack:
        reservation = _reserve_port(server, tried, stack)
        try:
            output, folder_lock = server._log.open()
        except OSError as error:
            raise ServerStartupError(
                f"{server} cannot start: its log cannot be written: {error}. Set 'output_dir' to a place that can."
            ) from None
        stack.callback(os.close, output)
        stack.callback(os.close, folder_lock)
        server.journal.open(server.log_path.parent)
        server.launch_log_start = server._log.size()
        server.launches += 1
        server.taken_over = False
        server.leak_report = None
        server._leak_check = check = LeakCheck(server.env_vars) if server.debug_mode else None
        tmpdir = check.tmpdir if check is not None and check.private_tmpdir else None
        server._place = place = server._profiling.prepare(server.env_vars.get("TMPDIR") or tmpdir)
        server._command = command = server.command_and_notes()[0]
        server._process = process = ServerProcess()
        server._memory_watch = OutOfMemoryWatch()
        holders = [holder for holder in (reservation, check, server.devices) if holder is not None]
        locks = [lock for holder in holders for lock in holder.lock_fds]
        stop_command = server.settings.stop_command
        launch = Launch(
            argv=command.argv,
            env=command.env if check is None else check.environment(command.env),
            log_fd=output,
            stop_timeout=server.settings.stop_timeout,
            keep_fds=[folder_lock, *locks],
            stop_command=None if stop_command is None else server.fill(stop_command),
            tmpdir=None if check is None else check.tmpdir,
            # nsys has its own, and gives the engine this one.
            private_tmpdir=tmpdir is not None and "TMPDIR" not in server.profiler_env_vars,
            pid_file=place.pid_file if place is not None and server.has_engine_below else None,
            scratch=None if place is None else place.scratch,
            work_folder=None if server.work_folder is None else str(server.work_folder),
            **handover.door_and_info(server),
        )
        if check is not None:
            stack.callback(check.release)
        _leave_launch_files(server, command, launch)
        try:
            process.launch(launch)
        except LaunchFailed as error:
            raise ServerStartupError(
                f"{server} cannot start: {error}\n  command: {command}\n  log:     {server.log_path}",
                log_path=server.log_path,
            ) from None
        server.journal.note(
            "launched", launch=server.launches, pid=process.pid, port=server.port, log_start=server.launch_log_start
        )
        server._profiling.launched()
    if server.serves:
        _wait_until_ready(server, process, command)
    server._note_processes(now=True)
    process.mark_ready()


def _leave_launch_files(server: InferenceServer, command: Command, launch: Launch) -> None:
    try:
        write_launch_files(server.log_path.parent, command, launch.env)
    except OSError as error:
        server.warn(f"{server}: its command and environment cannot be written beside its log: {error}")


def _reserve_port(server: InferenceServer, tried: list[int], stack: contextlib.ExitStack) -> ports.Reservation:
    try:
        reservation = _held_port(server)
        if reservation is None:
            server.release_port()
            reservation = ports.reserve_port(
                server.host, server._port, avoid=tried, further=asked(server).derived_ports
            )
    except ServerStartupError as error:
        raise type(error)(f"{server} cannot start: {error}") from None
    if server.holds_port:
        server._reservation = reservation
    else:
        stack.callback(reservation.release)
    server._port = reservation.port
    tried.append(reservation.port)
    return reservation


def _held_port(server: InferenceServer) -> ports.Reservation | None:
    """Return what is held for this start: given up for a moment, it would be another server's."""
    held = server._reservation
    if held is None or held.port != server._port:
        return None
    return held if ports.is_still_free(server.host, held, asked(server).derived_ports(held.port)) else None


def _wait_until_ready(server: InferenceServer, process: ServerProcess, command: Command) -> None:
    backend = asked(server)
    check = ReadinessCheck(
        health_url=server.health_url(),
        startup_timeout=server.settings.startup_timeout,
        download_timeout=server.settings.download_timeout,
        request_timeout=server.settings.heartbeat_timeout,
        fatal=backend.fatal_patterns,
        downloading=backend.download_patterns,
        phases=backend.phases,
        on_wait=server._note_phase,
        owns_port=server._owns_port,
        elsewhere=server._listens_elsewhere,
        cancelled=server._start_is_cancelled,
        headers=server._headers(),
    )
    outcome = wait_until_ready(check, process, server._log, server.launch_log_start)
    server._raise_if_cancelled()
    if isinstance(outcome, NotReady):
        # The rest of the tree may still be writing its reasons.
        server._end_process(keep=True)
        finding = None if server._memory_watch is None else server._memory_watch.finding(process.pid, outcome.exit)
        cause = root_cause(server, in_start=True)
        # Engines take a path that does not exist for a name on the hub, and complain about its form.
        advice = missing_model(server) if server.model in (cause or "") else []
        taken = not outcome.timed_out and _reports_port_taken(server, functools.partial(_is_exchangeable, server))
        raise messages.startup_error(
            str(server), outcome, cause, command, server._log, server.launch_log_start, taken, advice, finding
        )


def _reports_port_taken(server: InferenceServer, relevant: Callable[[int | None], bool]) -> bool:
    noise = asked(server).noise_patterns
    return diagnosis.reports_port_taken(server._log, relevant, server.launch_log_start, noise)


def _is_exchangeable(server: InferenceServer, port: int | None) -> bool:
    """Tell whether another launch may take another port instead; None is one that the log does not name."""
    return port is None or port in (server.port, *asked(server).derived_ports(server.port)) or _is_drawn(server, port)


def _is_drawn(server: InferenceServer, port: int | None) -> bool:
    """Tell whether the engine has drawn a port by itself: another launch draws another one."""
    if port is None or port == server.port:
        return False
    command = server.command()
    named = any(ports.names_port(word, port) for word in (*command.argv, *filter(None, command.env_vars.values())))
    return not named and (port >= ports.FIRST_EPHEMERAL or port in asked(server).drawn_ports)
