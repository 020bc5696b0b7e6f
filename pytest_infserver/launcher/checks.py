"""What a backend requires of its settings, beyond the kinds of their values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pytest_infserver.config.flags import ARGUMENT_KEYS, to_flag
from pytest_infserver.config.model import ServerConfig
from pytest_infserver.config.paths import is_model_path
from pytest_infserver.config.validation import nearest
from pytest_infserver.launcher.arguments import option_values
from pytest_infserver.launcher.command import PLACEHOLDERS
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.models.builtin import builtin_path, is_builtin

if TYPE_CHECKING:
    from pytest_infserver.launcher.configured import ConfiguredServer


def check_settings(server: ConfiguredServer) -> None:
    """Make sure that a server's settings fit its backend.

    Raises:
        ConfigError: They do not; it points at the place the wrong one came from.
    """
    settings = server.settings
    if asked(server).requires_model and not settings.model and not server.attached:
        raise settings.error(f"backend '{server.backend_name}' needs a 'model'")
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
    if settings.stop_command is not None and server.attached:
        raise settings.error("'stop_command' and 'url': what runs already is never stopped", "stop_command")
    given = [key for key in ARGUMENT_KEYS if settings.config.get(key) is not None]
    if len(given) > 1:
        raise settings.error(f"{' and '.join(given)} mean the same: use one of them", "config", given[1])
    if given:
        _check_reserved(server)
    if settings.nodes > 1:
        _check_nodes(server)


def require_one_node(settings: ServerConfig) -> None:
    """Make sure that a server is for one machine.

    Raises:
        ConfigError: It is for several; it points at the place where that is said.
    """
    if settings.nodes > 1:
        message = f"nodes: {settings.nodes} needs a cluster: run pytest with --infserver-cluster"
        raise settings.error(message, "nodes")


def missing_model(server: ConfiguredServer) -> list[str]:
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
        for name in re.findall(r"\{(\w+)\}", word):
            near = get_close_matches(name, PLACEHOLDERS, n=1)
            if near and name not in PLACEHOLDERS:
                raise settings.error(f"unknown placeholder {{{name}}}; did you mean {{{near[0]}}}?", key, index)


def _check_engine(server: ConfiguredServer, known: frozenset[str]) -> None:
    settings = server.settings
    if settings.launch_command is not None:
        message = f"'launch_command' is for backend 'command': '{server.backend_name}' knows its own"
        raise settings.error(message, "launch_command")
    for key in settings.config:
        if key not in known:
            raise settings.error(f"unknown key '{key}' in 'config'{nearest(key, known)}", "config", key)


def _check_reserved(server: ConfiguredServer) -> None:
    argv = server.server_args()
    for flag, key in asked(server).reserved_options.items():
        configured = getattr(server.settings, key)
        for words in option_values(argv, flag):
            if configured is None or words != [str(configured)]:
                message = f"{flag} belongs in '{key}:', not in 'config'"
                raise server.settings.error(message, *place_of_flag(server.settings, flag))


def _check_nodes(server: ConfiguredServer) -> None:
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
