"""``popen_launch_server`` and ``kill_process_tree`` as SGLang's own tests call them, on this package's launcher."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO
from urllib.parse import urlsplit

from pytest_infserver.errors import ConfigError
from pytest_infserver.launcher.backends.sglang import SGLangServer
from pytest_infserver.launcher.diagnosis.log_teller import LogTeller

if TYPE_CHECKING:
    from pytest_infserver.launcher.engine_process import EngineProcess

_SERVERS: dict[int, tuple[SGLangServer, LogTeller | None]] = {}
"""Those that run, by the process ids of their engines."""


def popen_launch_server(
    model: str,
    base_url: str,
    timeout: float,
    api_key: str | None = None,
    other_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    return_stdout_stderr: tuple[TextIO, TextIO] | None = None,
    device: str = "auto",
    pd_separated: bool = False,
    num_replicas: int | None = None,
) -> EngineProcess:
    """Start an SGLang server, wait until it is ready, and return its process.

    Args:
        model: Name or path of the model.
        base_url: Where it is to be reached: ``http://HOST:PORT``.
        timeout: Seconds until it must be ready.
        api_key: Its API key.
        other_args: Further arguments.
        env: Its whole environment; None for this process's.
        return_stdout_stderr: The first of these files gets what it writes.
        device: Its ``--device``, unless that is ``auto``.
        pd_separated: Not there: it is another program.
        num_replicas: Not there: it is another program.

    Raises:
        ConfigError: Something that is not there is asked for.
        ServerStartupError: It has not become ready. That is a RuntimeError, too.
    """
    if pd_separated or num_replicas is not None:
        raise ConfigError(
            "pd_separated and num_replicas start another program: start one server for each part, and the router with"
            " CommandServer(launch_command=[...])"
        )
    place = urlsplit(base_url)
    args = [*map(str, other_args)]
    args += [] if api_key is None else ["--api-key", api_key]
    args += [] if device == "auto" else ["--device", device]
    server = SGLangServer(
        model,
        host=place.hostname or "127.0.0.1",
        port=place.port,
        startup_timeout=timeout,
        env_vars=_difference(env),
        config={"server_args": args},
    )
    teller = None if return_stdout_stderr is None else _copy_of_log(server, return_stdout_stderr[0])
    try:
        server.start()
    except BaseException:
        if teller is not None:
            teller.close()
        raise
    process = server.process
    _SERVERS[process.pid] = server, teller
    return process


def kill_process_tree(parent_pid: int | None, include_parent: bool = True, skip_pid: int | None = None) -> None:
    """Stop a server with all of its processes by its process id; of other processes kill the tree.

    Args:
        parent_pid: The process id; None for this process.
        include_parent: Whether the process itself ends, too; a server always does.
        skip_pid: A process that is left alone.
    """
    if parent_pid in _SERVERS:
        server, teller = _SERVERS.pop(parent_pid)
        try:
            server.stop()
        finally:
            if teller is not None:
                teller.close()
        return
    import psutil

    try:
        parent = psutil.Process(parent_pid)
        processes = parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for one in [*processes, *([parent] if include_parent and parent_pid is not None else [])]:
        if one.pid != skip_pid:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue


def _difference(env: Mapping[str, str] | None) -> dict[str, str | None]:
    """Return what is different in an environment from this process's; None for what it does not have."""
    if env is None:
        return {}
    changed: dict[str, str | None] = {name: value for name, value in env.items() if os.environ.get(name) != value}
    return {**changed, **{name: None for name in os.environ if name not in env}}


def _copy_of_log(server: SGLangServer, file: TextIO) -> LogTeller:
    def write(_: str, lines: Sequence[str]) -> None:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()

    teller = LogTeller(write)
    teller.watch(server)
    return teller
