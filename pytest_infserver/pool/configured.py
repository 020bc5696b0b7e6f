"""The servers of one pytest run, from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pytest_infserver.errors import ConfigError, UserCodeError
from pytest_infserver.settings import Settings

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.config.tree import Tree


def configured_servers(settings: Settings) -> dict[str, ServerConfig]:
    """Return the servers by name, in the order of the files.

    Raises:
        ConfigError: A file is wrong, two servers have one name, or the filters leave none.
    """
    if not settings.config_files:
        return _without_file(settings)
    from pytest_infserver.launcher.factory import load_files

    servers = load_files(settings.config_files, base=_base(settings), overrides=_overrides(settings))
    return _attached(_filtered(servers, settings), settings)


def single_server(settings: Settings, values: Mapping[str, Any], label: str) -> ServerConfig:
    """Return a server that no file names, with the run's own settings under and over its values.

    Args:
        settings: The run's settings.
        values: Its keys and values, as in a YAML file.
        label: What the user knows the source as.

    Raises:
        ConfigError: A value is wrong.
    """
    from pytest_infserver.config.loading import keyword_tree, merge_server
    from pytest_infserver.config.validation import build_config
    from pytest_infserver.launcher.factory import check_config

    tree = merge_server(_base(settings), keyword_tree(values, label), _overrides(settings))
    return check_config(build_config(tree))


def _without_file(settings: Settings) -> dict[str, ServerConfig]:
    if settings.url is None and not settings.backends:
        return {}
    if len(settings.backends) > 1:
        raise ConfigError("without a configuration file --infserver-backend names one backend")
    backend = settings.backends[0] if settings.backends else "remote"
    values = {"backend": backend, "url": settings.url}
    config = single_server(settings, values, "--infserver-url" if settings.url else "--infserver-backend")
    return _filtered({config.name: config}, settings)


def _filtered(servers: dict[str, ServerConfig], settings: Settings) -> dict[str, ServerConfig]:
    kept = servers
    if settings.servers:
        kept = {name: config for name, config in kept.items() if any(fnmatchcase(name, g) for g in settings.servers)}
    if settings.backends:
        asked_for = set(settings.backends)
        kept = {name: one for name, one in kept.items() if asked_for & {backend_of(one), one.backend}}
    if not kept:
        asked = [f"--infserver-server {glob}" for glob in settings.servers]
        asked += [f"--infserver-backend {name}" for name in settings.backends]
        known = ", ".join(f"{name} ({backend_of(config)})" for name, config in servers.items())
        raise ConfigError(f"{' '.join(asked)} leaves no server; configured are: {known}")
    return kept


def _attached(servers: dict[str, ServerConfig], settings: Settings) -> dict[str, ServerConfig]:
    if settings.url is None or (settings.url_is_default and any(config.url for config in servers.values())):
        return servers
    if len(servers) > 1:
        raise ConfigError(
            f"--infserver-url {settings.url} could stand for any of {', '.join(servers)}:"
            " choose one with --infserver-server"
        )
    return {name: _with_url(config, settings.url) for name, config in servers.items()}


def _with_url(config: ServerConfig, url: str) -> ServerConfig:
    from pytest_infserver.config.tree import Tree, labelled
    from pytest_infserver.config.validation import build_config
    from pytest_infserver.launcher.factory import check_config

    values = {**config.keywords(), "backend": config.backend}
    upper = labelled({"url": url}, "--infserver-url")
    return check_config(build_config(Tree(values, config.origins).merged_under(upper)))


def check_command(config: ServerConfig) -> None:
    """Make sure that the engine of this machine has a server's options; it is asked only where that matters.

    Raises:
        ConfigError: It has one of them no more, or the server is for several machines.
    """
    from pytest_infserver.launcher.checks import require_one_node
    from pytest_infserver.launcher.factory import create_from_config
    from pytest_infserver.launcher.user_code import asked

    require_one_node(config)
    server = create_from_config(config)
    if server.attached or not asked(server).changed_options:
        return
    try:
        server.command_and_notes()
    except UserCodeError:
        # What is wrong with a backend of the user's own is said at its start.
        return


def backend_of(config: ServerConfig) -> str:
    """Return the backend's own name, also where the configuration has an import path."""
    from pytest_infserver.launcher.backends.registry import backend_name, find_backend

    return backend_name(find_backend(config))


def _base(settings: Settings) -> Tree:
    from pytest_infserver.config.loading import merge_server
    from pytest_infserver.config.tree import labelled

    return merge_server(*(labelled(values, label) for label, values in settings.defaults))


def _overrides(settings: Settings) -> Tree:
    from pytest_infserver.config.loading import merge_server
    from pytest_infserver.config.tree import labelled

    return merge_server(*(labelled(values, label) for label, values in settings.overrides))
