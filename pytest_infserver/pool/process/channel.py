"""Messages in both directions between two processes, on one connection."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import queue
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.user_code import ends_run
from pytest_infserver.pool.outcomes import error_called, in_words
from pytest_infserver.pool.threads import spawn

_GONE = "the other process is gone"


class RunEnds(KeyboardInterrupt):
    """What ends the run in the other process, such as `pytest.exit` in a hook."""


class Channel:
    """One end: sends without waiting, asks and waits for the answer, and answers what the other end asks.

    Nothing is sent in the caller's thread: whoever holds a lock may push.
    """

    def __init__(
        self,
        connection: Connection[Any, Any],
        *,
        on_push: Callable[..., object],
        on_call: Callable[..., Any],
        on_end: Callable[[], object],
    ) -> None:
        """Begin to listen.

        Args:
            connection: The connection.
            on_push: Gets the kind and the data of what the other end has pushed, in order.
            on_call: Returns the answer to a question of the other end, in a thread of its own.
            on_end: Called once, when the other end is gone.
        """
        self._connection = connection
        # A descriptor of its own: that of the connection may be another file's as soon as the reader has closed it.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._on_push = on_push
        self._on_call = on_call
        self._on_end = on_end
        self._numbers = itertools.count(1)
        self._answers: dict[int, tuple[bool, Any]] = {}
        self._changed = threading.Condition()
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pushed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.is_open = True
        spawn(self._write, "channel-writer", lambda error: self._end())
        spawn(self._read, "channel-reader", lambda error: self._end())
        spawn(self._take_pushed, "channel-pushed", lambda error: self.close())

    def push(self, kind: str, *data: Any) -> None:
        """Tell the other end something; nothing happens if it is gone."""
        self._outgoing.put(ForkingPickler.dumps(("push", kind, data)))

    def call(self, kind: str, *data: Any) -> Any:
        """Ask the other end something and return its answer.

        Raises:
            InferenceServerError: What it has raised, or it is gone.
            RunEnds: It has raised what ends a run.
        """
        number = next(self._numbers)
        self._outgoing.put(ForkingPickler.dumps(("call", number, kind, data)))
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or not self.is_open)
            went_well, value = self._answers.pop(number, (False, ("InferenceServerError", _GONE)))
        if went_well:
            return value
        raise as_error(*value)

    def abandon(self) -> None:
        """Expect nothing more of the other end: it is gone, whoever still holds its connection."""
        self._end()

    def close(self) -> None:
        """Send what is still to be sent, and hang up."""
        self._outgoing.put(None)

    def _write(self) -> None:
        while (message := self._outgoing.get()) is not None:
            self._connection.send_bytes(message)
        self._end()
        self._hang_up()

    def _hang_up(self) -> None:
        # A close alone would not wake a reader.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        try:
            while True:
                kind, *data = self._connection.recv()
                if kind == "push":
                    self._pushed.put((data[0], *data[1]))
                elif kind == "call":
                    spawn(functools.partial(self._answer, *data), "channel-call", lambda error: None)
                else:
                    with self._changed:
                        self._answers[data[0]] = data[1], data[2]
                        self._changed.notify_all()
        except (EOFError, OSError, TypeError):
            # TypeError: this side has closed it.
            pass
        finally:
            # Whatever was raised: the other end must not wait for answers that nobody gives.
            self._end()
            self._pushed.put(None)
            self._hang_up()
            self._socket.close()
            self._connection.close()

    def _take_pushed(self) -> None:
        # Not in the reader's thread: it may ask the other end something.
        while (pushed := self._pushed.get()) is not None:
            self._on_push(*pushed)

    def _answer(self, number: int, kind: str, data: tuple[Any, ...]) -> None:
        try:
            message = ForkingPickler.dumps(("answer", number, True, self._on_call(kind, *data)))
        except BaseException as error:
            message = ForkingPickler.dumps(("answer", number, False, as_data(error)))
        self._outgoing.put(message)

    def _end(self) -> None:
        with self._changed:
            ended, self.is_open = self.is_open, False
            self._changed.notify_all()
        if ended:
            self._on_end()


def as_data(error: BaseException) -> tuple[str, str]:
    """Return an error as plain data, from which `as_error` makes one in another process."""
    if ends_run(error):
        return f"{RunEnds.__name__}:{type(error).__name__}", str(error)
    if isinstance(error, InferenceServerError):
        return type(error).__name__, str(error)
    return InferenceServerError.__name__, in_words(error)


def as_error(kind: str, text: str) -> BaseException:
    """Return the error that another process has raised; of an unknown kind an `InferenceServerError`."""
    base, _, name = kind.partition(":")
    if base == RunEnds.__name__:
        # Shown under its own name.
        ends: BaseException = type(name, (RunEnds,), {})(text)
        return ends
    return error_called(kind, text)
