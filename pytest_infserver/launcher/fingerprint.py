"""What two servers have in common if one can stand in for the other."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver import __version__
from pytest_infserver.launcher.command import Command
from pytest_infserver.launcher.engine_version import editable_source, installed_version
from pytest_infserver.launcher.stamps import file_stamp, path_stamp, source_stamp
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

IGNORED_VARIABLES = re.compile(
    r"_|SHLVL|PWD|OLDPWD|TERM.*|COLORTERM|COLUMNS|LINES|LS_COLORS|PS[1-4]|PROMPT_.*|HIST.*"
    r"|SSH_.*|XDG_SESSION_.*|XDG_SEAT.*|XDG_VTNR|DBUS_.*|WINDOWID|DISPLAY|WAYLAND_DISPLAY|XAUTHORITY"
    r"|TMUX.*|STY|VTE_.*|GNOME_TERMINAL_.*|KONSOLE_.*|KITTY_.*|ITERM_.*|WEZTERM_.*|ALACRITTY_.*|VSCODE_.*|LC_TERMINAL.*"
    r"|INVOCATION_ID|JOURNAL_STREAM|MAIL|EDITOR|PAGER"
    r"|PYTEST_.*|INFSERVER_.*|COV_.*|COVERAGE_.*|TOX_.*|NOX_.*"
)
"""Variables that change from shell to shell and mean nothing to a server. They count if ``env_vars`` names them."""


def fingerprint(server: InferenceServer) -> str:
    """Return a hash of all that a server's answers depend on, as far as it can be seen from outside.

    That is: its command and ``stop_command`` (a port that was not configured does not count), its environment without
    `IGNORED_VARIABLES`, the working directory, the engine's version (of an editable install: its sources), size and
    time of the model's files, of the binary, of every file that the command names, and of the module behind ``-m``.
    What is imported from elsewhere does not count.

    Settings that only this side uses (time limits, heartbeat, output_dir, name) do not count either.

    Raises:
        ConfigError: The command has an option that the installed version of the engine does not have any more.
    """
    # A copy: others may read the port meanwhile.
    twin = copy.copy(server)
    twin._port = server.settings.port
    twin._command = None
    # Which GPUs it got counts no more than which port.
    twin.use_devices(None)
    command = twin.command_and_notes()[0]
    stop_command = twin.settings.stop_command
    parts = {
        # It brings a server of its own, and another version may take fingerprints in another way.
        "ours": __version__,
        "backend": twin.backend_name,
        "port": twin.settings.port,
        "gpus": twin.settings.gpus,
        "command": command.argv,
        "stop_command": None if stop_command is None else twin.fill(stop_command),
        "environment": _environment(command),
        "folder": _working_directory(),
        "model": path_stamp(twin.model_path) if twin.model else "",
        "files": dict(_files(command)),
        "engine": _engine(command, asked(twin).packages),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _environment(command: Command) -> Mapping[str, str]:
    named = command.env_vars
    return {
        name: value for name, value in command.env.items() if name in named or IGNORED_VARIABLES.fullmatch(name) is None
    }


def _working_directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:
        return ""


def _files(command: Command) -> Iterator[tuple[str, str]]:
    """Yield name and stamp of the binary and of each file that the command names."""
    binary = shutil.which(command.argv[0], path=command.env.get("PATH", os.defpath))
    yield "", "" if binary is None else f"{binary} {file_stamp(binary)}"
    for before, word in itertools.pairwise(command.argv):
        for path in (word, word.partition("=")[2] if word.startswith("-") else ""):
            if path and _is_file(path):
                yield path, file_stamp(path)
        if before == "-m":
            yield f"-m {word}", _module_stamp(word, command.env.get("PYTHONPATH", ""))


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)  # noqa: PTH113
    except ValueError:
        return False


def _module_stamp(name: str, search: str) -> str:
    """Return the stamp of a module of the user's own: ``python -m`` looks in the working directory first."""
    top = name.partition(".")[0]
    if not top.isidentifier():
        return ""
    for folder in ("", *search.split(os.pathsep)):
        if (Path(folder) / f"{top}.py").is_file():
            return file_stamp(Path(folder) / f"{top}.py")
        if (Path(folder) / top).is_dir():
            return source_stamp(Path(folder) / top)
    return ""


def _engine(command: Command, packages: Sequence[str]) -> list[str | None]:
    version = installed_version(command.argv[0], packages, command.env)
    source = editable_source(command.argv[0], packages, command.env) if version is not None else None
    return [version, None if source is None else source_stamp(source)]
