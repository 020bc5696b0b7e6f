"""What the log of a server's last launch says of its failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_infserver.errors import UserCodeError
from pytest_infserver.launcher.diagnosis.root_cause import root_cause
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle


def cause_of_failure(server: ServerHandle, *, in_start: bool = False) -> str | None:
    """Return what the log of the last launch says of why it failed, or None.

    Args:
        server: The server.
        in_start: Whether it did not become ready, so that the lines count after which none does.
    """
    backend = asked(server)
    try:
        patterns = (*backend.cause_patterns, *(backend.fatal_patterns if in_start else ()))
        noise = backend.noise_patterns
    except UserCodeError as error:
        # Somebody waits for the reason of an end: this is what is known of it.
        return str(error)
    return root_cause(server.runtime.log, patterns, server.runtime.status.launch_log_start, server.secrets, noise)
