"""Imports that a project's own files do not get in the way of: a folder of tests may hold a json.py or a secrets.py."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator

NEEDED_LATER = (
    "base64",
    "concurrent.futures",
    "ctypes",
    "difflib",
    "getpass",
    "glob",
    "heapq",
    "hmac",
    "html",
    "http.client",
    "importlib.metadata",
    "importlib.resources",
    "ipaddress",
    "multiprocessing.connection",
    "multiprocessing.reduction",
    "pickle",
    "psutil",
    "queue",
    "resource",
    "secrets",
    "select",
    "selectors",
    "ssl",
    "statistics",
    "sysconfig",
    "urllib.parse",
    "urllib.request",
    "yaml",
    "zipfile",
)
"""What this package imports somewhere, and pytest has not imported by itself."""


@contextlib.contextmanager
def installed_modules_first(site_packages: str) -> Iterator[None]:
    """Let what is imported come from the interpreter and its installed packages, and only else from the project.

    Args:
        site_packages: The folder of the installed packages.
    """
    before = list(sys.path)
    installed = os.path.dirname(os.__file__), site_packages  # noqa: PTH120
    first = [
        entry
        for entry in before
        # Python ignores what is no text.
        if isinstance(entry, str) and (entry.startswith(installed) or entry.endswith(".zip"))
    ]
    ours = [*first, *(entry for entry in before if entry not in first)]
    sys.path[:] = ours
    try:
        yield
    finally:
        if sys.path == ours:
            sys.path[:] = before


def import_early(names: Iterable[str], site_packages: str) -> None:
    """Import modules that are needed later, when a project's files may be in the way."""
    with installed_modules_first(site_packages):
        for name in names:
            importlib.import_module(name)
