"""Which version of an engine is installed, asked of its package's metadata: the engine itself is not imported."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pytest_infserver.launcher.child_group import kill_group
from pytest_infserver.system.environment import environment

_LIMIT = 10.0
_HEAD = 4096
_QUESTION = """
import sys
from importlib.metadata import PackageNotFoundError, distribution
for name in sys.argv[1:]:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        continue
    # A folder with spaces in its name is quoted: this is one word.
    print(found.version + "\\t" + "".join((found.read_text("direct_url.json") or "").split()))
    break
"""


def installed_version(binary: str, packages: Sequence[str], env: Mapping[str, str]) -> str | None:
    """Return the version of an engine, or None if its binary does not tell where it is installed.

    Takes some 50 ms, once for each environment. (``vllm --version`` takes 15 s: vLLM 0.32.)

    Args:
        binary: The engine's command, a script that names its Python interpreter, or that interpreter.
        packages: Names under which the engine is distributed; the first one that is installed counts.
        env: The environment in which it is going to run.
    """
    found = _installed(binary, packages, env)
    return None if found is None else found[0]


def editable_source(binary: str, packages: Sequence[str], env: Mapping[str, str]) -> Path | None:
    """Return the source folder of an engine that is installed with ``pip install -e``, else None.

    Takes the arguments, and the time, of `installed_version`.
    """
    found = _installed(binary, packages, env)
    try:
        url = json.loads(found[1]) if found is not None and found[1] else {}
        editable = url.get("dir_info", {}).get("editable") is True
        return Path(unquote(urlsplit(url["url"]).path)) if editable else None
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def _installed(binary: str, packages: Sequence[str], env: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the engine's version and its direct_url.json."""
    python = interpreter_of(binary, env.get("PATH", os.defpath))
    if python is None or not packages:
        return None
    return _ask(python, tuple(packages), env.get("PYTHONPATH"))


def is_at_least(version: str, bound: str) -> bool:
    """Tell whether a version is ``bound`` or later, by their numbers alone: 0.12.0rc1 counts as 0.12.0."""
    return _numbers(version) >= _numbers(bound)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def interpreter_of(binary: str, path: str) -> str | None:
    """Return the Python interpreter that runs a command, or None if its first line does not say it.

    Args:
        binary: A script that names its interpreter, or that interpreter; a path or a name.
        path: Where names are looked up.
    """
    found = shutil.which(binary, path=path)
    if found is None:
        return None
    if _is_python(found):
        return found
    try:
        with Path(found).open("rb") as file:
            first, _, rest = file.read(_HEAD).partition(b"\n")
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    line = first[2:]
    if line.split()[:1] == [b"/bin/sh"]:
        # How pip writes a path that is too long for a first line: '''exec' /long/path/python "$0" "$@"
        line = rest.partition(b"\n")[0]
        if not line.startswith(b"'''exec' "):
            return None
        line = line.removeprefix(b"'''exec' ")
    try:
        words = shlex.split(line.decode())
    except ValueError:
        return None
    named = next((word for word in words if _is_python(word)), None)
    return None if named is None else shutil.which(named, path=path)


def _is_python(path: str) -> bool:
    # Not python-in-docker.sh: it would be run.
    return re.fullmatch(r"(?:python|pypy)[\d.]*t?", Path(path).name) is not None


def _ask(python: str, packages: tuple[str, ...], pythonpath: str | None) -> tuple[str, str] | None:
    try:
        return _answer(python, packages, pythonpath)
    except _NoAnswer:
        return None


class _NoAnswer(Exception):
    """The interpreter did not say anything; it is not remembered."""


def _own_answer(packages: Sequence[str]) -> tuple[str, str]:
    from importlib.metadata import PackageNotFoundError, distribution

    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found = distribution(name)
            return found.version, found.read_text("direct_url.json") or ""
    raise _NoAnswer


@functools.lru_cache(maxsize=64)
def _answer(python: str, packages: tuple[str, ...], pythonpath: str | None) -> tuple[str, str]:
    if python == sys.executable and pythonpath == os.environ.get("PYTHONPATH"):
        # Nobody else needs to be started for that.
        return _own_answer(packages)
    env = environment()
    env.pop("PYTHONPATH", None)
    if pythonpath is not None:
        env["PYTHONPATH"] = pythonpath
    try:
        process = subprocess.Popen(
            [python, "-c", _QUESTION, *packages],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            # Not the working directory: with -c it is searched for packages first.
            cwd=os.sep,
            start_new_session=True,
        )
    except OSError:
        raise _NoAnswer from None
    with process:
        try:
            output, _ = process.communicate(timeout=_LIMIT)
        except BaseException as error:
            # What it has started, too.
            kill_group(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise _NoAnswer from None
            raise
    # Whatever a sitecustomize prints stands before it.
    lines = output.decode("utf-8", "replace").splitlines()
    version, tab, url = lines[-1].partition("\t") if lines else ("", "", "")
    if not tab:
        raise _NoAnswer
    return version, url
