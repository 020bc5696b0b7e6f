"""Where this package runs code of the user's: a backend's methods and properties, and hooks.

All of it is run by `call` or reached through `asked`, so that whatever it raises is a `UserCodeError`, which whoever
handles this package's own errors handles, too.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from pytest_infserver.errors import InferenceServerError, UserCodeError
from pytest_infserver.launcher.command import make_command
from pytest_infserver.system.text import clean

Result = TypeVar("Result")
Server = TypeVar("Server")

_OURS = f"{__name__.partition('.')[0]}."
_NOT_USER_CODE = (f"{Path(__file__).parents[1]}{os.sep}", importlib.__file__, "<frozen importlib")


def is_ours(kind: type) -> bool:
    """Return whether a class comes with this package, so that nothing of it is the user's code."""
    return kind.__module__.startswith(_OURS)


def call(what: str, action: Callable[[], Result], server: Any = None) -> Result:
    """Run code of the user's and return what it returns; what it yields is a list then.

    As in a test everything is an error but what ends a whole run: `pytest.exit` and KeyboardInterrupt.

    Args:
        what: What it is, in words before "raised".
        action: The code.
        server: The server that it is about, for the message, or None.

    Raises:
        UserCodeError: It has raised something.
    """
    try:
        result = action()
        # A generator raises when it is asked for the first value.
        return cast("Result", list(result)) if isinstance(result, Iterator) else result
    except InferenceServerError:
        # It says itself what is wrong.
        raise
    except BaseException as error:
        if ends_run(error):
            raise
        raise UserCodeError(described(what, error, server)) from None


def asked(server: Server) -> Server:
    """Return a stand-in for a server: what its backend raises when it is asked for something is a `UserCodeError`.

    For all that a backend may override: its methods, and the attributes of `EngineFacts`, which may be properties.
    """
    return cast("Server", _Asked(server))


class _Asked:
    def __init__(self, server: Any) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        server = self._server
        what = f"{type(server).__name__}.{name}"
        value = call(what, lambda: getattr(server, name), server)
        if not callable(value):
            return value
        return lambda *args, **settings: call(f"{what}()", lambda: value(*args, **settings), server)


def ends_run(error: BaseException) -> bool:
    """Return whether an exception is meant for the whole run, not for the code that has raised it."""
    # Where pytest is not imported nobody can have raised its exception.
    pytest = sys.modules.get("pytest")
    return isinstance(error, KeyboardInterrupt) or (pytest is not None and isinstance(error, pytest.exit.Exception))


def described(what: str, error: BaseException, server: Any = None) -> str:
    """Return what the user's code has raised, with its own part of the traceback, secrets masked.

    Args:
        what: What it is, in words before "raised".
        error: What it has raised.
        server: The server that it is about, or None.
    """
    shown = traceback.TracebackException.from_exception(error)
    kind, words = type(error).__name__, " ".join(str(shown).split())
    head = f"{_name_of(server)}{what} raised {kind}: {words}" if words else f"{_name_of(server)}{what} raised {kind}"
    text = "\n".join([head, *_user_traceback(shown)])
    return clean(text, getattr(server, "configured_secrets", None) or make_command((), {}).secrets)


def _user_traceback(shown: traceback.TracebackException) -> list[str]:
    """Return a traceback without this package's own frames; nothing if there are no others in it."""
    return ["".join(shown.format()).rstrip()] if _keep_user_frames(shown) else []


def _keep_user_frames(shown: traceback.TracebackException) -> bool:
    """Leave out the frames of this package, there and in what it was raised from; return whether any are left."""
    kept = [frame for frame in shown.stack if not _is_ours(frame.filename)]
    shown.stack = traceback.StackSummary.from_list(kept)
    further = [shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())]
    found = [_keep_user_frames(one) for one in further if one is not None]
    return bool(kept) or any(found)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_NOT_USER_CODE) or Path(filename).parent.name == "pluggy"


def _name_of(server: Any) -> str:
    try:
        return "" if server is None else f"{server}: "
    except Exception:
        # It is still being made.
        return ""
