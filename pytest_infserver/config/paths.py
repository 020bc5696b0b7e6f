"""Relative paths are relative to where they were written down, not to whoever runs the server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def resolve_paths(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings of one server with their paths made absolute.

    Args:
        settings: Keys and values as in the YAML file; they need not have been checked.
        folder: What a relative path is relative to.
    """
    data = dict(settings)
    for key, is_path in _PATHS.items():
        if isinstance(data.get(key), str) and is_path(data[key]):
            data[key] = absolute(data[key], folder)
    for key in ("launch_command", "stop_command"):
        command = data.get(key)
        if isinstance(command, (list, tuple)):
            data[key] = [
                absolute(word, folder) if isinstance(word, str) and word.startswith(("./", "../", "~/")) else word
                for word in command
            ]
    profile = data.get("profile")
    if isinstance(profile, Mapping):
        data["profile"] = resolve_paths(profile, folder)
    return data


def absolute(path: str, folder: Path) -> str:
    """Return ``path`` as an absolute one, ``~`` filled in."""
    return os.path.normpath(folder / os.path.expanduser(path))  # noqa: PTH111 (pathlib raises for an unknown ~user)


def _any(text: str) -> bool:
    return bool(text)


def _with_slash(text: str) -> bool:
    # A bare name is looked up on PATH.
    return "/" in text


def is_model_path(text: str) -> bool:
    """Tell whether a model is a path; anything else is the name of a model on a hub."""
    return text.startswith((".", "/", "~"))


_PATHS = {"output_dir": _any, "binary_path": _with_slash, "model": is_model_path}
