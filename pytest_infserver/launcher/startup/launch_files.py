"""The files beside a server's log that say how it was launched: its command and its environment, secrets masked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from pytest_infserver.launcher.command import Command
from pytest_infserver.system.disk.files import FOR_ALL, write_whole
from pytest_infserver.system.secrets import is_secret_name
from pytest_infserver.system.text import MASK, clean

COMMAND_FILE = "command.txt"
ENVIRONMENT_FILE = "environment.txt"


def write_launch_files(folder: Path, command: Command, env: Mapping[str, str]) -> None:
    """Write how a server is launched.

    Args:
        folder: That of its log.
        command: The command.
        env: The whole environment that it gets.

    Raises:
        OSError: They cannot be written.
    """
    _write(folder / COMMAND_FILE, f"{command}\n", FOR_ALL)
    # For its user alone: what holds a secret without saying so in its name stands there in clear.
    _write(folder / ENVIRONMENT_FILE, environment_text(env, command.secrets), 0o600)


def environment_text(env: Mapping[str, str], secrets: frozenset[str]) -> str:
    """Return an environment as lines that a shell can read, sorted by name, secrets masked.

    Args:
        env: The environment.
        secrets: Values to mask wherever they stand.
    """
    return "".join(f"{name}={_shown(name, value, secrets)}\n" for name, value in sorted(env.items()))


def _shown(name: str, value: str, secrets: frozenset[str]) -> str:
    if value and is_secret_name(name):
        return MASK
    return shlex.quote(clean(value, secrets))


def _write(path: Path, text: str, mode: int) -> None:
    # A new file each time: an old one keeps the mode that it had.
    write_whole(path, text.encode("utf-8", "surrogateescape"), mode)
