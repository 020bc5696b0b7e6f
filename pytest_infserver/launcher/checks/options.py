"""Whether the installed engine has the options that a server is configured with, before it is started for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.launcher.checks.settings import place_of_flag
from pytest_infserver.launcher.engine.known_options import learned
from pytest_infserver.launcher.user_code import asked, is_ours
from pytest_infserver.system.environment import environment

if TYPE_CHECKING:
    from pytest_infserver.launcher.spec import ServerSpec

SWITCH = "INFSERVER_CHECK_OPTIONS"
"""Variable that switches the check off for all servers if it is 0."""


def check_options(server: ServerSpec, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Refuse an option that the engine would refuse, as far as its options are known already, or can be had at once.

    Args:
        server: The server.
        argv: The command that is to start it, without a profiler.
        env: The environment of that.

    Raises:
        ConfigError: There is one.
    """
    if not is_checked(server):
        return
    table, entry = asked(server).own_options, asked(server).options_entry or ()
    if table is None:
        parser = _parser(server, env)
        if parser is not None and parser.as_text and not learned.is_learned(parser):
            learned.learn(parser)
        table = None if parser is None else learned.learned_table(parser)
    if table is None or tuple(argv[: len(entry)]) != tuple(entry):
        return
    found = table.mistake(argv[len(entry) :])
    if found is not None:
        flag, text = found
        advice = "or write check_options: false if it is not so"
        raise server.settings.error(f"{text} ({advice})", *place_of_flag(server.settings, flag))


def is_checked(server: ServerSpec) -> bool:
    """Return whether a server's options are compared with those of its engine: one of our backends, that runs here."""
    return (
        server.settings.check_options
        and environment().get(SWITCH) != "0"
        and not server.attached
        and server.share is None
        and server.settings.nodes == 1
        and is_ours(type(server))
        and asked(server).options_entry is not None
    )


def learn_in_background(server: ServerSpec, env: Mapping[str, str]) -> None:
    """Have an engine's options read while it starts, for later starts, unless they are known.

    Args:
        server: The server that starts.
        env: Its environment.
    """
    parser = _parser(server, env) if is_checked(server) and asked(server).own_options is None else None
    if parser is not None:
        learned.learn_in_background(parser)


def unread_parser(server: ServerSpec) -> learned.Parser | None:
    """Return the parser of a server's engine if its options have not been read, and if that may be run here.

    It may not where the configuration names the program: the file may be somebody else's.
    """
    settings = server.settings
    if settings.binary_path is not None or settings.entrypoint is not None:
        return None
    if not is_checked(server) or asked(server).own_options is not None:
        return None
    with_its_own = _parser(server, {**environment(), **{k: v for k, v in server.env_vars.items() if v is not None}})
    parser = _parser(server, environment())
    # Not with the variables of the file either, which may say what Python runs.
    if parser is None or with_its_own is None or parser.file != with_its_own.file or learned.is_learned(parser):
        return None
    return parser


def _parser(server: ServerSpec, env: Mapping[str, str]) -> learned.Parser | None:
    entry = asked(server).options_entry
    if entry and asked(server).prints_options:
        return learned.find_program(Path(entry[0]).name, entry[0], env, server.settings.cwd)
    if not entry or not asked(server).packages:
        return None
    return learned.find_parser(server.backend_name, entry, asked(server).packages, env, server.settings.cwd)
