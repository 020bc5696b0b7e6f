"""Prepares an engine for profiles, and asks its server to begin and to end one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.engine.version import installed_version
from pytest_infserver.launcher.profiling.patience import patiently
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.http.body import Reply
from pytest_infserver.system.http.fetch import Limits, NoReply, fetch

if TYPE_CHECKING:
    from pytest_infserver.launcher.profiling.endpoints import Options, ProfileEndpoints
    from pytest_infserver.launcher.profiling.profiler import Profiler, Waiting

_MAX_SHOWN = 2000
_MAX_ANSWER = 1024 * 1024


def start_settings(
    profiler: Profiler, endpoints: ProfileEndpoints, folder: str, options: Options
) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return the flags and the environment variables with which the installed engine has to be started.

    Raises:
        ProfileError: Its version has no such options.
    """
    server = profiler.server
    command = server.configured_command()
    version = installed_version(command.argv[0], asked(server).packages, command.env)
    try:
        return endpoints.setup(folder, version, options)
    except ValueError as error:
        raise profiler.error(str(error)) from None


def given_flag(profiler: Profiler, endpoints: ProfileEndpoints) -> str | None:
    """Return a flag of the user's that does the same as ours would, also one such as ``--profiler-config.profiler``."""
    stems = {word.partition("=")[0].partition(".")[0] for word in profiler.server.server_args()}
    return next((flag for flag in endpoints.flags if flag in stems), None)


def post(profiler: Profiler, path: str, body: Mapping[str, Any] | None, waiting: Waiting) -> None:
    """Send such a request.

    Raises:
        ProfileError: It was not answered, or refused.
    """
    server = profiler.server
    sent = None if body is None else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    limits = Limits(waiting.limit, _MAX_ANSWER)

    def send() -> Reply:
        address = server.address
        headers = {**address.headers, **kind}
        return fetch(server.url_for(path), limits, headers=headers, method="POST", body=sent, address=address)

    try:
        answer = patiently(send, waiting)
    except NoReply as error:
        raise profiler.error(f"POST {path} {error}") from None
    if isinstance(answer, str):
        raise profiler.error(f"{answer} during POST {path}")
    if answer.status == 404:
        raise profiler.error(f"the server has no {path}: it was not started for this profiler")
    if not 200 <= answer.status < 300:
        raise profiler.error(
            f"POST {path} was answered {answer.status}", answer.body[:_MAX_SHOWN].decode("utf-8", "replace")
        )
