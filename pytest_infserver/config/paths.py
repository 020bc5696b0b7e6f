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
        if key in data:
            data[key] = _resolved_command(data[key], folder)
    if "ready" in data:
        data["ready"] = _resolved_probes(data["ready"], folder)
    tls = data.get("tls")
    if isinstance(tls, Mapping) and isinstance(tls.get("ca"), str) and tls["ca"]:
        data["tls"] = {**tls, "ca": absolute(tls["ca"], folder)}
    profile = data.get("profile")
    if isinstance(profile, Mapping):
        data["profile"] = resolve_paths(profile, folder)
    return data


def _resolved_command(command: Any, folder: Path) -> Any:
    if not isinstance(command, (list, tuple)):
        return command
    return [
        absolute(word, folder) if isinstance(word, str) and word.startswith(("./", "../", "~/")) else word
        for word in command
    ]


def _resolved_probes(ready: Any, folder: Path) -> Any:
    if isinstance(ready, (list, tuple)):
        return [_resolved_probes(probe, folder) for probe in ready]
    if isinstance(ready, Mapping) and "command" in ready:
        return {**ready, "command": _resolved_command(ready["command"], folder)}
    return ready


def absolute(path: str, folder: Path) -> str:
    """Return ``path`` as an absolute one, ``~`` filled in."""
    return os.path.normpath(folder / os.path.expanduser(path))  # noqa: PTH111 (pathlib raises for an unknown ~user)


def _any(text: str) -> bool:
    return bool(text)


def _with_slash(text: str) -> bool:
    # A bare name is looked up on PATH.
    return "/" in text


def is_model_path(text: str) -> bool:
    """Return whether a model is a path; anything else is the name of a model on a hub."""
    return text.startswith((".", "/", "~"))


def is_socket_path(text: str) -> bool:
    """Return whether a unix socket is a path; a name that begins with ``@`` is in no file system."""
    return bool(text) and not text.startswith("@")


_PATHS = {"output_dir": _any, "binary_path": _with_slash, "model": is_model_path, "uds": is_socket_path, "cwd": _any}
