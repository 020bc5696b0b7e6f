"""The servers of this user that run on this machine, whoever has started them, and those that are kept."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_infserver.launcher.supervision import limits
from pytest_infserver.launcher.supervision.control_socket import MAX_QUESTION, SUFFIX
from pytest_infserver.system.disk.places import servers_dir
from pytest_infserver.system.disk.socket_files import connect
from pytest_infserver.system.peer import is_same_user, peer_of
from pytest_infserver.system.processes.memory import resident_memory
from pytest_infserver.system.processes.table import descendants

KEPT = "kept"
"""The state of a server that has no owner."""
_ASK_LIMIT = 1.0
"""Seconds in which a supervisor answers a question."""
_UNFINISHED = 60.0
"""Seconds after which a socket file that never got its name is left over from a supervisor that was killed."""


@dataclass(frozen=True)
class KeptServer:
    """A server that runs, as its supervisor describes it; kept, or in use by its owner.

    Attributes:
        state: ``starting``, ``running``, ``stopping`` or ``kept``.
        url: Where clients reach it.
        port: Its port.
        pid: Its root process.
        start: When that began, as in `processes.Process`; None if it has ended.
        supervisor_pid: The process above all of its processes.
        owner_pid: The process that uses it, or None.
        age: Seconds since its launch.
        seconds_left: Seconds until a kept server is stopped, or None.
        stop_timeout: Seconds that it gets to end.
        device_keys: Names of the devices that are reserved for it.
        log_path: Its log.
        fingerprint: See `fingerprint.fingerprint`; "" for one that cannot be kept.
        path: The socket on which its supervisor answers.
        ports: Its further ports by name.
        parts: What it was started with, see `fingerprint.Fingerprint.told`.
    """

    name: str
    backend: str
    model: str
    state: str
    url: str
    port: int
    pid: int
    start: str | None
    supervisor_pid: int
    owner_pid: int | None
    age: float
    seconds_left: float | None
    stop_timeout: float
    debug_mode: bool
    device_keys: tuple[str, ...]
    log_path: Path
    fingerprint: str = field(repr=False)
    path: str = field(repr=False)
    ports: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        """Which one it is."""
        return f"pid {self.pid}, {self.url}"

    @property
    def kept(self) -> bool:
        """Whether nobody uses it."""
        return self.state == KEPT

    def memory(self) -> int | None:
        """Return the resident memory of its processes in bytes, shared parts counted for each; None if unknown."""
        return resident_memory(process.pid for process in descendants(self.supervisor_pid)) or None

    def end(self) -> tuple[bool, str]:
        """Stop it; return whether it is gone, and how that went, in words."""
        begin = time.monotonic()
        gone = self.stop()
        seconds = time.monotonic() - begin
        if gone:
            return True, f"stopped in {seconds:.1f} s"
        return False, (
            f"has not ended after {seconds:.0f} s; 'kill -9 {self.supervisor_pid}' ends its supervisor, and whatever"
            " of it can be killed"
        )

    def stop(self, timeout: float | None = None) -> bool:
        """Stop it, also if somebody uses it, and return when it is gone.

        Args:
            timeout: Seconds between SIGTERM and SIGKILL; those of its own ``stop_timeout`` if None.

        Returns:
            Whether it is gone.
        """
        graces = limits.DRAIN_GRACE + limits.ASKED_GRACE + 2 * limits.KILL_LIMIT
        limit = (self.stop_timeout if timeout is None else timeout) + graces
        try:
            answer = ask(self.path, {"do": "stop", "timeout": timeout}, limit)
        except TimeoutError:
            return False
        except OSError:
            # It has ended by itself meanwhile.
            return True
        return answer is None or bool(answer.get("gone"))


def all_servers() -> list[KeptServer]:
    """Return all servers of this user on this machine that this package has started, the oldest first."""
    folder = servers_dir()
    found = [] if folder is None else [server for path in _socket_files(folder) if (server := _described(path))]
    return sorted(found, key=lambda server: -server.age)


def kept_servers() -> list[KeptServer]:
    """Return those that wait to be taken over, the oldest first."""
    return [server for server in all_servers() if server.kept]


def ask(path: str, question: Mapping[str, Any], limit: float) -> dict[str, Any] | None:
    """Ask a supervisor.

    Args:
        path: Its socket.
        question: See `supervisor`.
        limit: Seconds until it must have answered.

    Returns:
        Its answer; None if it ended without one, or is not this user's.

    Raises:
        TimeoutError: It did not answer in time.
        OSError: It does not listen any more.
    """
    deadline = time.monotonic() + limit
    with connect(path, _ASK_LIMIT) as connection:
        if not is_same_user(peer_of(connection)):
            return None
        connection.sendall(json.dumps(question).encode() + b"\n")
        data = b""
        while not data.endswith(b"\n") and len(data) <= MAX_QUESTION:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            more = connection.recv(MAX_QUESTION)
            if not more:
                break
            data += more
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _socket_files(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_ctime > _UNFINISHED:
                        Path(entry.path).unlink()
            elif entry.name.endswith(SUFFIX):
                yield entry.path


def _described(path: str) -> KeptServer | None:
    try:
        answer = ask(path, {"do": "describe"}, _ASK_LIMIT)
    except ConnectionRefusedError:
        # Nobody will listen there again: its supervisor was killed, and the name is never used twice.
        with contextlib.suppress(OSError):
            Path(path).unlink()
        return None
    except OSError:
        return None
    try:
        return None if answer is None else _from_answer(path, answer)
    except (KeyError, TypeError, ValueError):
        # Another version of this package has started it.
        return None


def _from_answer(path: str, answer: Mapping[str, Any]) -> KeptServer:
    info = answer["info"]
    return KeptServer(
        name=str(info["name"]),
        backend=str(info["backend"]),
        model=str(info["model"]),
        state=str(answer["state"]),
        url=str(info["url"]),
        port=int(info["port"]),
        pid=int(answer["root"]),
        start=answer["root_start"],
        supervisor_pid=int(answer["supervisor"]),
        owner_pid=None if answer["owner"] is None else int(answer["owner"]),
        age=max(0.0, time.time() - float(info["started"])),
        seconds_left=None if answer["left"] is None else float(answer["left"]),
        stop_timeout=float(answer["stop_timeout"]),
        debug_mode=bool(info["debug_mode"]),
        device_keys=tuple(map(str, info["device_keys"])),
        log_path=Path(info["log_path"]),
        fingerprint=str(info["fingerprint"]),
        path=path,
        ports={str(name): int(port) for name, port in info.get("ports", {}).items()},
        parts=dict(info.get("parts", {})),
    )
