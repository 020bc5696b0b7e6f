"""What is checked of the keys that say where a server is reached, how it is known to be ready, and where it runs."""

from __future__ import annotations

import importlib.util
import os
import resource
from typing import TYPE_CHECKING

from pytest_infserver.config.validation import nearest
from pytest_infserver.errors import ServerStartupError
from pytest_infserver.launcher.address import configured_key
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.environment import environment

if TYPE_CHECKING:
    from pytest_infserver.launcher.spec import ServerSpec

_LONGEST_WORD = 128 * 1024
"""Bytes that Linux takes in one word of a command line, and in one variable, with its last zero byte."""
_MAX_SHOWN = 80


def check_reach(server: ServerSpec) -> None:
    """Make sure that the keys about reaching a server go together.

    Raises:
        ConfigError: They do not; it points at the place the wrong one came from.
    """
    settings = server.settings
    if settings.api_key is not None and settings.api_key_env is not None:
        raise settings.error("'api_key' and 'api_key_env' mean the same: use one of them", "api_key_env")
    name = settings.api_key_env
    if name is not None and not (server.env_vars.get(name) or environment().get(name)):
        raise settings.error(f"'api_key_env': the variable {name} is not set, nor is it in 'env_vars'", "api_key_env")
    key, source = configured_key(settings, server.env_vars)
    if key is not None and not key.isprintable():
        message = f"the key of '{source}' has a line end, or another character in it that no request can carry"
        raise settings.error(message, source.partition(":")[0])
    flags = asked(server).address_flags
    if (settings.uds or "").startswith("@") and "uds" in flags.added and not server.attached:
        message = f"'uds': {server.backend_name} takes the path of a socket, not a name that begins with @"
        raise settings.error(message, "uds")
    for index, probe in enumerate(settings.ready or ()):
        port = probe.get("port")
        if port is not None and port not in settings.ports:
            hint = nearest(port, settings.ports) if settings.ports else f"; write ports: {{{port}: null}}"
            raise settings.error(f"'ready': '{port}' is none of 'ports'{hint}", "ready", index, "port")
        if "grpc" in probe and importlib.util.find_spec("grpc") is None:
            message = "'ready: {grpc: true}' needs the package grpcio: pip install 'pytest-infserver[grpc]'"
            raise settings.error(message, "ready", index)
        if "log" in probe and server.attached:
            raise settings.error("'ready: {log: ...}' and 'url': the log of what runs already is not known", "ready")


def require_launchable(server: ServerSpec) -> None:
    """Make sure that the operating system can launch a server's command where it is to be launched.

    Raises:
        ServerStartupError: It cannot; the message says why in few words.
    """
    folder = server.settings.cwd
    if folder is not None and not os.path.isdir(folder):  # noqa: PTH112
        raise ServerStartupError(f"{server} cannot start: 'cwd' is no directory: {folder}")
    command = asked(server).configured_command()
    words = {f"word {number} of its command": word for number, word in enumerate(command.argv, start=1)}
    variables = {f"the variable {name}": f"{name}={value}" for name, value in command.env.items()}
    texts = {**words, **variables}
    for what, text in texts.items():
        size = len(os.fsencode(text)) + 1
        if size > _LONGEST_WORD:
            raise ServerStartupError(
                f"{server} cannot start: argument list too long: {what[:_MAX_SHOWN]} has {size} bytes, the system takes"
                f" {_LONGEST_WORD} in one. Put it into a file."
            )
    # As Linux counts them: a quarter of the stack, at most 6 MB.
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    limit = 6 << 20 if stack == resource.RLIM_INFINITY else max(_LONGEST_WORD, min(stack // 4, 6 << 20))
    total = sum(len(os.fsencode(text)) + 9 for text in texts.values())
    if total > limit:
        raise ServerStartupError(
            f"{server} cannot start: argument list too long: its command and environment have {total} bytes, the"
            f" system takes {limit}. Put what is long into a file."
        )
