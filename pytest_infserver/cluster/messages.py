"""What pytest and the node of a server tell each other; both sides have the same version of this package."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver import errors
from pytest_infserver.errors import InferenceServerError, LeakError, ServerStartupError
from pytest_infserver.version import __version__

if TYPE_CHECKING:
    from pytest_infserver.launcher.diagnosis.journal import Event
    from pytest_infserver.launcher.leaks.report import LeakReport
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.supervision.exit import Exit, Survivor
    from pytest_infserver.leak_finding import Finding


@dataclass(frozen=True)
class Order:
    """The server that a node is to run.

    Attributes:
        version: Version of this package.
        backend: Name of the backend, or ``package.module:Class``.
        backend_class: The class, pickled by value, if it is one that nodes cannot import.
        keywords: Its settings, as for `create_server`.
        node: What the node is called.
        address: Where clients reach the node.
        port: The port that it had before, or None.
        user: Who uses it: the process that has ordered it, in words.
        secret: What has to be said with each question of the run's.
    """

    version: str
    backend: str
    backend_class: bytes | None
    keywords: Mapping[str, Any] = field(repr=False)
    node: str
    address: str
    port: int | None
    user: str = ""
    secret: str = field(default="", repr=False)

    def as_json(self) -> bytes:
        """Return the order as JSON: plain data, in which only the class of a backend of the user's is code.

        Raises:
            InferenceServerError: A setting is no plain data.
        """
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        _require_names(self.keywords)
        if self.backend_class is not None:
            values["backend_class"] = self.backend_class.hex()
        try:
            return json.dumps(values, default=_plain).encode()
        except (TypeError, ValueError) as error:
            raise InferenceServerError(f"its settings cannot be told to a node: {error}") from None

    @staticmethod
    def secret_of(data: bytes) -> str:
        """Return the secret in an order, of whichever version."""
        return str(json.loads(data)["secret"])

    @classmethod
    def from_json(cls, data: bytes) -> Order:
        """Return the order that `as_json` has written.

        Raises:
            InferenceServerError: Another version of this package has.
        """
        values = json.loads(data)
        if values["version"] != __version__:
            raise InferenceServerError(
                f"{values['node']} has pytest-infserver {__version__}, and this run {values['version']}: install the"
                " same version on all nodes"
            )
        if values["backend_class"] is not None:
            values["backend_class"] = bytes.fromhex(values["backend_class"])
        return cls(**values)


@dataclass(frozen=True)
class Failure:
    """An error that has happened on a node.

    Attributes:
        kind: Name of its class.
        text: Its message.
        exit_code: The server's exit code, if it did not start.
        findings: What it has left behind, if that is the error.
    """

    kind: str
    text: str
    exit_code: int | None = None
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return what is told of an error."""
        known = isinstance(error, InferenceServerError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return cls(
            type(error).__name__ if known else "InferenceServerError",
            text,
            error.exit_code if isinstance(error, ServerStartupError) else None,
            error.findings if isinstance(error, LeakError) else (),
        )

    def error(self, localize: Callable[[str], str], log_path: Path) -> InferenceServerError:
        """Return the error again.

        Args:
            localize: Replaces in a text the paths on the node by those here.
            log_path: The server's log, here.
        """
        kind: Any = getattr(errors, self.kind, InferenceServerError)
        text = localize(self.text)
        error: InferenceServerError
        if issubclass(kind, LeakError):
            error = kind(text, self.findings)
        elif issubclass(kind, ServerStartupError):
            error = kind(text, exit_code=self.exit_code, log_path=log_path)
        else:
            error = kind(text)
        return error


@dataclass(frozen=True)
class Hello:
    """What a node tells before the start.

    Attributes:
        folder: The folder of the server's files.
        now: The node's clock, in seconds since the epoch.
        machine: See `machine_id`.
        node: Ray's name for the node; empty without Ray.
    """

    folder: str
    now: float
    machine: str
    node: str = ""


def _require_names(value: object) -> None:
    """Make sure that all mappings have names as keys: JSON has no others, and would change them."""
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        _require_names(one)
    for key in value if isinstance(value, Mapping) else ():
        if not isinstance(key, str):
            raise InferenceServerError(f"its settings cannot be told to a node: write the key {key!r} as text")


def _plain(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no plain value")


def machine_id() -> str:
    """Return what is the same for two processes that see each other by process id."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    return socket.gethostname()


@dataclass(frozen=True)
class Have:
    """What of a server has been told already.

    Attributes:
        log: Bytes of its log.
        events: Events of its journal.
        said: Lines that it has said.
        sample: When its health was checked last, in seconds since the epoch.
    """

    log: int = 0
    events: int = 0
    said: int = 0
    sample: float = 0.0


@dataclass(frozen=True)
class News:
    """What a node tells of its server.

    Attributes:
        now: The node's clock, in seconds since the epoch.
        view: How the server is.
        phase: What it does while it starts.
        have: What whoever asked had: where the parts begin that follow.
        log: A part of its log.
        log_size: Size of the log.
        events: Events of its journal.
        said: Lines that it has said, each with whether it is a warning.
        samples: Further health checks.
        memory: Bytes of resident memory and of GPU memory, if somebody has looked.
        started: Whether its start is over.
        failure: Why that failed.
        ended: How its process has ended, and why it was killed if it hung.
        command: Its command line.
        device_keys: The GPUs that it has got.
    """

    now: float
    view: View
    phase: str
    have: Have
    log: bytes
    log_size: int
    events: list[Event]
    said: list[tuple[bool, str]]
    samples: list[tuple[float, float | None]]
    memory: tuple[int, int | None] | None
    started: bool
    failure: Failure | None
    ended: tuple[Exit | None, str | None]
    command: tuple[str, ...] | None
    device_keys: tuple[str, ...]


@dataclass(frozen=True)
class Stopped:
    """How the stop of a server went.

    Attributes:
        failure: What is wrong with what it left.
        seconds: How long it took.
        leak_report: What it has left behind, if somebody has looked.
        survivors: Processes that had to be killed.
    """

    failure: Failure | None
    seconds: float | None
    leak_report: LeakReport | None
    survivors: tuple[Survivor, ...]


@dataclass(frozen=True)
class Description:
    """What a node tells anybody about its server.

    Attributes:
        name: The server's name.
        state: ``starting``, ``running``, ``stopping`` or ``dead``.
        model: Its model.
        url: Where clients reach it.
        pid: Its root process on the node, while that runs.
        node: The node, by name and address.
        age: Seconds since its launch; None before that.
        memory: Bytes of resident memory of its processes, or None.
        stop_timeout: Seconds that it gets to end.
        user: See `Order`.
    """

    name: str
    state: str
    model: str
    url: str
    pid: int | None
    node: str
    age: float | None
    memory: int | None
    stop_timeout: float
    user: str
