"""The errors that users see. Each message says what happened, why as far as known, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.leak_finding import Finding


class InferenceServerError(Exception):
    """Base of every error raised by this package; its text has no escape sequences, wherever its parts come from."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(clean(one) if isinstance(one, str) else one for one in args))


class ConfigError(InferenceServerError):
    """A configuration that cannot be used; nothing has been started.

    Attributes:
        file: The YAML file or the option that holds the mistake; None for keyword arguments.
        line: 1-based line in ``file``, or None.
        column: 1-based column in ``file``, or None.
        of_block: Whether it is the mistake of a whole server or file, such as a missing key, and not of one value.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        of_block: bool = True,
    ) -> None:
        self.of_block = of_block
        self.file = file
        self.line = line
        self.column = column
        place = "" if file is None else ":".join(str(part) for part in (file, line, column) if part is not None)
        super().__init__(f"{place}: {message}" if place else message)


class ServerStartupError(InferenceServerError, RuntimeError):
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


class LogTimeoutError(InferenceServerError, TimeoutError):
    """Nothing in a server's log has matched what was waited for."""


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
