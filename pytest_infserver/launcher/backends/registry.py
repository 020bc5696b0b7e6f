"""Finds the class of a backend by its name or by its import path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from pytest_infserver.config.model import ServerConfig
from pytest_infserver.config.validation import nearest
from pytest_infserver.errors import ConfigError, UserCodeError
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.launcher.user_code import call

_BUILTIN = {
    "vllm": "pytest_infserver.launcher.backends.vllm:VLLMServer",
    "sglang": "pytest_infserver.launcher.backends.sglang:SGLangServer",
    "llamacpp": "pytest_infserver.launcher.backends.llamacpp:LlamaCppServer",
    "transformers": "pytest_infserver.launcher.backends.transformers:TransformersServer",
    "command": "pytest_infserver.launcher.backends.command:CommandServer",
    "remote": "pytest_infserver.launcher.backends.remote:RemoteServer",
}
_registered: dict[str, type[InferenceServer]] = {}


def register_backend(backend: type[InferenceServer]) -> type[InferenceServer]:
    """Make a backend known under the name that its ``get_backend_name`` returns; usable as a decorator.

    Args:
        backend: The class. A later one of the same name takes its place.

    Raises:
        ConfigError: It is not a subclass of InferenceServer, or has no name.
    """
    if not (isinstance(backend, type) and issubclass(backend, InferenceServer)):
        raise ConfigError(f"{backend!r} is no backend: it must be a subclass of InferenceServer")
    _registered[backend_name(backend)] = backend
    return backend


def use_backend(name: str, backend: type[InferenceServer]) -> None:
    """Let a name, or an import path, of configurations stand for a class."""
    _registered[name] = backend


def backend_name(backend: type[InferenceServer]) -> str:
    """Return the name of a backend class without making a server of it.

    Raises:
        ConfigError: Its ``get_backend_name`` is missing or needs a configured server.
    """
    what = f"{backend.__name__}.get_backend_name() must return a fixed name, but"
    try:
        name = call(what, lambda: backend.get_backend_name(object.__new__(backend)))
    except UserCodeError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{backend.__name__}.get_backend_name() must return a name, not {name!r}")
    return name


def known_backends() -> list[str]:
    """Return the names of all backends that are known now."""
    return sorted({*_BUILTIN, *_registered})


def find_backend(config: ServerConfig) -> type[InferenceServer]:
    """Return the class for ``config.backend``.

    Raises:
        ConfigError: There is no such backend, or its module cannot be imported.
    """
    name = config.backend
    if name in _registered:
        return _registered[name]
    path = _BUILTIN.get(name, name)
    if ":" not in path:
        raise config.error(f"unknown backend '{name}'{nearest(name, known_backends())}", "backend")
    module_name, _, attribute = path.partition(":")
    place = config.origins.find(("backend",))
    if name not in _BUILTIN and place is not None:
        _make_importable(Path(place.file).parent)
    what = f"backend '{name}' cannot be imported: this"
    try:
        backend = call(what, lambda: getattr(importlib.import_module(module_name), attribute))
    except UserCodeError as error:
        # The error names a part of what is imported, which is not recognised as a piece of a secret.
        is_secret = name not in str(config.error(name, "backend"))
        text = f"{what} raised an error that is not shown, as it may show a secret" if is_secret else str(error)
        raise config.error(text, "backend") from None
    if not (isinstance(backend, type) and issubclass(backend, InferenceServer)):
        raise config.error(f"backend '{name}' is not a subclass of InferenceServer", "backend")
    return backend


def _make_importable(folder: Path) -> None:
    """Let modules that lie beside the YAML file be imported, now and later, after everything else."""
    try:
        entry = str(folder.absolute())
    except FileNotFoundError:
        # A test has removed the working directory: what was found from there is on the path already.
        return
    if entry not in sys.path:
        sys.path.append(entry)
    importlib.invalidate_caches()
