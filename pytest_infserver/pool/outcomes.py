"""What a user's hook or backend may raise, and how it is shown."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

OUTCOMES = (Exception, pytest.fail.Exception, pytest.skip.Exception)
"""pytest's own outcomes are no Exceptions."""
_NOT_USER_CODE = ("pytest_infserver", "pluggy")


def in_words(error: BaseException) -> str:
    """Return an error with its kind."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def user_error(server: InferenceServer, error: BaseException) -> str:
    """Return the text for an exception that is none of ours, with the user's part of its traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_USER_CODE:
        frame = frame.tb_next
    lines = traceback.format_exception(type(error), error, frame or error.__traceback__)
    return clean(f"{server}: an error in a hook or in its backend\n{''.join(lines).rstrip()}", server.secrets)
