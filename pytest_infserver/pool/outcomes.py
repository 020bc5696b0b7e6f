"""What a user's hook or backend may raise, and how it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_infserver.launcher.user_code import described

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

OUTCOMES = (Exception, SystemExit, pytest.fail.Exception, pytest.skip.Exception)
"""pytest's own outcomes are no Exceptions. SystemExit ends no run: in a test it does not, either."""


def in_words(error: BaseException) -> str:
    """Return an error with its kind."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def user_error(server: InferenceServer, error: BaseException) -> str:
    """Return the text for an exception that is none of ours, with the user's part of its traceback."""
    return described("a hook or its backend", error, server)
