"""What a profiler is asked to do for one server; each tool's file has a subclass."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_infserver.errors import ProfileError
from pytest_infserver.launcher.profiling.clash import clash_of
from pytest_infserver.launcher.profiling.tool_arguments import options_in
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.disk.removal import remove_own_folder
from pytest_infserver.system.processes.bounded_run import run_bounded
from pytest_infserver.system.text import clean, clean_part

if TYPE_CHECKING:
    from pytest_infserver.config.model import ProfileConfig
    from pytest_infserver.launcher.spec import ServerSpec

ASK_LIMIT = 20.0
"""Seconds that a tool has to answer what needs no work."""
_MAX_HELP = 1024 * 1024
_SHORT = 40
_PREFIX = "infserver-"


@dataclass(frozen=True)
class Place:
    """Where the profiler of one launch puts what; every process that uses the server knows it.

    Attributes:
        scratch: Private folder for sockets and notes, with a short path; the supervisor removes it.
        session: A name that no other launch has.
        tmpdir: The server's TMPDIR, where the profiler has another.
        target: The trace of the whole launch, for a tool that cannot make another.
    """

    scratch: str
    session: str
    tmpdir: str
    target: str

    @property
    def pid_file(self) -> str:
        """The file that holds the engine's process id, where the launched process is a profiler that has started it."""
        return f"{self.scratch}/pid"

    @classmethod
    def make(cls, tmpdir: str | None) -> Place:
        """Make the folder.

        Raises:
            OSError: There is no room for it.
        """
        usual = tempfile.gettempdir()
        # A socket's path has 108 bytes at most, and nsys uses 70 of them.
        parent = usual if len(os.fsencode(usual)) <= _SHORT else "/tmp"
        scratch = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        return cls(scratch, Path(scratch).name, tmpdir or usual, "")

    def remove(self) -> None:
        """Remove the folder."""
        # Its path was read from a file that anybody may have written.
        if Path(self.scratch).name.startswith(_PREFIX):
            remove_own_folder(self.scratch)

    def as_dict(self) -> dict[str, str]:
        """Return it as another process reads it."""
        return asdict(self)


SHOWN = Place("SCRATCH", "SESSION", "TMPDIR", "TRACE")
"""Stands in a command that is only shown."""


@dataclass(frozen=True)
class Waiting:
    """How long a profiler may take, and who is told meanwhile.

    Attributes:
        limit: Seconds.
        tell: Gets the seconds so far, now and then.
        pointless: Tells why it cannot come to an end any more, as when the server has died; else None.
    """

    limit: float
    tell: Callable[[float], object] = lambda seconds: None
    pointless: Callable[[], str | None] = lambda: None

    def at_most(self, limit: float) -> Waiting:
        """Return it with a limit that is not above this one."""
        return replace(self, limit=min(limit, self.limit))

    def to_the_end(self) -> Waiting:
        """Return it for what comes to an end by itself, whatever becomes of the server."""
        return replace(self, pointless=lambda: None)


class NothingSeenError(ProfileError):
    """The tool has done its work, and there was nothing to see."""


class Profiler:
    """A profiler, set up for one server.

    Attributes:
        name: The tool, as in ``profile.tool``.
        at_launch: Whether a server has to be started for it.
        from_launch: Whether it sees the server's start; else its profile begins when the server is ready.
        parts: Whether it can profile a part of a server's life.
        suffix: How the name of its file ends; "" if it makes a folder with several.
        leftovers: What the tool itself may leave behind, as in ``allow_leaks``: nothing of the server's.
        loads_itself: Whether it loads a library into the server's process.
        has_engine_below: Whether the launched process is the profiler and the engine runs below it.
        own_failures: Log lines of a start that failed by the tool's own fault: another start may do better.
    """

    name: ClassVar[str]
    at_launch: ClassVar[bool] = False
    from_launch: ClassVar[bool] = False
    parts: ClassVar[bool] = True
    leftovers: ClassVar[Sequence[str]] = ()
    loads_itself: ClassVar[bool] = False
    has_engine_below: bool = False
    own_failures: ClassVar[Sequence[re.Pattern[bytes]]] = ()

    def __init__(self, server: ServerSpec, settings: ProfileConfig) -> None:
        self.server = server
        self.settings = settings

    @property
    def suffix(self) -> str:
        """How the name of the trace ends; "" if it is a folder with several files."""
        return ""

    # Before the launch.

    def check(self) -> None:
        """Make sure that it can do its work.

        Raises:
            ProfileError: It cannot: it is missing, the backend does not support it, or something else is in the way.
        """
        if self.server.attached:
            raise self.error("the server was not started by us: profile it where it was started")
        reason = asked(self.server).why_not_profiled(self.name)
        if reason is not None:
            raise self.error(reason)
        configured = self.server.configured_command()
        clash = clash_of(configured.argv, configured.env) if self.loads_itself else None
        if clash is not None:
            raise self.error(clash)

    def env_vars(self, place: Place) -> Mapping[str, str]:
        """Return environment variables that the server is started with; those of the user count more."""
        return {}

    def flags(self, place: Place) -> Sequence[str]:
        """Return arguments that are added to the engine's."""
        return ()

    def wrap(self, argv: Sequence[str], place: Place) -> list[str]:
        """Return the command that starts the server under the profiler."""
        return list(argv)

    # While the server runs, in whichever process asks.

    def begin(self, target: Path, place: Place | None, waiting: Waiting, *, whole_life: bool) -> Mapping[str, Any]:
        """Begin to profile.

        Args:
            target: The file, or the folder, that the trace is for. It exists and is empty.
            place: That of the launch; None if the server was not started for a profiler.
            waiting: How long that may take.
            whole_life: Whether it is the profile of the server's whole life; the server may not be ready then.

        Returns:
            What `end` needs to know, as JSON.

        Raises:
            ProfileError: It did not begin.
        """
        raise NotImplementedError

    def end(self, target: Path, place: Place | None, running: Mapping[str, Any], waiting: Waiting) -> bytes:
        """End a profile, have its files written, and return what the tool has said.

        Raises:
            ProfileError: The trace is not complete.
        """
        raise NotImplementedError

    def advice(self, target: Path) -> str | None:
        """Return how a trace that is complete could tell more, or None."""
        return None

    # The inside.

    def error(self, problem: str, output: bytes | str = "", kind: type[ProfileError] = ProfileError) -> ProfileError:
        """Return an error about this server and this tool, with what the tool has said."""
        secrets = self.server.secrets
        text = output if isinstance(output, str) else output.decode("utf-8", "surrogateescape")
        # Of what a tool has said an end may be missing.
        last = clean_part(b"", "\n".join(tail(text)).encode("utf-8", "surrogateescape"), secrets)
        said = "".join(f"\n  {line}" for line in last.splitlines())
        return kind(clean(f"{self.server}: profiling with {self.name}: {problem}{':' if said else ''}{said}", secrets))

    def known_options(self, binary: str, switch: str) -> frozenset[str]:
        """Return the options that a tool names in its help, which differ from version to version.

        Raises:
            ProfileError: It does not run, or names none.
        """
        output = run_bounded([binary, switch, "--help"], ASK_LIMIT, _MAX_HELP)
        options = options_in(output.data.decode("utf-8", "replace"))
        if not options:
            raise self.error(f"'{binary} {switch} --help': {output.problem or 'it names no options'}", output.data)
        return options

    def find_binary(self, *names: str, hint: str, beside: Sequence[str] = ()) -> str:
        """Return the profiler's binary.

        Args:
            *names: How it is called; the first one that is there counts.
            hint: How it is installed.
            beside: Folders to look in after those on PATH.

        Raises:
            ProfileError: It is not there.
        """
        chosen = self.settings.binary_path
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), *beside])
        for name in [chosen] if chosen else names:
            found = shutil.which(name, path=path)
            if found:
                return found
        what = f"'{chosen}' is not an executable file" if chosen else f"{' or '.join(names)} is not on PATH"
        raise self.error(f"{what}. {hint} Or name it with 'binary_path:' under 'profile:'")


def tail(text: str, lines: int = 15) -> list[str]:
    """Return the last lines of what a tool has said, of a line that was rewritten the last state."""
    said = [line.rpartition("\r")[2].rstrip() for line in text.rstrip().replace("\r\n", "\n").split("\n")]
    return [line for line in said if line][-lines:]


def engine_command(argv: Sequence[str], place: Place) -> list[str]:
    """Return a command that leaves its process id where the supervisor finds it, and becomes ``argv``."""
    return ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', place.pid_file, *argv]
