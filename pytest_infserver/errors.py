"""The errors that users see. Each message says what happened, why as far as known, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.launcher.leaks.finding import Finding


class InferenceServerError(Exception):
    """Base of every error raised by this package."""


class ConfigError(InferenceServerError):
    """A configuration that cannot be used; nothing has been started.

    Attributes:
        file: The YAML file or the option that holds the mistake; None for keyword arguments.
        line: 1-based line in ``file``, or None.
        column: 1-based column in ``file``, or None.
    """

    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None, column: int | None = None
    ) -> None:
        self.file = file
        self.line = line
        self.column = column
        place = "" if file is None else ":".join(str(part) for part in (file, line, column) if part is not None)
        super().__init__(f"{place}: {message}" if place else message)


class ServerStartupError(InferenceServerError):
    """A server that did not become ready.

    Attributes:
        exit_code: The server's exit code, negative for a signal; None when it did not exit by itself.
        log_path: The server's log file; None when it was never launched.
    """

    def __init__(self, message: str, *, exit_code: int | None = None, log_path: Path | None = None) -> None:
        self.exit_code = exit_code
        self.log_path = log_path
        super().__init__(message)


class ServerStartupTimeout(ServerStartupError):
    """A server that was still not ready after ``startup_timeout`` (or ``download_timeout``) seconds."""


class PortInUseError(ServerStartupError):
    """Another process listens on the server's port."""


class ServerDiedError(InferenceServerError):
    """A server that was ready and then ended by itself, or hung and was killed."""


class LeakError(InferenceServerError):
    """Debug mode found something that the server left behind.

    Attributes:
        findings: All that was found, errors and warnings.
    """

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        self.findings = tuple(findings)
        super().__init__(message)


class ProfileError(InferenceServerError):
    """A profile that was asked for and cannot be made."""


class UserCodeError(InferenceServerError):
    """Code of the user's, a backend or a hook, has raised something; the text has its part of the traceback."""
