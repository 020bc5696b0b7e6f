"""Which version of an engine is installed, read from its package's metadata: nothing is run or imported for it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pytest_infserver.launcher.engine.site_packages import Installed, find_installed

_HEAD = 4096


def installed_version(binary: str, packages: Sequence[str], env: Mapping[str, str]) -> str | None:
    """Return the version of an engine, or None if its binary does not tell where it is installed.

    Nothing is run for it, so that a configuration can be checked that somebody else has written. (``vllm --version``
    would take 15 s, too: vLLM 0.32.)

    Args:
        binary: The engine's command, a script that names its Python interpreter, or that interpreter.
        packages: Names under which the engine is distributed; the first one that is installed counts.
        env: The environment in which it is going to run.
    """
    found = _installed(binary, packages, env)
    return None if found is None else found.version


def editable_source(binary: str, packages: Sequence[str], env: Mapping[str, str]) -> Path | None:
    """Return the source folder of an engine that is installed with ``pip install -e``, else None.

    Takes the arguments of `installed_version`.
    """
    found = _installed(binary, packages, env)
    try:
        url = json.loads(found.direct_url) if found is not None and found.direct_url else {}
        editable = url.get("dir_info", {}).get("editable") is True
        return Path(unquote(urlsplit(url["url"]).path)) if editable else None
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def _installed(binary: str, packages: Sequence[str], env: Mapping[str, str]) -> Installed | None:
    python = interpreter_of(binary, env.get("PATH", os.defpath))
    if python is None or not packages:
        return None
    if python == sys.executable and env.get("PYTHONPATH") == os.environ.get("PYTHONPATH"):
        # This process knows better where its packages are.
        return _own(packages)
    return find_installed(python, packages, env)


def is_at_least(version: str, bound: str) -> bool:
    """Return whether a version is ``bound`` or later, by their numbers alone: 0.12.0rc1 counts as 0.12.0."""
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
    # Not python-in-docker.sh: what it runs has its packages elsewhere.
    return re.fullmatch(r"(?:python|pypy)[\d.]*t?", Path(path).name) is not None


def _own(packages: Sequence[str]) -> Installed | None:
    from importlib.metadata import PackageNotFoundError, distribution

    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found = distribution(name)
            return Installed(found.version, found.read_text("direct_url.json") or "")
    return None
