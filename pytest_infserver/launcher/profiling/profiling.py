"""Profiling: the profiles of one server, from its launch to its end, one at a time, whichever process asks for one."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.errors import ProfileError
from pytest_infserver.launcher.profiling import traces
from pytest_infserver.launcher.profiling.chosen import profile_settings
from pytest_infserver.launcher.profiling.ledger import Entry, Ledger, Stretch, this_process
from pytest_infserver.launcher.profiling.profiler import NothingSeenError, Place, Profiler, Waiting
from pytest_infserver.launcher.profiling.tools import TOOLS
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.system.disk.folders import make_output_folder
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle

_NOT_RUNNING = {"beginning": "has not begun yet", "ending": "is being ended already"}
_WHOLE_LIFE = "server"
_HANDOVER_LIMIT = 30.0
_BEGIN_LIMIT = 120.0
_DEATH_LIMIT = 2.0
"""Seconds in which the end of a server is seen that has ended a profiler."""
_STEP = 0.05


class Profiling:
    """What is profiled of one server.

    Attributes:
        made: The traces that this process has seen made, in order.
        asked_for: Those of them that this process has begun and ended.
    """

    def __init__(self, server: ServerHandle) -> None:
        self._server = server
        self._prepared = False
        self._begun: Stretch | None = None
        self._ending_in: int | None = None
        self._unfinished: list[Path] = []
        self.made: list[Path] = []
        self.asked_for: list[Path] = []

    def note_made(self, files: Sequence[Path]) -> None:
        """Count traces that the process has made which owned the server."""
        self.made[:0] = [file for file in files if file not in self.made]

    def note_brought(self, files: Sequence[Path]) -> None:
        """Count a profile that was asked for here, and whose files were brought from another machine."""
        self.made += files
        self.asked_for += files

    @property
    def whole_life(self) -> bool:
        """Whether the server is profiled without being asked."""
        settings = self._server.settings.profile
        return settings is not None and settings.enabled and not settings.on_demand

    def is_running(self) -> bool:
        """Return whether the server is being profiled in a way that makes it slow, by whomever.

        Not so in the middle of its whole life: who hangs then would never be found out.
        """
        stretch = self._ledger.read().stretch
        if stretch is None or stretch.is_abandoned:
            return False
        return not (stretch.automatic and stretch.phase == "running")

    # The server's launch and end, in the process that owns it.

    def check(self) -> None:
        """Make sure that the configured profiler can do its work, before anything is started.

        Raises:
            ProfileError: It cannot.
        """
        if self._server.profiler is not None:
            self._server.profiler.check()
            self._make_folder()

    def prepare(self, tmpdir: str | None) -> Place | None:
        """Make the place of a launch, if the configured profiler needs one.

        Args:
            tmpdir: The server's TMPDIR.

        Raises:
            ProfileError: It cannot be made.
        """
        # What an earlier launch, which was killed with all its processes, has left there.
        self._forget()
        profiler = self._server.profiler
        if profiler is None or not profiler.at_launch:
            return None
        self._prepared = True
        try:
            place = Place.make(tmpdir)
            try:
                if not profiler.parts:
                    target = traces.claim(self._server.profile_dir, _WHOLE_LIFE, profiler.suffix)
                    place = replace(place, target=str(target))
                with self._ledger.changed() as entry:
                    entry.place, entry.stretch = place.as_dict(), None
            except BaseException:
                place.remove()
                raise
        except OSError as error:
            raise profiler.error(f"{error}; set 'output_dir' under 'profile:' to a place that can be written") from None
        return place

    def launched(self) -> None:
        """Begin the profile of the whole life, if it begins with the launch."""
        profiler = self._server.profiler
        if self.whole_life and profiler is not None and profiler.from_launch:
            try:
                self._begin_whole_life(profiler)
            except ProfileError:
                # Why a server has died at once says its log, which is looked at next.
                self._server.runtime.raise_if_cancelled()
                process = self._server.runtime.process
                if process is None or process.wait_exit(_DEATH_LIMIT) is None:
                    raise

    def ready(self) -> None:
        """Begin the profile of the whole life, if it begins when the server is ready."""
        profiler = self._server.profiler
        if self.whole_life and profiler is not None and not profiler.from_launch:
            self._begin_whole_life(profiler)

    def before_stop(self) -> list[ProfileError]:
        """End what is being profiled, while the server still runs; return what went wrong."""
        stretch = self._ledger.read().stretch
        try:
            if stretch is None or not self._tool(stretch.tool).parts:
                return []
        except ProfileError as error:
            return [error]
        return self._finish_whatever()

    def after_end(self) -> list[ProfileError]:
        """See to the traces that a server's end has written; return what is wrong with them."""
        problems = self._finish_whatever()
        self._forget()
        unfinished, self._unfinished = self._unfinished, []
        for target in unfinished:
            if traces.problem_of(target, []) is None:
                self._note(target)
        return problems

    def forget(self) -> None:
        """Forget a launch that has failed."""
        # Without one the ledger may be that of another server of this name.
        if self._prepared:
            self._forget()

    # In whichever process.

    def begin(self, name: str, tool: str | None = None) -> None:
        """Begin a profile.

        Args:
            name: What its trace is called.
            tool: The profiler; None for the configured one.

        Raises:
            ProfileError: One is being made already, or it did not begin.
        """
        profiler = self._tool(tool)
        if not profiler.parts:
            raise profiler.error("it can profile a server's whole life only: 'profile: {tool: amd}', without a marker")
        if self._server.state is not ServerState.READY:
            raise profiler.error(f"the server does not run: its state is {self._server.state}")
        if profiler is not self._server.profiler:
            profiler.check()
        self._make_folder()
        self._begin(profiler, name, automatic=False)

    def end(self) -> list[Path]:
        """End the profile that this process has begun; return its files.

        Raises:
            ProfileError: There is none, or its trace is not complete.
        """
        begun, self._begun = self._begun, None
        if begun is not None and self._was_ended_elsewhere(begun):
            return self._ended_with_server(begun)
        with self._changed() as entry:
            stretch = entry.stretch
            if stretch is None or stretch.automatic:
                raise ProfileError(f"{self._server}: no profile is running: begin one with start_profile()")
            if stretch.pid != os.getpid():
                raise ProfileError(f"{self._server}: the profile '{stretch.name}' belongs to process {stretch.pid}")
            if stretch.phase != "running":
                raise ProfileError(f"{self._server}: the profile '{stretch.name}' {_NOT_RUNNING[stretch.phase]}")
            entry.stretch = stretch.now("ending")
        try:
            files = self._complete(stretch)
        except ProfileError:
            self._resume(stretch)
            raise
        self.asked_for += files
        self._resume(stretch)
        return files

    # The inside.

    def _was_ended_elsewhere(self, begun: Stretch) -> bool:
        """Wait while somebody ends a profile of ours, as at the server's stop or death; return whether one has."""
        deadline = time.monotonic() + self._tool(begun.tool).settings.flush_timeout
        while True:
            stretch = self._ledger.read().stretch
            if stretch is None or stretch.target != begun.target:
                return True
            if stretch.phase != "ending" or stretch.is_abandoned or time.monotonic() > deadline:
                return False
            time.sleep(_STEP)

    def _ended_with_server(self, begun: Stretch) -> list[Path]:
        """Return the files of a profile that the server's end has ended."""
        target = Path(begun.target)
        problem = traces.problem_of(target, self._server.process_tree())
        if problem is not None:
            raise self._tool(begun.tool).error(f"the server has ended, and {problem}")
        files = self._note(target)
        self.asked_for += files
        return files

    def _note(self, target: Path) -> list[Path]:
        """Note the files of a trace that is complete, and return them."""
        files = traces.files_of(target)
        # At its server's end one may have been seen already.
        self.made += [path for path in files if path not in self.made]
        self._server.journal.note("profile", files=[str(path) for path in files])
        return files

    @property
    def _ledger(self) -> Ledger:
        return Ledger(self._server.log_path.parent)

    @property
    def _place(self) -> Place | None:
        return _place_of(self._ledger.read())

    def _tool(self, name: str | None) -> Profiler:
        configured = self._server.profiler
        settings = self._server.settings.profile
        if name is None:
            name = "py-spy" if settings is None else settings.tool
        if configured is not None and configured.name == name:
            return configured
        if name not in TOOLS:
            raise ProfileError(f"{self._server}: no profiler is called '{name}'; there are {', '.join(TOOLS)}")
        if TOOLS[name].at_launch:
            how = f"{{tool: {name}, on_demand: true}}', or use the marker infserver_profile"
            raise ProfileError(
                f"{self._server}: profiling with {name}: the server has to be started for it: write 'profile: "
                + (how if TOOLS[name].parts else f"{{tool: {name}}}'")
            )
        return TOOLS[name](self._server, profile_settings(self._server.settings, name))

    @contextlib.contextmanager
    def _changed(self) -> Iterator[Entry]:
        try:
            with self._ledger.changed() as entry:
                yield entry
        except OSError as error:
            raise ProfileError(f"{self._server}: its profiles cannot be noted: {error}") from None

    def _forget(self) -> None:
        self._prepared = False
        if not self._ledger.exists():
            return
        with contextlib.suppress(OSError), self._ledger.changed() as entry:
            place = _place_of(entry)
            if place is not None:
                place.remove()
                if place.target:
                    traces.discard_if_empty(Path(place.target))
            entry.place = entry.stretch = None

    def _make_folder(self) -> None:
        folder = self._server.profile_dir
        try:
            make_output_folder(folder.parent, folder.name)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(f"{folder} cannot be written")
        except OSError as error:
            raise ProfileError(
                f"{self._server}: the folder for profiles cannot be used: {error}; set 'output_dir' under 'profile:'"
            ) from None

    def _begin_whole_life(self, profiler: Profiler) -> None:
        self._begin(profiler, _WHOLE_LIFE, automatic=True)

    def _begin(self, profiler: Profiler, name: str, *, automatic: bool, is_piece: bool = False) -> None:
        # It becomes a file's name, and part of what is told.
        name = clean(name, self._server.secrets)
        place = self._place
        if profiler.at_launch and place is None:
            raise profiler.error("the server was not started for it")
        fixed = place.target if place is not None and not profiler.parts else ""
        try:
            target = Path(fixed) if fixed else traces.claim(self._server.profile_dir, name, profiler.suffix)
        except OSError as error:
            raise profiler.error(str(error)) from None
        try:
            stretch = self._take_turn(
                Stretch(profiler.name, name, str(target), automatic, "beginning", *this_process(), is_piece)
            )
            try:
                self._run(profiler, stretch, place)
            except BaseException as error:
                self._release(stretch)
                if isinstance(error, ProfileError):
                    self._resume(stretch)
                raise
        except BaseException as error:
            traces.discard_if_empty(target)
            if isinstance(error, OSError):
                raise profiler.error(str(error)) from None
            raise

    def _run(self, profiler: Profiler, stretch: Stretch, place: Place | None) -> None:
        target, waiting = Path(stretch.target), self._waiting(profiler, "begins", _BEGIN_LIMIT)
        running = profiler.begin(target, place, waiting, whole_life=stretch.automatic)
        try:
            with self._changed() as entry:
                if entry.stretch is None or entry.stretch.target != stretch.target:
                    raise profiler.error("the server was stopped meanwhile")
                entry.stretch = entry.stretch.now("running", dict(running))
            if not stretch.automatic:
                self._begun = stretch
        except BaseException:
            # Nobody would know of it, and end it.
            with contextlib.suppress(ProfileError, OSError):
                profiler.end(target, place, running, waiting)
            raise

    def _take_turn(self, stretch: Stretch) -> Stretch:
        """Make a profile the one that is being made; a profile of the whole life gives way to it."""
        deadline = time.monotonic() + _HANDOVER_LIMIT
        while True:
            with self._changed() as entry:
                other = entry.stretch
                if other is None:
                    entry.stretch = stretch
                    return stretch
                gives_way = other.automatic or other.is_abandoned
                if stretch.automatic or (other.pid == stretch.pid and not gives_way):
                    raise ProfileError(f"{_being_made(self._server, other)}: end it first, there is one at a time")
                if gives_way and other.can_be_ended:
                    entry.stretch = other.ended_here()
                    break
            if not gives_way and time.monotonic() > deadline:
                raise ProfileError(
                    f"{_being_made(self._server, other)} by process {other.pid}, and there is one at a time;"
                    " @pytest.mark.infserver(exclusive=True) gives a test its server alone"
                )
            limit = self._tool(other.tool).settings.flush_timeout if other.phase == "ending" else 0.0
            if time.monotonic() > deadline + limit:
                raise ProfileError(f"{self._server}: the profile '{other.name}' has been {other.phase} for too long")
            time.sleep(_STEP)
        stretch = replace(stretch, resume=other.automatic or other.resume)
        for problem in self._finish(replace(other, is_piece=True), stretch):
            self._server.warn(str(problem))
        return stretch

    def _release(self, stretch: Stretch) -> None:
        with contextlib.suppress(OSError), self._ledger.changed() as entry:
            if entry.stretch is not None and entry.stretch.target == stretch.target:
                entry.stretch = None

    def _resume(self, stretch: Stretch) -> None:
        """Go on with the profile of the whole life that has given way to another one."""
        profiler = self._server.profiler
        if not stretch.resume or profiler is None or not self._server.running:
            return
        try:
            with self._changed() as entry:
                if entry.stretch is not None:
                    # Somebody was quicker: it goes on after that one.
                    entry.stretch = replace(entry.stretch, resume=True)
                    return
            self._begin(profiler, _WHOLE_LIFE, automatic=True, is_piece=True)
        except ProfileError as problem:
            # The profile that was asked for is there all the same.
            self._server.warn(str(problem))

    def _finish_whatever(self) -> list[ProfileError]:
        """End what is being profiled, by whomever; wait if that one is about to begin or to end it."""
        me, begin = os.getpid(), time.monotonic()
        try:
            while True:
                if self._ledger.read().stretch is None:
                    return []
                with self._changed() as entry:
                    stretch = entry.stretch
                    if stretch is None:
                        return []
                    # Ours, interrupted by what has us stop the server now.
                    own = (
                        stretch.pid == me and self._ending_in == threading.get_ident()
                    ) or stretch.phase == "beginning"
                    limit = _HANDOVER_LIMIT if own else self._tool(stretch.tool).settings.flush_timeout
                    if stretch.can_be_ended or time.monotonic() - begin > limit:
                        entry.stretch = stretch.ended_here()
                        break
                time.sleep(_STEP)
        except ProfileError as error:
            return [error]
        return self._finish(stretch)

    def _finish(self, stretch: Stretch, successor: Stretch | None = None) -> list[ProfileError]:
        try:
            self._complete(stretch, successor)
        except NothingSeenError as error:
            return [] if stretch.automatic and stretch.is_piece else [error]
        except ProfileError as error:
            return [error]
        return []

    def _complete(self, stretch: Stretch, successor: Stretch | None = None) -> list[Path]:
        """Have a trace written and look at it; then it is the turn of its successor, if there is one."""
        profiler, target = self._tool(stretch.tool), Path(stretch.target)
        limit = profiler.settings.flush_timeout
        self._ending_in = threading.get_ident()
        try:
            said = profiler.end(
                target, self._place, stretch.running, self._waiting(profiler, "writes its trace", limit)
            )
            problem = traces.problem_of(target, self._server.process_tree())
            if problem is not None:
                raise profiler.error(problem, said)
            advice = profiler.advice(target)
            if advice is not None:
                self._server.warn(f"{self._server}: {advice}")
        except BaseException as error:
            # nsys may still write it, at the server's end.
            self._unfinished.append(target)
            if isinstance(error, OSError):
                raise profiler.error(str(error)) from None
            if not isinstance(error, ProfileError):
                # It was interrupted, and so is whoever wanted to be next.
                successor = None
            raise
        finally:
            self._ending_in = None
            traces.discard_if_empty(target)
            with contextlib.suppress(OSError), self._ledger.changed() as entry:
                entry.stretch = successor
        return self._note(target)

    def _waiting(self, profiler: Profiler, deed: str, limit: float) -> Waiting:
        def tell(seconds: float) -> None:
            self._server.on_progress(f"{self._server}: {profiler.name} {deed}, {seconds:.0f} s")

        return Waiting(limit, tell, self._why_pointless)

    def _why_pointless(self) -> str | None:
        if self._server.runtime.start_is_cancelled():
            return "the start was cancelled"
        process = self._server.runtime.process
        return "the server has ended" if process is None or process.exit is not None else None


def _being_made(server: ServerHandle, stretch: Stretch) -> str:
    return f"{server}: the profile '{stretch.name}' ({stretch.tool}) is being made"


def _place_of(entry: Entry) -> Place | None:
    """Return the place that a ledger names, whoever has written that."""
    try:
        return None if entry.place is None else Place(**entry.place)
    except TypeError:
        return None
