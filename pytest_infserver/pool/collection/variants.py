"""Variants of configured servers: what marks and tests change about one, and what the result is called."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_infserver.config.flags import ARGUMENT_KEYS, to_flag
from pytest_infserver.config.loading import build_server, keyword_tree
from pytest_infserver.config.merging import merge_server
from pytest_infserver.config.model import ServerConfig, keys
from pytest_infserver.config.tree import Tree
from pytest_infserver.config.validation import build_config
from pytest_infserver.errors import ConfigError
from pytest_infserver.launcher.factory import check_config
from pytest_infserver.system.secrets import is_secret_name

EXTRA = "extra_args"
"""Key of arguments that are added to those of the configured server."""
_ARGUMENTS = "server_args"
_MAX_NAME = 48
_MAX_ID = 80
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+=,-]+")


@dataclass(frozen=True)
class Variant:
    """A configured server with some settings replaced, as a value for ``parametrize("inference_server", ...)``.

    Attributes:
        name: The configured server; None for a server of its own, with a ``backend``.
        settings: Keys and values as in the YAML file, those of ``config`` without it; None gives one its default back.
    """

    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        """What pytest calls it in test ids: the server's name and what is different, the same on each machine."""
        return test_id(self.name or "server", self.settings)

    def __hash__(self) -> int:
        return hash((self.name, digest(self.settings)))


def variant(name: str | None = None, /, **settings: Any) -> Variant:
    """Return a configured server with some settings replaced.

    Args:
        name: The configured server.
        **settings: Keys and values as in the YAML file, such as ``server_args={"ctx-size": 512}``. Mappings are merged
            into those of the configured server; None gives a setting its default back; ``extra_args=[...]`` are added.
    """
    return Variant(name, settings)


def resolved(settings: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return settings with each callable among the values replaced by what it returns for pytest's configuration."""
    return {key: _resolved(value, config) for key, value in settings.items()}


def _resolved(value: Any, config: Any) -> Any:
    if isinstance(value, Mapping):
        return resolved(value, config)
    return value(config) if callable(value) else value


def changed(base: ServerConfig, settings: Mapping[str, Any], label: str) -> ServerConfig:
    """Return a configured server with some settings replaced, under a name that tells which.

    Args:
        base: The configured server.
        settings: The settings; see `variant`.
        label: What the user knows their source as; it stands in errors.

    Raises:
        ConfigError: A setting is unknown or wrong.
    """
    if "backend" in settings and settings["backend"] != base.backend:
        raise ConfigError(f"{label}: a variant of '{base.name}' has its backend ({base.backend}), which cannot change")
    if base.url is not None and settings:
        raise ConfigError(f"{label}: '{base.name}' is attached to {base.url}: its settings cannot be changed from here")
    plain = normal(settings)
    form = as_yaml({key: value for key, value in plain.items() if key != EXTRA}, base)
    build_server(form, label)
    # What None gives its default back; in mappings it has a meaning of its own, as for a variable.
    configured = {**base.keywords(), "backend": base.backend}
    values = {key: value for key, value in configured.items() if not _is_reset(form, key)}
    added = {key: value for key, value in form.items() if value is not None}
    config = build_config(merge_server(Tree(values, base.origins), keyword_tree(added, label)))
    extra = plain.get(EXTRA)
    if extra is not None:
        config = _with_arguments(config, extra, label)
    if config == base:
        return base
    name = str(plain["name"]) if plain.get("name") else variant_name(base.name, _difference(base, plain))
    return dataclasses.replace(check_config(dataclasses.replace(config, name=name)), name=name)


def normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in one spelling: arguments of the engine as ``server_args``, their keys without ``--``."""
    found = {key: value for key, value in settings.items() if key not in (*ARGUMENT_KEYS, "config")}
    config = dict(settings.get("config") or {})
    for source in (config, settings):
        for key in ARGUMENT_KEYS:
            if key in source:
                found[_ARGUMENTS] = _under(_spelled(source[key]), found.get(_ARGUMENTS))
                config.pop(key, None)
    if config:
        found["config"] = config
    elif "config" in settings and settings["config"] is None:
        found["config"] = None
    return found


def _spelled(arguments: Any) -> Any:
    if not isinstance(arguments, Mapping):
        return arguments
    return {to_flag(str(key)).removeprefix("--"): value for key, value in arguments.items()}


def _difference(base: ServerConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that a server has already."""

    def differing(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for key, value in new.items():
            there = old.get(key)
            if isinstance(value, Mapping) and isinstance(there, Mapping):
                rest = differing(value, there)
                if rest:
                    found[key] = rest
            elif key not in old or value != there:
                found[key] = value
        return found

    return differing(settings, normal(base.keywords()))


def as_yaml(settings: Mapping[str, Any], base: ServerConfig | None = None) -> dict[str, Any]:
    """Return settings as they stand in the YAML file: arguments of the engine below ``config``.

    Args:
        settings: The settings.
        base: The server whose arguments they change; they go where its own are.
    """
    form = {key: value for key, value in settings.items() if key not in ARGUMENT_KEYS}
    for key in ARGUMENT_KEYS:
        if key in settings:
            there = [one for one in ARGUMENT_KEYS if base is not None and base.config.get(one) is not None]
            form["config"] = {**form.get("config", {}), (there or [key])[0]: settings[key]}
    return form


def _is_reset(form: Mapping[str, Any], key: str) -> bool:
    return key in form and form[key] is None


def _with_arguments(config: ServerConfig, extra: Any, label: str) -> ServerConfig:
    if not isinstance(extra, Sequence) or isinstance(extra, (str, bytes)):
        raise ConfigError(f"{label}: '{EXTRA}' must be a list of words")
    words = [str(word) for word in extra]
    if config.launch_command is not None:
        return dataclasses.replace(config, launch_command=(*config.launch_command, *words))
    key = next((one for one in ARGUMENT_KEYS if config.config.get(one) is not None), ARGUMENT_KEYS[1])
    return dataclasses.replace(config, config={**config.config, key: _appended(config.config.get(key), words)})


def _appended(arguments: Any, words: Sequence[str]) -> list[Any]:
    from pytest_infserver.launcher.engine.arguments import to_argv

    given = [] if arguments is None else to_argv(arguments) if isinstance(arguments, Mapping) else list(arguments)
    return [*given, *words]


def variant_name(base: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a variant: that of its server and what is different, such as ``llama+ctx-size=512``.

    Values of secrets are not in it. What it does not say in full is told apart by a hash.

    Args:
        base: The configured server's name.
        settings: What is different, as `normal` returns it.
    """
    leaves = sorted(_leaves(settings), key=lambda leaf: leaf[1])
    parts = [key if is_secret_name(key) else f"{key}={_short(value)}" for _, key, value in leaves]
    name = _NOT_IN_NAMES.sub("-", "+".join([base, *parts]))
    if len(name) <= _MAX_NAME and all(_is_plain(*leaf) for leaf in leaves):
        return name
    return f"{name[: _MAX_NAME - 7].rstrip('+-.=')}-{digest(settings)[:6]}"


def test_id(base: str, settings: Mapping[str, Any]) -> str:
    """Return what a variant is called in test ids, such as ``llama+ctx-size=512``; values of secrets are not in it.

    Other than the server's name it does not depend on what is configured, nor on where files lie.

    Args:
        base: The configured server's name.
        settings: The settings, as the user has given them.
    """
    leaves = sorted(_leaves(normal(settings)), key=lambda leaf: leaf[1])
    parts = [key if is_secret_name(key) else f"{key}={_in_id(value)}" for _, key, value in leaves]
    found = _NOT_IN_NAMES.sub("-", "+".join([base, *parts]))
    return found if len(found) <= _MAX_ID else f"{found[: _MAX_ID - 7].rstrip('+-.=')}-{digest(parts)[:6]}"


def _in_id(value: Any) -> str:
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__)).strip("<>")
    if isinstance(value, (list, tuple)):
        return ",".join(map(_in_id, value))
    # Of a path only what is the same elsewhere.
    return (
        str(value).rpartition("/")[2] if isinstance(value, os.PathLike) or str(value)[:1] in ("/", "~") else str(value)
    )


def _is_plain(block: str, key: str, value: Any) -> bool:
    """Return whether a name that says this means nothing else."""
    if is_secret_name(key) or not isinstance(value, (str, int, float, bool)):
        return False
    said = f"{key}={value}"
    is_told_apart = key.isupper() if block == "env_vars" else not key.isupper() and not key.startswith("-")
    # In block "" are keys of the server itself, which no argument may be taken for.
    return (
        _NOT_IN_NAMES.sub("-", said) == said
        and is_told_apart
        and (block != "" or key in keys(ServerConfig))
        and (block != _ARGUMENTS or key not in keys(ServerConfig))
    )


def digest(settings: Any) -> str:
    """Return a text that is the same for equal settings only."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()


def own_name(name: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a server that no file names, the same for equal settings in each process of a run."""
    return f"{name}+{digest({key: value for key, value in normal(settings).items() if key != 'backend'})[:6]}"


def merged(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings of several marks, the closest to the test first, which counts most, key by key.

    Raises:
        ConfigError: One is a mapping in one place and a list in another.
    """
    return dict(merge_server(*(Tree(normal(one)) for one in reversed(settings))).data)


def _under(upper: Any, lower: Any) -> Any:
    if not isinstance(upper, Mapping) or not isinstance(lower, Mapping):
        return upper
    both = {**lower, **upper}
    for key, value in upper.items():
        if key in lower:
            both[key] = _under(value, lower[key])
    return both


def _leaves(settings: Mapping[str, Any], block: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the block, key and value of each setting, of nested ones those inside."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, block or str(key))
        else:
            yield block, str(key), value


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value)
