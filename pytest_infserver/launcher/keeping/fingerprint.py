"""What two servers have in common if one can stand in for the other."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.command import Command
from pytest_infserver.launcher.engine.version import editable_source, installed_version
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.disk.stamps import file_stamp, path_stamp, source_stamp
from pytest_infserver.version import __version__

if TYPE_CHECKING:
    from pytest_infserver.launcher.configured import ConfiguredServer

IGNORED_VARIABLES = re.compile(
    r"_|SHLVL|PWD|OLDPWD|TERM.*|COLORTERM|COLUMNS|LINES|LS_COLORS|PS[1-4]|PROMPT_.*|HIST.*"
    r"|SSH_.*|XDG_SESSION_.*|XDG_SEAT.*|XDG_VTNR|DBUS_.*|WINDOWID|DISPLAY|WAYLAND_DISPLAY|XAUTHORITY"
    r"|TMUX.*|STY|VTE_.*|GNOME_TERMINAL_.*|KONSOLE_.*|KITTY_.*|ITERM_.*|WEZTERM_.*|ALACRITTY_.*|VSCODE_.*|LC_TERMINAL.*"
    r"|INVOCATION_ID|JOURNAL_STREAM|MAIL|EDITOR|PAGER"
    r"|PYTEST_.*|INFSERVER_.*|COV_.*|COVERAGE_.*|TOX_.*|NOX_.*"
)
"""Variables that change from shell to shell and mean nothing to a server. They count if ``env_vars`` names them."""


_WORDS, _VARIABLES, _FILES, _REST = "words", "variables", "files", "rest"
_HASH = 12
"""Hexadecimal digits of the hash of one part: enough to tell two values apart."""
_MAX_TOLD = 24 * 1024
"""Bytes that what is told of the parts may have: a supervisor's answer is bounded."""


@dataclass(frozen=True)
class Fingerprint:
    """All that a server's answers depend on, by kind and name.

    Attributes:
        parts: Kind to name to value, of words of the command their place; the values may be secrets.
    """

    parts: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @property
    def mark(self) -> str:
        """A hash of all of it."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    @property
    def words(self) -> list[str]:
        """The command."""
        return [str(word) for word in self.parts[_WORDS].values()]

    def told(self, salt: str | None = None) -> dict[str, Any]:
        """Return what may be kept of the parts: their names, and a hash of each value; nothing if that is too much.

        Args:
            salt: What the hashes are made with, so that nobody knows a value by its hash; a new one if None.
        """
        salt = salt or secrets.token_hex(8)
        hashes = {kind: {name: _hash(salt, one) for name, one in part.items()} for kind, part in self.parts.items()}
        found = {"salt": salt, "parts": hashes}
        return found if len(json.dumps(found)) <= _MAX_TOLD else {}


def differences(
    now: Fingerprint, told: Mapping[str, Any], shown: Callable[[str], str], is_written: Callable[[str], bool]
) -> list[str] | None:
    """Return in words what is not as it was when a server was started.

    Args:
        now: How it would be started now.
        told: What was kept of how it was started, see `Fingerprint.told`.
        shown: Returns a word of the command as it may be shown.
        is_written: Returns whether the server itself writes a file, by its path.

    Returns:
        What differs, the names of variables and files without their values; None if nothing is known of that.
    """
    try:
        parts: dict[str, dict[str, str]] = {kind: dict(told["parts"][kind]) for kind in now.parts}
        current = now.told(str(told["salt"]))["parts"]
    except (KeyError, TypeError, ValueError):
        return None
    words = [shown(word) for word in now.words]
    found = _of_command(list(parts[_WORDS].values()), list(current[_WORDS].values()), words)
    found += [f"the variable {how}" for how in _of_names(parts[_VARIABLES], current[_VARIABLES])]
    # A file that was not there at the start is none that the server was started from: it has made it, as a log.
    changed = [path for path, stamp in parts[_FILES].items() if current[_FILES].get(path) != stamp]
    found += [_of_file(path) for path in changed if not is_written(path)]
    return found + [f"the {name}" for name, one in current[_REST].items() if parts[_REST].get(name) != one]


def _of_command(before: Sequence[str], now: Sequence[str], words: Sequence[str]) -> list[str]:
    found = []
    for kind, old_begin, old_end, begin, end in difflib.SequenceMatcher(None, before, now, False).get_opcodes():
        if kind == "delete":
            gone = old_end - old_begin
            where = f"after '{words[begin - 1]}'" if begin else "at its beginning"
            found.append(f"{gone} word{'s' if gone > 1 else ''} less {where} in the command")
        elif kind != "equal":
            found += [f"word {index + 1} of the command ('{words[index]}')" for index in range(begin, end)]
    return found


def _of_names(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = sorted({*before, *now})
    changed = [name for name in names if name in before and name in now and before[name] != now[name]]
    new = [f"{name} (new)" for name in names if name not in before]
    return changed + new + [f"{name} (not set any more)" for name in names if name not in now]


def _of_file(path: str) -> str:
    if not path:
        return "the engine's binary"
    return f"the module {path[3:]}" if path.startswith("-m ") else f"the file {path}"


def _hash(salt: str, value: Any) -> str:
    return hashlib.sha256(json.dumps([salt, value], sort_keys=True).encode()).hexdigest()[:_HASH]


def fingerprint(server: ConfiguredServer) -> str:
    """Return a hash of what `take_fingerprint` returns."""
    return take_fingerprint(server).mark


def take_fingerprint(server: ConfiguredServer) -> Fingerprint:
    """Return all that a server's answers depend on, as far as it can be seen from outside.

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
    twin.give(port=server.settings.port, ports={})
    twin.told = dataclasses.replace(server.told, reach=None, argv=None)
    twin.launched_command = None
    # Which GPUs it got counts no more than which port.
    twin.use_devices(None)
    command = twin.command_and_notes()[0]
    stop_command = twin.settings.stop_command
    version, sources = _engine(command, asked(twin).packages)
    rest = {
        # It brings a server of its own, and another version may take fingerprints in another way.
        "version of pytest-infserver": __version__,
        "backend": twin.backend_name,
        "'port'": twin.settings.port,
        "'gpus'": twin.settings.gpus,
        "'stop_command'": None if stop_command is None else twin.fill(stop_command),
        "working directory": twin.settings.cwd or _working_directory(),
        "'ports'": {name: port for name, port in twin.settings.ports.items() if port is not None},
        "'stop_signal'": twin.settings.stop_signal,
        "model's files": path_stamp(twin.model_path) if twin.model else "",
        "version of the engine": version,
        "source files of the engine": sources,
    }
    return Fingerprint(
        {
            _WORDS: {str(place): word for place, word in enumerate(command.argv)},
            _VARIABLES: dict(_environment(command)),
            _FILES: dict(_files(command)),
            _REST: rest,
        }
    )


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
