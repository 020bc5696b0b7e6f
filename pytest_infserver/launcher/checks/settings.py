"""What a backend requires of its settings, beyond the kinds of their values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pytest_infserver.config.flags import ARGUMENT_KEYS, to_flag
from pytest_infserver.config.model import ServerConfig
from pytest_infserver.config.paths import is_model_path
from pytest_infserver.config.validation import nearest
from pytest_infserver.launcher.checks.reach import check_reach
from pytest_infserver.launcher.engine.arguments import option_values
from pytest_infserver.launcher.placeholders import PLACEHOLDERS, named_in
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.models.builtin import builtin_path, is_builtin
from pytest_infserver.system.environment import environment

if TYPE_CHECKING:
    from pytest_infserver.launcher.spec import ServerSpec


def check_settings(server: ServerSpec) -> None:
    """Make sure that a server's settings fit its backend.

    Raises:
        ConfigError: They do not; it points at the place the wrong one came from.
    """
    settings = server.settings
    if asked(server).requires_model and not settings.model and not server.attached and not _finds_models(server):
        flags = [name for name in asked(server).model_sources if name.startswith("--") and "*" not in name]
        hint = f", or one of {', '.join(flags)} among its arguments" if flags else ""
        raise settings.error(f"backend '{server.backend_name}' needs a 'model'{hint}")
    if settings.model and is_builtin(settings.model):
        try:
            builtin_path(settings.model)
        except ValueError as error:
            raise settings.error(str(error), "model") from None
    known = asked(server).config_keys
    if known is not None:
        _check_engine(server, known)
    for key in ("launch_command", "stop_command"):
        _check_placeholders(settings, key)
    _check_port_names(settings)
    check_reach(server)
    if settings.stop_command is not None and server.attached:
        raise settings.error("'stop_command' and 'url': what runs already is never stopped", "stop_command")
    given = [key for key in ARGUMENT_KEYS if settings.config.get(key) is not None]
    if len(given) > 1:
        raise settings.error(f"{' and '.join(given)} mean the same: use one of them", "config", given[1])
    if given:
        _check_reserved(server)
    if settings.entrypoint is not None:
        _check_entrypoint(server)
    if settings.nodes > 1:
        _check_nodes(server)


def _check_entrypoint(server: ServerSpec) -> None:
    settings = server.settings
    if not asked(server).takes_entrypoint:
        instead = ": write all of it as 'launch_command'" if settings.launch_command is not None else ""
        message = f"backend '{server.backend_name}' takes no 'entrypoint'{instead}"
    elif settings.nodes > 1:
        message = "'entrypoint' is for servers on one node"
    else:
        return
    raise settings.error(message, "entrypoint")


def _finds_models(server: ServerSpec) -> bool:
    """Return whether the engine is told in another way which models it has."""
    sources = asked(server).model_sources
    if not sources:
        return False
    flags = {word.partition("=")[0] for word in server.server_args() if word.startswith("-")}
    env = {**environment(), **server.env_vars}
    given = [*flags, *(name for name in sources if env.get(name))]
    return any(fnmatchcase(name, source) for name in given for source in sources)


def require_one_node(settings: ServerConfig) -> None:
    """Make sure that a server is for one machine.

    Raises:
        ConfigError: It is for several; it points at the place where that is said.
    """
    if settings.nodes > 1:
        message = f"nodes: {settings.nodes} needs a cluster: run pytest with --infserver-cluster"
        raise settings.error(message, "nodes")


def missing_model(server: ServerSpec) -> list[str]:
    """Return a note if the model is a path on which there is nothing, for an engine that runs here."""
    if not asked(server).requires_model or not is_model_path(server.model):
        return []
    try:
        os.stat(server.model)  # noqa: PTH116
    except FileNotFoundError:
        return [f"the model is a path that does not exist on this machine: {server.model}"]
    except OSError:
        # It may be there, where we may not look.
        pass
    return []


def _check_placeholders(settings: ServerConfig, key: str) -> None:
    for index, word in enumerate(getattr(settings, key) or ()):
        for name in re.findall(r"(?<![\\{])\{(\w+)\}", word):
            near = get_close_matches(name, PLACEHOLDERS, n=1)
            if near and name not in PLACEHOLDERS:
                raise settings.error(f"unknown placeholder {{{name}}}; did you mean {{{near[0]}}}?", key, index)


def _check_port_names(settings: ServerConfig) -> None:
    """Make sure that each ``{ports.NAME}`` is one of `ports`."""
    for place, word in written_words(settings):
        for name in sorted(named_in(word)):
            kind, _, key = name.partition(".")
            if kind == "servers":
                _check_peer(settings, key.rpartition(".")[0], place)
            elif key and key not in settings.ports:
                hint = nearest(key, settings.ports) if settings.ports else f"; write ports: {{{key}: null}}"
                raise settings.error(f"{{{name}}} is none of 'ports'{hint}", *place)


def _check_peer(settings: ServerConfig, name: str, place: tuple[str | int, ...]) -> None:
    if name not in settings.needs:
        hint = nearest(name, settings.needs) if settings.needs else f"; write needs: [{name}]"
        raise settings.error(f"{{servers.{name}...}} is none of 'needs'{hint}", *place)


def written_words(settings: ServerConfig) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the place and the text of all that may have placeholders."""
    for key in ("launch_command", "stop_command"):
        yield from (((key, index), word) for index, word in enumerate(getattr(settings, key) or ()))
    yield from ((("env_vars", name), value) for name, value in settings.env_vars.items() if value)
    for key in ARGUMENT_KEYS:
        block = settings.config.get(key)
        items = block.items() if isinstance(block, Mapping) else enumerate(block or ())
        yield from ((("config", key, name), value) for name, value in items if isinstance(value, str))


def _check_engine(server: ServerSpec, known: frozenset[str]) -> None:
    settings = server.settings
    if settings.launch_command is not None:
        message = f"'launch_command' is for backend 'command': '{server.backend_name}' knows its own"
        raise settings.error(message, "launch_command")
    for key in settings.config:
        if key not in known:
            raise settings.error(f"unknown key '{key}' in 'config'{nearest(key, known)}", "config", key)


def _check_reserved(server: ServerSpec) -> None:
    argv = server.server_args()
    for flag, key in asked(server).reserved_options.items():
        configured = getattr(server.settings, key)
        for words in option_values(argv, flag):
            if configured is None or words != [str(configured)]:
                message = f"{flag} belongs in '{key}:', not in 'config'"
                raise server.settings.error(message, *place_of_flag(server.settings, flag))


def _check_nodes(server: ServerSpec) -> None:
    settings, backend = server.settings, server.backend_name
    nodes = f"nodes: {settings.nodes}"
    if server.attached:
        raise settings.error(f"'nodes' and 'url': what runs already is not placed on {settings.nodes} nodes", "nodes")
    if asked(server).several_nodes is None:
        raise settings.error(
            f"{nodes}: a {backend} server runs on one node; vllm and sglang servers can run on several", "nodes"
        )
    if settings.profile is not None and settings.profile.enabled:
        raise settings.error(f"'profile' and {nodes}: profiles are made of servers on one node only", "profile")
    for word in server.server_args():
        flag = word.partition("=")[0]
        # vLLM takes underscores, too.
        name = flag.replace("_", "-") if flag.startswith("--") else flag
        why = asked(server).node_options.get(name)
        if why is not None and option_values(server.server_args(), flag) != [[asked(server).node_settings.get(name)]]:
            raise settings.error(f"{flag} and {nodes}: {why}", *place_of_flag(settings, flag))


def place_of_flag(settings: ServerConfig, flag: str) -> tuple[str | int, ...]:
    """Return the path of the key or of the item by which the user wrote a flag."""
    block = next((key for key in ARGUMENT_KEYS if settings.config.get(key) is not None), ARGUMENT_KEYS[0])
    written = settings.config.get(block) or ()
    if isinstance(written, Mapping):
        found: str | int | None = next((key for key in written if to_flag(str(key)).partition("=")[0] == flag), None)
    else:
        found = next((index for index, word in enumerate(written) if str(word).partition("=")[0] == flag), None)
    return ("config", block) if found is None else ("config", block, found)
