"""How pytest starts the process of its pool."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pytest_infserver.pool.servers.policy import Policy

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.pool.process.foreign import ForeignBackend

# What a project has beside its tests, such as a json.py, comes after the interpreter's own modules, or not at all.
_PROGRAM = (
    "import sys, json; sys.path += json.loads(sys.argv[2]);"
    " from pytest_infserver.pool_process import main; main(int(sys.argv[1]))"
)
_MAX_SAID = 2000


@dataclass(frozen=True)
class Boot:
    """What the process has to know.

    Attributes:
        configs: The servers by name.
        backends: Name or import path of each backend that only pytest's process can import.
        policy: What the user wants of the pool.
        max_servers: How many servers without GPUs may run at the same time; None if the user did not say.
        folder: Where the files of the run are going to be.
        workers: Whether workers of xdist run the tests.
        tells_log: Whether it tells the lines of its servers' logs as they come.
        each: Whether each of them runs every test.
        expected: The servers by name that tests are probably going to use, the first one wanted first.
    """

    configs: Mapping[str, ServerConfig]
    backends: Mapping[str, ForeignBackend]
    policy: Policy
    max_servers: int | None
    folder: Path
    workers: bool = False
    each: bool = False
    tells_log: bool = False
    expected: Mapping[str, ServerConfig] = field(default_factory=dict)


@dataclass
class PoolProcess:
    """A pool's process that was started.

    Attributes:
        process: The process.
        connection: To it.
        output: What it writes, which is nothing as long as it is well.
    """

    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    output: IO[bytes] = field(repr=False)

    def how_ended(self) -> str:
        """Return in words how the process has ended, with the last of what it has written."""
        try:
            code = self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            code = None
        how = "does not answer"
        if code is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        self.output.seek(0)
        said = self.output.read()[-_MAX_SAID:].decode("utf-8", "replace").strip()
        return f"{how}{': ' if said else ''}{said}"


def start_process(boot: Boot, *, env: Mapping[str, str], folder: str | None) -> PoolProcess:
    """Start the process of a pool; it ends by itself when this one is gone.

    Args:
        boot: What it has to know.
        env: Its environment, which its servers inherit.
        folder: Its working directory, likewise; that of this process if None.

    Raises:
        OSError: It cannot be started.
    """
    ours, theirs = socket.socketpair()
    output = tempfile.TemporaryFile()  # noqa: SIM115
    with theirs:
        # Whatever socket.setdefaulttimeout() says.
        theirs.setblocking(True)
        ours.setblocking(True)
        # What -I makes it ignore, of the environment, and matters here.
        flags = ["-I", *["-B"] * sys.dont_write_bytecode, "-X", f"utf8={sys.flags.utf8_mode}"]
        process = subprocess.Popen(
            [sys.executable, *flags, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(_import_path())],
            env={**env},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    connection: Connection[Any, Any] = Connection(ours.detach())
    connection.send(boot)
    return PoolProcess(process, connection, output)


def _import_path() -> list[str]:
    package = str(Path(__file__).parents[3])
    # "" would be the folder in which the process runs.
    return list(dict.fromkeys([package, *(entry for entry in sys.path if isinstance(entry, str) and entry)]))
