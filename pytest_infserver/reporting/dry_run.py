"""``--infserver-dry-run`` and ``infserver check``: what would be started."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.pool.run import Run


def print_commands(run: Run, output: TextIO) -> None:
    """Write each server's command."""
    lines = list(command_lines(run.choice.configs.values()))
    for line in lines or ["no server is configured: see --infserver-config in 'pytest --help'"]:
        output.write(f"{line}\n")


def command_lines(configs: Iterable[ServerConfig]) -> Iterable[str]:
    """Return for each server its name and the command that starts it, secrets masked, and what would not work.

    No program is run that a configuration names: the file may be somebody else's. A profiler of this user's own PATH
    is asked for its options. The class of a backend of the project's own is imported, since only that knows its
    command.

    Raises:
        ConfigError: The installed engine does not have one of the options any more.
        UserCodeError: A backend of the user's has raised something.
    """
    from pytest_infserver.errors import ServerStartupError
    from pytest_infserver.launcher.checks.settings import missing_model
    from pytest_infserver.launcher.factory import create_from_config
    from pytest_infserver.launcher.profiling.chosen import profile_problem
    from pytest_infserver.launcher.user_code import asked
    from pytest_infserver.system.text import clean

    for config in configs:
        server = create_from_config(config)
        if server.attached:
            yield clean(f"{server.name}: attach to {server.server_url}", server.secrets)
            continue
        problem = _foreign_profiler(config) or profile_problem(server)
        if problem is not None:
            # Like an engine it may be there where the file is used.
            server = create_from_config(dataclasses.replace(config, profile=None))
        command, notes = server.command_and_notes()
        yield f"{server.name}: {command}"
        notes += [] if problem is None else [problem]
        # An engine that is only not on PATH here may be where the file is used.
        if config.binary_path is not None:
            try:
                asked(server).require_engine()
            except ServerStartupError as error:
                notes.append(str(error))
        for note in [*notes, *missing_model(server)]:
            yield clean(f"  note: {note}", command.secrets)


def _foreign_profiler(config: ServerConfig) -> str | None:
    tool = None if config.profile is None or not config.profile.enabled else config.profile.binary_path
    return tool and f"the profile is not shown: '{tool}' is named by the configuration, and is not run here"
