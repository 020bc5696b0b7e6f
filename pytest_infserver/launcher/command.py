"""What is executed: the command, its environment, and how both are shown to people."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_infserver.errors import ServerStartupError
from pytest_infserver.system.environment import environment
from pytest_infserver.system.secrets import find_secrets
from pytest_infserver.system.text import clean

_NOT_FOR_SERVERS = ("PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")


@dataclass(frozen=True)
class Command:
    """A command line with its whole environment.

    Attributes:
        argv: The words; the first one is the binary.
        env: The environment; its order is of no meaning.
        env_vars: The part of it that the user asked for; None unsets a variable.
        secrets: Values that must not be shown.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    env_vars: Mapping[str, str | None]
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    def __str__(self) -> str:
        """Return it as one would type it, secrets masked."""
        settings = [
            f"{name}={shlex.quote(value)}" if value is not None else f"-u {name}"
            for name, value in self.env_vars.items()
        ]
        prefix = "env " if any(setting.startswith("-u") for setting in settings) else ""
        settings.sort(key=lambda setting: not setting.startswith("-u"))
        return clean(prefix + " ".join([*settings, shlex.join(self.argv)]), self.secrets)

    def __repr__(self) -> str:
        return f"<Command {self}>"


def make_command(argv: Sequence[str], env_vars: Mapping[str, str | None]) -> Command:
    """Put a command together.

    Args:
        argv: The words.
        env_vars: Laid over this process's environment; None unsets a variable.
    """
    env = {name: value for name, value in environment().items() if name not in _NOT_FOR_SERVERS}
    # A file is no terminal: without this a Python server's last words stay in its buffer when it dies.
    env.setdefault("PYTHONUNBUFFERED", "1")
    for name, value in env_vars.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    words = tuple(os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in argv)
    return Command(words, env, env_vars, find_secrets(env, words))


def require_binary(command: Command, who: str, hint: str) -> None:
    """Make sure that the binary of a command exists.

    Args:
        command: The command.
        who: Name of the server, for the message.
        hint: How the binary is installed, one sentence, or "".

    Raises:
        ServerStartupError: It does not; the message says where it was looked for.
    """
    binary = command.argv[0]
    path = command.env.get("PATH", os.defpath)
    if shutil.which(binary, path=path):
        return
    if os.sep not in binary:
        where = f"is not on PATH ({path})"
    elif os.path.exists(binary):  # noqa: PTH110
        where = "is not an executable file"
    else:
        where = "does not exist"
    raise ServerStartupError(
        f"{who} cannot start: the binary '{binary}' {where}. {hint + ' ' if hint else ''}Or name it with"
        " 'binary_path:' (YAML) or binary_path=... (Python)."
    )
