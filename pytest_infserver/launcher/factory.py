"""Servers by backend name or from a YAML file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_infserver.config.loading import build_server, choose, keyword_tree, load_file
from pytest_infserver.config.model import ServerConfig
from pytest_infserver.config.tree import Tree
from pytest_infserver.errors import UserCodeError
from pytest_infserver.launcher.backends.registry import find_backend
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.launcher.user_code import call


def create_server(backend: str, model: str | None = None, **settings: Any) -> InferenceServer:
    """Make a server; nothing is started.

    Args:
        backend: Name of a backend, or ``package.module:Class``.
        model: Model name or path, ``builtin:tiny`` or ``builtin:smollm2``.
        **settings: Any other field of `ServerConfig`; times are in seconds.

    Raises:
        ConfigError: The backend is unknown, or a setting is unknown or wrong.
    """
    values = {**settings, "model": model, "backend": backend}
    return create_from_config(build_server(values, "create_server()"))


def create_from_config(config: ServerConfig) -> InferenceServer:
    """Make a server from a resolved configuration.

    Raises:
        ConfigError: The backend is unknown, or raises something, or the configuration does not fit it.
    """
    backend = find_backend(config)
    try:
        return call(f"{backend.__name__}()", lambda: backend.from_config(config))
    except UserCodeError as error:
        raise config.error(str(error), "backend") from None


def load_server_configs(
    config_file: str | os.PathLike[str],
    *,
    overrides: Mapping[str, Any] | None = None,
) -> list[ServerConfig]:
    """Read and check all servers of a YAML file; nothing is started.

    Args:
        config_file: The YAML file.
        overrides: Settings that count more than the file's, for each of its servers.

    Raises:
        ConfigError: Something is wrong; the message says in which line and column.
    """
    upper = keyword_tree(overrides, "overrides") if overrides else None
    return list(load_files([config_file], overrides=upper).values())


def load_files(
    config_files: Iterable[str | os.PathLike[str]], *, base: Tree | None = None, overrides: Tree | None = None
) -> dict[str, ServerConfig]:
    """Read and check all servers of some YAML files between two layers of settings that remember their origin.

    Args:
        config_files: The YAML files.
        base: Settings that count less than the files'.
        overrides: Settings that count more than the files'.

    Returns:
        Name to server, in the order of the files.

    Raises:
        ConfigError: Something is wrong, or two servers have one name.
    """
    servers: dict[str, ServerConfig] = {}
    for file in config_files:
        add_servers(servers, load_file(file, base=base, overrides=overrides))
    return servers


def add_servers(servers: dict[str, ServerConfig], loaded: Iterable[ServerConfig]) -> None:
    """Check servers of a file, and add them to those of other files by their names.

    Raises:
        ConfigError: Something is wrong, or a name is taken.
    """
    for one in loaded:
        config = check_config(one)
        if config.name in servers:
            first = servers[config.name].origins.find(("name",))
            raise config.error(f"this name is taken by the server at {first}; names must be unique", "name")
        servers[config.name] = config


def load_server_config(
    config_file: str | os.PathLike[str],
    name: str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> ServerConfig:
    """Read and check one server of a YAML file; nothing is started.

    Args:
        config_file: The YAML file.
        name: Which server; may be left out where the file names only one.
        overrides: Settings that count more than the file's.

    Raises:
        ConfigError: Something is wrong, or several servers are named and ``name`` is not given.
    """
    return choose(load_server_configs(config_file, overrides=overrides), name, os.fspath(config_file))


def start_server_from_config(
    config_file: str | os.PathLike[str],
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> InferenceServer:
    """Start one server of a YAML file and return it when it is ready.

    Args:
        config_file: The YAML file.
        name: Which server; may be left out where the file names only one.
        overrides: Settings that count more than the file's.

    Raises:
        ConfigError: Something in the file is wrong.
        ServerStartupError: The server did not become ready.
    """
    return create_from_config(load_server_config(config_file, name, overrides=overrides)).start()


def check_config(config: ServerConfig) -> ServerConfig:
    """Return the configuration with its final name, checked by its backend too.

    Raises:
        ConfigError: The backend is unknown, or the configuration does not fit it.
    """
    # Making the server checks what only its backend knows.
    server = create_from_config(config)
    return dataclasses.replace(config, name=server.name)
