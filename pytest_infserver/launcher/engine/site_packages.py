"""What is installed for a Python interpreter, read from its folders: neither it nor a package's code is run.

The folders are those of a virtual environment, of an installation, of Debian's own Python, of the user, and those that
``PYTHONPATH`` and plain lines of ``.pth`` files name. What only a ``sitecustomize``, a wrapper around the interpreter
or a line of code in a ``.pth`` file adds is not found: the version is unknown then.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pytest_infserver.system.disk.files import read_start

_MAX_BYTES = 64 * 1024
"""Of one file; the name and the version stand in its first lines."""
_MAX_FOLDERS = 200
_VERSION = re.compile(rb"^Version:[ \t]*([^\s]{1,100})[ \t]*\r?$", re.MULTILINE)
_SETTING = re.compile(r"^\s*([a-z_-]+)\s*=\s*(.*?)\s*$", re.MULTILINE)


class Installed(NamedTuple):
    """A package that is installed: its version and its ``direct_url.json``, or ""."""

    version: str
    direct_url: str


def find_installed(python: str, packages: Sequence[str], env: Mapping[str, str]) -> Installed | None:
    """Return what is installed for an interpreter under the first of some names, or None.

    Args:
        python: The interpreter.
        packages: Names of distributions.
        env: The environment in which it is going to run.
    """
    folders = search_path(python, env)
    for name in packages:
        for folder in folders:
            found = _in_folder(folder, _normal(name))
            if found is not None:
                return found
    return None


def search_path(python: str, env: Mapping[str, str]) -> list[Path]:
    """Return the folders in which an interpreter looks for packages, as far as files tell, in its order.

    Args:
        python: The interpreter.
        env: The environment in which it is going to run.
    """
    named = env.get("PYTHONPATH", "").split(os.pathsep)
    # A relative one would be relative to where the server runs.
    folders = [Path(one) for one in named if os.path.isabs(one)]  # noqa: PTH117
    for folder in _site_folders(Path(python), env):
        folders += [folder, *_named_in_pth_files(folder)]
    return list(dict.fromkeys(folders))[:_MAX_FOLDERS]


def _site_folders(python: Path, env: Mapping[str, str]) -> Iterator[Path]:
    settings = _venv_settings(python)
    if settings is None:
        real = Path(os.path.realpath(python))
        yield from _of_installation(real, _minor(real.name), env)
        return
    version = _minor(settings.get("version_info") or settings.get("version") or "")
    yield from _libraries(python.parent.parent, version, "site-packages")
    if settings.get("include-system-site-packages", "").lower() == "true" and settings.get("home"):
        yield from _of_installation(Path(settings["home"]) / "python", version, env)


def _of_installation(python: Path, version: str, env: Mapping[str, str]) -> Iterator[Path]:
    prefix = python.parent.parent
    base = env.get("PYTHONUSERBASE") or (f"{env['HOME']}/.local" if env.get("HOME") else "")
    if base and not env.get("PYTHONNOUSERSITE"):
        yield from _libraries(Path(base), version, "site-packages")
    yield from _libraries(prefix, version, "site-packages")
    # Debian's: what pip has installed, and what apt has.
    yield from _libraries(prefix / "local", version, "dist-packages")
    yield prefix / "lib" / "python3" / "dist-packages"


def _libraries(prefix: Path, version: str, name: str) -> Iterator[Path]:
    """Return the folders of an installation for one version of Python, or for all if that is not known."""
    for library in ("lib", "lib64"):
        with contextlib.suppress(OSError):
            versions = sorted((prefix / library).glob("python3.*" if not version else f"python{version}*"))
            # pypy3.11, python3.13t.
            versions += sorted((prefix / library).glob(f"pypy{version or '3.*'}"))
            yield from (folder / name for folder in versions if _minor(folder.name) == version or not version)


def _venv_settings(python: Path) -> dict[str, str] | None:
    for folder in (python.parent, python.parent.parent):
        with contextlib.suppress(OSError, ValueError):
            text = read_start(folder / "pyvenv.cfg", _MAX_BYTES).decode("utf-8", "replace")
            return {name.lower(): value for name, value in _SETTING.findall(text)}
    return None


def _minor(text: str) -> str:
    found = re.search(r"(3\.\d+)", text)
    return found[1] if found else ""


def _named_in_pth_files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for file in sorted(folder.glob("*.pth")):
            with contextlib.suppress(OSError, ValueError):
                lines = read_start(file, _MAX_BYTES).decode("utf-8", "replace").splitlines()
                # A line that begins with import is code.
                plain = [line.rstrip() for line in lines if line.strip() and not line.startswith(("#", "import "))]
                yield from (folder / line for line in plain if (folder / line).is_dir())


def _in_folder(folder: Path, name: str) -> Installed | None:
    try:
        entries = sorted(one.name for one in folder.iterdir())
    except (OSError, ValueError):
        return None
    for entry in entries:
        stem, dot, kind = entry.rpartition(".")
        own, _, version = stem.partition("-")
        if dot and kind in ("dist-info", "egg-info") and _normal(own) == name:
            file = "METADATA" if kind == "dist-info" else "PKG-INFO"
            told = _VERSION.search(_text(folder / entry / file))
            # A link, as uv makes them, is not read; the folder's name has the version, too.
            known = told[1].decode("utf-8", "replace") if told else version.partition("-py3")[0]
            if known:
                url = _text(folder / entry / "direct_url.json").decode("utf-8", "replace")
                return Installed(known, url)
    return None


def _text(file: Path) -> bytes:
    with contextlib.suppress(OSError, ValueError):
        return read_start(file, _MAX_BYTES)
    return b""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
