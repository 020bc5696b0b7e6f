"""Pytest's side of the pool's process: starts it, answers it, and ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.pool.process.boot import Boot, PoolProcess, start_process
from pytest_infserver.pool.process.channel import Channel
from pytest_infserver.pool.process.foreign import answer_for
from pytest_infserver.pool.process.safe_moments import SafeMoments

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.allotment import Allotment
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.wait_report import WaitReport
    from pytest_infserver.system.environment import Surroundings

_START_LIMIT = 60.0
"""Seconds in which the process must have told where it is reached."""
_END_LIMIT = 30.0
"""Seconds that it gets to end when everything is stopped."""

_HOW_LIMIT = 5.0
"""Seconds for which it is waited until the system tells how it has ended."""


@dataclass
class Listeners:
    """Who is told what the pool's process tells.

    Attributes:
        hook: Calls a hook of ours, by its name, about a server, by its configuration and how it is.
        has_hook: Returns whether anybody has a hook of that name.
        waiting: Gets what workers of xdist wait for.
        progress: Gets a line of text when something takes long for another reason.
        log: Gets the name of a server and lines of its log as they come, if that is wanted.
        began: Called when the first server starts.
    """

    hook: Callable[[str, ServerConfig, View], object] = lambda hook, config, view: None
    has_hook: Callable[[str], bool] = lambda hook: False
    waiting: Callable[[WaitReport], object] = lambda report: None
    progress: Callable[[str], object] = lambda text: None
    log: Callable[[str, Sequence[str]], object] = lambda name, lines: None
    began: Callable[[], object] = lambda: None


@dataclass
class Told:
    """What the process has told so far.

    Attributes:
        key: What a client needs to reach its broker; a secret.
        up: Names of the servers that run.
        trouble: A number that is higher each time when something has gone wrong that is to be asked for.
        refusal: Why the process cannot serve this run, or None.
    """

    key: Mapping[str, str] | None = None
    up: frozenset[str] = frozenset()
    trouble: int = 0
    refusal: str | None = None


class PoolOwner:
    """The pool's process, as the process that has started it sees it.

    Attributes:
        told: What it has told.
        listeners: Whom to tell what it tells.
        moments: When it may have code of the user's run here.
        exit: What a hook has raised here that ends the run, or None.
        end: How it has ended, in words, if it was not told to; else None.
    """

    def __init__(
        self, boot: Boot, make: Callable[[ServerConfig], InferenceServer], listeners: Listeners, before: Surroundings
    ) -> None:
        """Start nothing yet.

        Args:
            boot: What the process has to know.
            make: Makes a server of a configuration.
            listeners: Whom to tell what it tells.
            before: What it and its servers inherit.
        """
        self.told = Told()
        self.moments = SafeMoments()
        self.exit: BaseException | None = None
        self.end: str | None = None
        self._boot = boot
        self._make = make
        self.listeners = listeners
        self._specs: dict[str, InferenceServer] = {}
        self._asking = threading.Lock()
        self._started: PoolProcess | None = None
        self._channel: Channel | None = None
        self._is_ending = False
        self._changed = threading.Condition()
        self._pid = os.getpid()
        self._before = before

    def begin(self, expected: Mapping[str, ServerConfig] | None = None) -> None:
        """Start the process, and do not wait for it.

        Args:
            expected: The servers that it starts at once, if it does not run yet.

        Raises:
            InferenceServerError: It cannot be started.
        """
        if self._started is not None or os.getpid() != self._pid:
            return
        try:
            boot = dataclasses.replace(self._boot, expected=expected or {})
            self._started = start_process(boot, env=self._before.env, folder=self._before.folder)
        except OSError as error:
            raise InferenceServerError(f"the process of the pool cannot be started: {error}") from None
        self._channel = Channel(
            self._started.connection, on_push=self._on_push, on_call=self._on_call, on_end=self._on_end
        )

    @property
    def key(self) -> Mapping[str, str]:
        """What a client needs to reach the pool; a secret.

        Raises:
            InferenceServerError: The process has not come up.
        """
        self.begin()
        with self._changed:
            self._changed.wait_for(self._has_come_up, _START_LIMIT)
        if self.told.refusal is not None and self.told.key is None:
            raise ConfigError(self.told.refusal)
        if self.told.key is None or self.end is not None:
            raise InferenceServerError(f"the process of the pool has not come up: it {self.end or 'does not answer'}")
        return self.told.key

    def _has_come_up(self) -> bool:
        told = self.told
        return told.key is not None or told.refusal is not None or self.end is not None

    def push(self, kind: str, *data: Any) -> None:
        """Tell the process something, if it runs."""
        if self._channel is not None and os.getpid() == self._pid:
            self._channel.push(kind, *data)

    def call(self, kind: str, *data: Any) -> Any:
        """Ask the process something.

        Raises:
            InferenceServerError: What it has raised, or it is gone.
        """
        self.begin()
        assert self._channel is not None
        with self.moments.wait():
            try:
                return self._channel.call(kind, *data)
            except InferenceServerError:
                if self._channel.is_open:
                    raise
        with self._changed:
            self._changed.wait_for(lambda: self.end is not None or self._is_ending, _HOW_LIMIT)
        raise InferenceServerError(f"the process of the pool (pid {self.pid}) {self.end or 'is gone'}")

    @property
    def pid(self) -> int | None:
        """The process id, or None before it was started."""
        return None if self._started is None else self._started.process.pid

    def wait_end(self) -> None:
        """Let the process end, which has nothing left to do."""
        if self._started is None or os.getpid() != self._pid:
            return
        self._is_ending = True
        if self._channel is not None:
            self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._started.process.wait(_END_LIMIT)
        self._started.output.close()
        if self.told.key is not None:
            # Gone by now, unless the process was killed.
            shutil.rmtree(Path(self.told.key["path"]).parent, ignore_errors=True)

    def _on_push(self, kind: str, *data: Any) -> None:
        told = self.told
        if kind == "waiting":
            self.listeners.waiting(data[0])
        elif kind == "progress":
            self.listeners.progress(data[0])
        elif kind == "log":
            self.listeners.log(*data)
        elif kind == "began":
            self.listeners.began()
        else:
            with self._changed:
                setattr(told, kind, data[0])
                self._changed.notify_all()

    def _on_call(self, kind: str, *data: Any) -> Any:
        if kind == "hook":
            return self._call_hook(*data)
        return self._ask_backend(*data)

    def _call_hook(self, hook: str, config: ServerConfig, view: View) -> None:
        if not self.listeners.has_hook(hook):
            return
        try:
            with self.moments.moment():
                self.listeners.hook(hook, config, view)
        except InferenceServerError:
            raise
        except BaseException as error:
            self.exit = self.exit or error
            raise

    def _ask_backend(self, config: ServerConfig, name: str, arguments: Sequence[Any], allotment: Allotment) -> Any:
        with self.moments.moment(), self._asking:
            if config.name not in self._specs:
                self._specs[config.name] = self._make(config)
            return answer_for(self._specs[config.name], name, arguments, allotment)

    def _on_end(self) -> None:
        if self._is_ending or self._started is None:
            return
        how = self._started.how_ended()
        with self._changed:
            self.end = how
            self._changed.notify_all()
