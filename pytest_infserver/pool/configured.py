"""The servers of one pytest run, from its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pytest_infserver.config.model import hidden
from pytest_infserver.config.needs import check_needs, with_needs
from pytest_infserver.config.validation import nearest
from pytest_infserver.errors import ConfigError, UserCodeError
from pytest_infserver.pool.collection.selection import Known
from pytest_infserver.pool.collection.variants import EXTRA, as_yaml, changed, own_name
from pytest_infserver.settings import Settings

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.config.tree import Tree


def all_servers(settings: Settings) -> dict[str, ServerConfig]:
    """Return the servers by name, those too that this run leaves out.

    Raises:
        ConfigError: A file is wrong, or two servers have one name.
    """
    if not settings.config_files:
        return _without_file(settings)
    from pytest_infserver.launcher.factory import load_files

    configs = load_files(settings.config_files, base=_base(settings), overrides=_overrides(settings))
    check_needs(configs)
    return configs


def chosen_servers(servers: Mapping[str, ServerConfig], settings: Settings) -> dict[str, ServerConfig]:
    """Return those that this run uses.

    Raises:
        ConfigError: The filters leave none.
    """
    if not servers:
        return {}
    kept = _filtered(servers, settings)
    return _attached(kept, settings) if settings.config_files else kept


def asked_for(configs: Mapping[str, ServerConfig], settings: Settings) -> list[str]:
    """Return the servers that tests run on; the others of a run are only there because these need them.

    Args:
        configs: The servers of the run by name, as `chosen_servers` returns them.
        settings: The run's settings.
    """
    return list(_kept(configs, settings)) if configs else []


def known_names(servers: Mapping[str, ServerConfig], settings: Settings) -> Known:
    """Return what names in marks may stand for.

    Args:
        servers: All servers.
        settings: The run's settings.
    """
    from pytest_infserver.launcher.backends.registry import known_backends

    backends = frozenset({*known_backends(), *map(backend_of, servers.values())})
    # Without a file the only server has the name of its backend: other names belong to the files.
    names = frozenset(servers) if settings.config_files else None
    return Known(names, backends, settings.optional_names)


def single_server(settings: Settings, values: Mapping[str, Any], label: str) -> ServerConfig:
    """Return a server that no file names, with the run's own settings under and over its values.

    Args:
        settings: The run's settings.
        values: Its keys and values, as in a YAML file.
        label: What the user knows the source as.

    Raises:
        ConfigError: A value is wrong.
    """
    from pytest_infserver.config.loading import keyword_tree
    from pytest_infserver.config.merging import merge_server
    from pytest_infserver.config.validation import build_config
    from pytest_infserver.launcher.factory import check_config

    tree = merge_server(_base(settings), keyword_tree(values, label), _overrides(settings))
    return check_config(build_config(tree))


def own_server(settings: Settings, values: Mapping[str, Any], label: str) -> ServerConfig:
    """Return a server that a test describes, under a name that is the same for equal settings.

    Args:
        settings: The run's settings.
        values: Its keys and values; see `variants.variant`.
        label: What the user knows the source as.

    Raises:
        ConfigError: A value is wrong.
    """
    form = as_yaml(values)
    extra = form.pop(EXTRA, None)
    config = single_server(settings, form, label)
    config = config if extra is None else changed(config, {EXTRA: extra}, label)
    return config if form.get("name") else dataclasses.replace(config, name=own_name(config.name, values))


def _without_file(settings: Settings) -> dict[str, ServerConfig]:
    if settings.url is None and not settings.urls and not settings.backends:
        return {}
    if len(settings.backends) > 1:
        raise ConfigError("without a configuration file --infserver-backend names one backend")
    backend = settings.backends[0] if settings.backends else "remote"
    named: list[tuple[str | None, str | None]] = [*settings.urls.items()] or [(None, settings.url)]
    label = "--infserver-url" if settings.url or settings.urls else "--infserver-backend"
    servers = [single_server(settings, {"backend": backend, "name": name, "url": url}, label) for name, url in named]
    return {config.name: config for config in servers}


def _filtered(servers: Mapping[str, ServerConfig], settings: Settings) -> dict[str, ServerConfig]:
    kept = _kept(servers, settings)
    # What they need comes along.
    return {name: servers[name] for name in with_needs(kept, servers)}


def _kept(servers: Mapping[str, ServerConfig], settings: Settings) -> dict[str, ServerConfig]:
    kept = dict(servers)
    if settings.servers:
        kept = {name: config for name, config in kept.items() if any(fnmatchcase(name, g) for g in settings.servers)}
    if settings.backends:
        asked_for = set(settings.backends)
        kept = {name: one for name, one in kept.items() if asked_for & {backend_of(one), one.backend}}
    if not kept:
        asked = [f"--infserver-server {glob}" for glob in settings.servers]
        asked += [f"--infserver-backend {name}" for name in settings.backends]
        known = ", ".join(f"{name} ({backend_of(config)})" for name, config in servers.items())
        raise ConfigError(hidden(f"{' '.join(asked)} leaves no server; configured are: {known}", servers.values()))
    return kept


def _attached(servers: dict[str, ServerConfig], settings: Settings) -> dict[str, ServerConfig]:
    for name, url in settings.urls.items():
        if name not in servers:
            message = f"--infserver-url {name}={url}: no server is called '{name}'{nearest(name, servers)}"
            raise ConfigError(hidden(message, servers.values()))
        if not (settings.url_is_default and servers[name].url):
            servers = {**servers, name: _with_url(servers[name], url)}
    if settings.url is None or (settings.url_is_default and any(config.url for config in servers.values())):
        return servers
    if len(servers) > 1:
        message = (
            f"--infserver-url {settings.url} could stand for any of {', '.join(servers)}:"
            f" choose one with --infserver-server, or write NAME={settings.url}"
        )
        raise ConfigError(hidden(message, servers.values()))
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
        ConfigError: It does not have one of them, or the server is for several machines.
    """
    from pytest_infserver.launcher.checks.options import is_checked
    from pytest_infserver.launcher.checks.settings import require_one_node
    from pytest_infserver.launcher.factory import create_from_config
    from pytest_infserver.launcher.user_code import asked

    require_one_node(config)
    server = create_from_config(config)
    if server.attached or not (asked(server).changed_options or is_checked(server)):
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
    from pytest_infserver.config.merging import merge_server
    from pytest_infserver.config.tree import labelled

    return merge_server(*(labelled(values, label) for label, values in settings.defaults))


def _overrides(settings: Settings) -> Tree:
    from pytest_infserver.config.merging import merge_server
    from pytest_infserver.config.tree import labelled

    return merge_server(*(labelled(values, label) for label, values in settings.overrides))
