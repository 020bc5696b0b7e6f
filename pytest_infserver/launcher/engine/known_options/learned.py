"""Tables of options that were read from an installed engine once, and are kept in the user's cache.

To read one, the engine is run as far as its help, which takes vLLM 10 s and more. That is never done where somebody
waits for it, except for `infserver check`. A table counts for one engine where it is installed, as long as nothing is
installed or removed beside it: a plugin of the engine may add options. One that is installed for editing has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_infserver.launcher.engine.known_options.help_text import options_in_help
from pytest_infserver.launcher.engine.known_options.option_table import OptionTable, table_from_data
from pytest_infserver.launcher.engine.site_packages import search_path
from pytest_infserver.launcher.engine.version import editable_source, installed_version, interpreter_of
from pytest_infserver.models.builtin import cache_dir
from pytest_infserver.system.disk.files import read_start, write_whole
from pytest_infserver.system.disk.folders import check_folder, make_output_folder
from pytest_infserver.system.processes.bounded_run import run_bounded

PRINT_LIMIT = 10.0
"""Seconds that a program gets to print its help."""
READ_LIMIT = 180.0
"""Seconds that an engine gets to show its help."""
_MAX_BYTES = 8 << 20
_FORMAT = 1
_FOLDER = "options"
_TRY_AGAIN = 24 * 3600.0
"""Seconds for which an engine that did not show its help is left alone."""
_READER = Path(__file__).with_name("option_reader.py")
_MARK = "infserver-options:"
_PLUGIN_WORDS = ("PLUGIN", "EXTERNAL", "PLATFORM", "TARGET")
"""Words in the names of an engine's variables with which it may have other options."""

_reading: set[Path] = set()
_known: dict[tuple[Path, int], OptionTable | None] = {}


@dataclass(frozen=True)
class Parser:
    """An engine's parser of its command line.

    Attributes:
        engine: The engine's name and version.
        command: What shows its help.
        env: The environment in which it runs.
        cwd: The directory in which it runs, or None for this process's.
        file: Where its table is kept.
        as_text: Whether the help itself is read, which takes no time to speak of.
    """

    engine: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    file: Path
    as_text: bool = False


def find_parser(
    engine: str, entry: Sequence[str], packages: Sequence[str], env: Mapping[str, str], cwd: str | None = None
) -> Parser | None:
    """Return an engine's parser, or None if it is not known where the engine is installed, or if that may change.

    Nothing is run.

    Args:
        engine: The engine's name.
        entry: The words that start it, without arguments; the first one is its binary.
        packages: Names under which it is distributed.
        env: The environment in which it runs.
        cwd: The directory in which it runs, or None for this process's.
    """
    binary = entry[0]
    version = installed_version(binary, packages, env)
    python = interpreter_of(binary, env.get("PATH", os.defpath))
    if version is None or python is None or editable_source(binary, packages, env) is not None:
        return None
    import shutil

    script = shutil.which(binary, path=env.get("PATH", os.defpath)) or binary
    words = entry[1:] if script == python else [script, *entry[1:]]
    depends_on = [_FORMAT, python, *words, _stamps(python, env), *_variables(engine, env)]
    mark = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]
    file = cache_dir() / _FOLDER / f"{engine}-{version}-{mark}.json"
    return Parser(f"{engine} {version}", (python, *words, "--help"), env, cwd, file)


def find_program(engine: str, binary: str, env: Mapping[str, str], cwd: str | None = None) -> Parser | None:
    """Return the parser of a program that is not Python and prints its options, or None if there is no such program.

    Args:
        engine: What it is called in messages.
        binary: Its file, or its name.
        env: The environment in which it runs.
        cwd: The directory in which it runs, or None for this process's.
    """
    import shutil

    program = shutil.which(binary, path=env.get("PATH", os.defpath))
    if program is None:
        return None
    try:
        status = os.stat(program)  # noqa: PTH116
    except OSError:
        return None
    version = [_FORMAT, os.path.abspath(program), status.st_size, status.st_mtime_ns]  # noqa: PTH100
    mark = hashlib.sha256(repr(version).encode()).hexdigest()[:16]
    return Parser(engine, (program, "--help"), env, cwd, cache_dir() / _FOLDER / f"{engine}-{mark}.json", as_text=True)


def learned_table(parser: Parser) -> OptionTable | None:
    """Return the table of a parser if it was read before, and could be read."""
    try:
        stamp = parser.file.stat().st_mtime_ns
    except OSError:
        return None
    known = parser.file, stamp
    if known not in _known:
        _known[known] = _read_file(parser)
    return _known[known]


def learn(parser: Parser, *, idle: bool = False) -> str | None:
    """Run an engine as far as its help and keep what its parser knows.

    Args:
        parser: The parser.
        idle: Whether that may take only the time of the processors that nobody else wants.

    Returns:
        Why that could not be done, or None. It is not tried again for a day.
    """
    table, problem = _printed(parser) if parser.as_text else _told(parser, idle)
    try:
        if table is not None:
            table_from_data(parser.engine, table)
    except ValueError as error:
        table, problem = None, str(error)
    try:
        make_output_folder(parser.file.parent.parent, _FOLDER)
        write_whole(parser.file, json.dumps({"problem": problem, "table": table}).encode())
    except OSError as error:
        return f"the cache cannot be written: {error}"
    return problem


def _printed(parser: Parser) -> tuple[dict[str, Any] | None, str | None]:
    """Return what a program's help says, or why not."""
    output = run_bounded(parser.command, PRINT_LIMIT, _MAX_BYTES, dict(parser.env), parser.cwd)
    table = options_in_help(output.data.decode("utf-8", "replace"))
    return table, output.problem or "its help is none that can be read" if table is None else None


def _told(parser: Parser, idle: bool) -> tuple[dict[str, Any] | None, str | None]:
    """Return what a parser in Python knows, or why not."""
    python, *words = parser.command
    command = [python, str(_READER), _MARK, *(["--idle"] if idle else []), *words]
    output = run_bounded(command, READ_LIMIT, _MAX_BYTES, dict(parser.env), parser.cwd)
    lines = output.data.decode("utf-8", "replace").splitlines()
    found = next((line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)), None)
    if found is None:
        return None, output.problem or "its help was not shown"
    try:
        return json.loads(found), "it takes any option" if found == "null" else None
    except ValueError as error:
        return None, str(error)


def is_learned(parser: Parser) -> bool:
    """Return whether a parser was read before, or could not be read a short time ago."""
    try:
        age = time.time() - parser.file.stat().st_mtime
    except OSError:
        return False
    return learned_table(parser) is not None or age < _TRY_AGAIN


def learn_in_background(parser: Parser) -> None:
    """Read a parser's table in a thread while something else is done, if nobody has read it yet.

    The engine's process ends with this one, whatever ends that.
    """
    if parser.file in _reading or is_learned(parser):
        return
    _reading.add(parser.file)
    settings = {"idle": True}
    threading.Thread(target=learn, args=(parser,), kwargs=settings, name="infserver-options", daemon=True).start()


def _read_file(parser: Parser) -> OptionTable | None:
    try:
        # What others may have written there is none of the engine's.
        check_folder(parser.file.parent)
        data = json.loads(read_start(parser.file, _MAX_BYTES))
        return None if data["table"] is None else table_from_data(parser.engine, data["table"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stamps(python: str, env: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return when something was installed or removed last, for each folder with packages."""
    found = []
    for folder in search_path(python, env):
        with contextlib.suppress(OSError):
            found.append((str(folder), folder.stat().st_mtime_ns))
    return found


def _variables(engine: str, env: Mapping[str, str]) -> list[tuple[str, str]]:
    own = [(name, value) for name, value in env.items() if name.startswith(f"{engine.upper()}_")]
    return sorted((name, value) for name, value in own if any(word in name for word in _PLUGIN_WORDS))
