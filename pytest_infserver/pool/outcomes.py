"""What was raised elsewhere: how it is shown, and how it is raised again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_infserver import errors
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.user_code import described

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer


def in_words(error: BaseException) -> str:
    """Return an error with its kind."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def user_error(server: InferenceServer, error: BaseException) -> str:
    """Return the text for an exception that is none of ours, with the user's part of its traceback."""
    return described("a hook or its backend", error, server)


def error_called(kind: str, text: str) -> InferenceServerError:
    """Return the error of ours that was raised in another process; of an unknown kind an `InferenceServerError`."""
    found: InferenceServerError = getattr(errors, kind, InferenceServerError)(text)
    return found
