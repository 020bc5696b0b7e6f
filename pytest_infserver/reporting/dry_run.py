"""``--infserver-dry-run`` and ``infserver check``: what would be started."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.pool.run import Run


def print_commands(run: Run, output: TextIO) -> None:
    """Write each server's command."""
    lines = list(command_lines(run.pool.configs.values()))
    for line in lines or ["no server is configured: see --infserver-config in 'pytest --help'"]:
        output.write(f"{line}\n")


def command_lines(configs: Iterable[ServerConfig]) -> Iterable[str]:
    """Return one line for each server: its name and the command that starts it, secrets masked."""
    from pytest_infserver.launcher.factory import create_from_config

    for config in configs:
        server = create_from_config(config)
        what = f"attach to {server.server_url}" if server.attached else str(server.command())
        yield f"{server.name}: {what}"
