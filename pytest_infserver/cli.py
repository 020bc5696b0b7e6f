"""The command ``infserver``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Its words without the program's name; those of this process if None.

    Returns:
        The exit status: 0, 1 if a download or a server failed, 4 for a configuration error.
    """
    parser = argparse.ArgumentParser(prog="infserver", description="Inference servers for tests (pytest-infserver).")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check configuration files and print each server's command")
    check.add_argument("config", nargs="+", help="YAML file")
    run = commands.add_parser("run", help="start servers and show their logs until Ctrl-C")
    run.add_argument("config", help="YAML file")
    run.add_argument("name", nargs="*", help="which of its servers (default: all)")
    commands.add_parser("schema", help="print the JSON Schema of the configuration")
    fetch = commands.add_parser("fetch", help="fetch a built-in model into the cache")
    fetch.add_argument("model", help="builtin:smollm2")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "check":
            return _check(arguments.config)
        if arguments.command == "run":
            return _run(arguments.config, arguments.name)
        if arguments.command == "schema":
            return _schema()
        return _fetch(arguments.model)
    except BrokenPipeError:
        # `infserver schema | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _check(files: Sequence[str]) -> int:
    from pytest_infserver.errors import ConfigError
    from pytest_infserver.launcher.factory import load_files
    from pytest_infserver.reporting.dry_run import command_lines

    try:
        for line in command_lines(load_files(files).values()):
            print(line)
    except ConfigError as error:
        print(f"infserver: {error}", file=sys.stderr)
        return 4
    return 0


def _run(file: str, names: Sequence[str]) -> int:
    from pytest_infserver.errors import ConfigError
    from pytest_infserver.foreground import run_servers

    try:
        return run_servers(file, names)
    except ConfigError as error:
        print(f"infserver: {error}", file=sys.stderr)
        return 4


def _schema() -> int:
    from pytest_infserver.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _fetch(model: str) -> int:
    from pytest_infserver.models.builtin import ensure_builtin

    try:
        path = ensure_builtin(model, lambda text: print(text, file=sys.stderr))
    except ValueError as error:
        print(f"infserver: {error}", file=sys.stderr)
        return 4
    except RuntimeError as error:
        print(f"infserver: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0
