"""How a run ends before its tests are over, and what went wrong at the stops of its servers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pytest_infserver.launcher.user_code import ends_run
from pytest_infserver.pool.lease import Problem
from pytest_infserver.pool.outcomes import in_words
from pytest_infserver.pool.planning.planner import ENDED

if TYPE_CHECKING:
    from pytest_infserver.pool.servers.planned import PlannedTests


class RunEnd:
    """The end of a run, which any thread may bring about; it is guarded by the pool's lock, which its methods take.

    Attributes:
        closed: Whether nobody waits any more.
        cause: What has ended the run first, or None.
    """

    def __init__(self, changed: threading.Condition, planned: PlannedTests, on_trouble: Callable[[], object]) -> None:
        """Begin with a run that goes on.

        Args:
            changed: The pool's lock, with those who wait for a change.
            planned: Who has used which server last.
            on_trouble: Called when there is something for `take_problems` to tell; under the lock.
        """
        self.closed = False
        self.cause: BaseException | None = None
        self._exit: BaseException | None = None
        self._problems: list[tuple[str, Problem]] = []
        self._changed = changed
        self._planned = planned
        self._on_trouble = on_trouble

    def fail(self, error: BaseException) -> None:
        """Let nobody wait any more: the run ends with an error, which pytest's own thread is going to raise."""
        with self._changed:
            self.closed = True
            if self.cause is None:
                self.cause = self._exit = error
            elif not ends_run(error) and in_words(error) != in_words(self.cause):
                problem = "", Problem(f"when the run had ended: {in_words(error)}", None)
                self._problems += [] if problem in self._problems else [problem]
            self._on_trouble()
            self._changed.notify_all()

    def raise_exit(self) -> None:
        """Raise what was raised elsewhere and ends the run: by a hook, or in a thread of the pool."""
        with self._changed:
            error, self._exit = self._exit, None
        if error is not None:
            raise error

    def refuse(self) -> None:
        """Let nobody wait any more: the run ends."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def in_words(self) -> str:
        """Return why no server is handed out any more; under the lock."""
        return ENDED if self.cause is None else f"{ENDED} ({in_words(self.cause)})"

    def note_problems(self, name: str, texts: Iterable[str]) -> None:
        """Note what went wrong at the stop of a server."""
        with self._changed:
            # The user as of now: when somebody asks another test may have used the server.
            found = [(name, Problem(text, self._planned.user(name))) for text in texts]
            if found:
                self._problems += found
                self._on_trouble()

    def take_problems(self) -> list[Problem]:
        """Return what went wrong at stops since the last call; raise what ends the run."""
        self.raise_exit()
        with self._changed:
            problems, self._problems = self._problems, []
            # One that nobody had used by then is told to who wanted it.
            return [Problem(one.text, one.user or self._planned.user(name)) for name, one in problems]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; if anything is raised meanwhile, nobody knows what is so any more, and the run ends."""
        with self._changed, self.exits():
            yield

    @contextlib.contextmanager
    def exits(self) -> Iterator[None]:
        """Pass on what ends the run: it must end it in pytest's own thread."""
        try:
            yield
        except BaseException as error:
            self.fail(error)
