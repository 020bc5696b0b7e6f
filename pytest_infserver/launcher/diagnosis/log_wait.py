"""Waits for something in a server's log."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError, LogTimeoutError
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle

_STEP = 0.05
_WINDOW = 256 * 1024
"""Bytes of the log that are looked at together."""
_SHOWN_LINES = 5


def wait_for_log(
    server: ServerHandle, regex: str | re.Pattern[str], since: int | None, timeout: float
) -> re.Match[str]:
    """Wait until something in a server's log matches; see `UsableServer.wait_for_log`."""
    pattern = re.compile(regex, re.MULTILINE) if isinstance(regex, str) else regex
    start = server.runtime.status.launch_log_start if since is None else since
    deadline = time.monotonic() + timeout
    while True:
        # Before the look: what a server writes last is there when it is known to have ended.
        state = server.state
        data, _ = server.runtime.read_log_bytes(start, _WINDOW)
        text = data.decode("utf-8", "replace").replace("\r\n", "\n")
        match = pattern.search(text)
        if match is not None:
            return match
        _raise_if_pointless(server, state, pattern)
        left = deadline - time.monotonic()
        if left <= 0:
            raise LogTimeoutError(_too_late(server, pattern, timeout, text))
        time.sleep(min(_STEP, left))


def _raise_if_pointless(server: ServerHandle, state: ServerState, pattern: re.Pattern[str]) -> None:
    wanted = f"no line of its log has matched {pattern.pattern!r}"
    if server.attached:
        raise InferenceServerError(f"{server}: it has no log here, since it was attached to by its URL")
    if state is ServerState.DIED:
        server.raise_if_dead()
    if state in (ServerState.NEW, ServerState.STOPPED, ServerState.FAILED):
        raise InferenceServerError(f"{server}: {wanted}, and it does not run: it is {state}")


def _too_late(server: ServerHandle, pattern: re.Pattern[str], timeout: float, text: str) -> str:
    lines = clean(text, server.secrets).splitlines()[-_SHOWN_LINES:]
    last = "\n".join(["; its last lines:", *(f"  {line}" for line in lines)]) if lines else ", and nothing was written"
    what = f"nothing in its log has matched {pattern.pattern!r} within {timeout:g} s"
    return f"{server}: {what} (log: {server.log_path}){last}"
