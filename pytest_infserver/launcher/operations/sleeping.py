"""Puts an engine to sleep and wakes it, by its own requests: it gives its GPU memory back and keeps its process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.http.probe import ask
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.engine.sleep_requests import SleepRequests
    from pytest_infserver.launcher.runtime.runtime import Runtime


def fall_asleep(runtime: Runtime, level: int) -> None:
    """Put a server to sleep, which is not taken for hung from then on.

    Raises:
        InferenceServerError: It does not run, cannot sleep, or has refused.
    """
    requests = _requests_of(runtime)
    was_awake = runtime.status.awake
    if was_awake:
        runtime.pause_heartbeat()
    try:
        _post(runtime, requests.sleep.format(level=level), requests.advice)
    except BaseException:
        if was_awake:
            runtime.resume_heartbeat()
        raise
    runtime.change(awake=False)
    if was_awake:
        runtime.server.journal.note("asleep")


def wake_up(runtime: Runtime) -> None:
    """Wake a server; no effect if nobody has put it to sleep here.

    Raises:
        InferenceServerError: It does not run any more, or has refused.
    """
    if runtime.status.awake:
        return
    requests = _requests_of(runtime)
    _post(runtime, requests.wake, requests.advice)
    forget_sleep(runtime)
    runtime.server.journal.note("awake")


@contextlib.contextmanager
def as_start(runtime: Runtime, phase: str) -> Iterator[None]:
    """Do something with a ready server that may be waited for, and cancelled, as a start.

    Args:
        runtime: The server's.
        phase: What it does meanwhile.
    """
    runtime.begin_token()
    before = runtime.status.phase
    runtime.change(phase=phase)
    runtime.server.tell_waiting()
    try:
        yield
    finally:
        runtime.change(phase=before)
        runtime.end_waiting()


def wake_for_others(runtime: Runtime) -> None:
    """Wake a server that a test has left asleep; one that cannot be woken is ended, as one that has died."""
    if runtime.status.awake or runtime.state is not ServerState.READY:
        return
    try:
        wake_up(runtime)
    except InferenceServerError as error:
        runtime.server.warn(f"{error}; it was left asleep by a test, and is ended")
        forget_sleep(runtime)
        runtime.kill()


def forget_sleep(runtime: Runtime) -> None:
    """Note that a server is not asleep, because it is woken, ended or started anew."""
    if not runtime.status.awake:
        runtime.change(awake=True)
        runtime.resume_heartbeat()


def _requests_of(runtime: Runtime) -> SleepRequests:
    server = runtime.server
    found = asked(server).sleep_requests
    if found is None:
        raise InferenceServerError(f"{server} cannot sleep: backend '{server.backend_name}' has no requests for that")
    if not server.running:
        raise InferenceServerError(f"{server} does not run: it is {runtime.state}")
    return found


def _post(runtime: Runtime, path: str, advice: str) -> None:
    server = runtime.server
    address = asked(server).address
    answer = ask(
        server.url_for(path),
        # Gigabytes are copied meanwhile.
        server.settings.hang_timeout,
        headers=address.headers,
        pointless=lambda: runtime.start_is_cancelled() or not server.running,
        address=address,
        post=b"{}",
        whole=True,
    )
    if not answer.ok:
        hint = "" if answer.status is None else f"; {advice}"
        raise InferenceServerError(clean(f"{server}: POST {path} {answer}{hint}", server.secrets))
