"""The command ``infserver``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.cli.discard import discard

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.reporting.server_stop import Stoppable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Its words without the program's name; those of this process if None.

    Returns:
        The exit status: 0; 1 if a download failed, or a server failed, does not answer as it should, or could not be
        stopped; 4 for a configuration error; 130 if Ctrl-C has ended a load.
    """
    parser = argparse.ArgumentParser(prog="infserver", description="Inference servers for tests (pytest-infserver).")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check configuration files and print each server's command")
    check.add_argument("config", nargs="+", help="YAML file")
    check.add_argument("--probe", action="store_true", help="ask the servers that run, and attached ones, how they are")
    run = commands.add_parser("run", help="start servers and show their logs until Ctrl-C")
    run.add_argument("config", help="YAML file")
    run.add_argument("name", nargs="*", help="which of its servers (default: all)")
    load = commands.add_parser("load", help="send many requests to a server, and show how fast it is")
    load.add_argument("config", help="YAML file")
    load.add_argument("name", nargs="?", help="which of its servers, where it names several")
    if (argv if argv is not None else sys.argv[1:])[:1] == ["load"]:
        from pytest_infserver.cli.load import add_workload

        add_workload(load)
    schema = commands.add_parser("schema", help="print the JSON Schema of the configuration, or of run.json")
    schema.add_argument("of", nargs="?", choices=("config", "run"), default="config")
    fetch = commands.add_parser("fetch", help="fetch a built-in model into the cache")
    fetch.add_argument("model", help="builtin:smollm2")
    ps = commands.add_parser("ps", help="list the servers that run on this machine, kept ones too, or on a Ray cluster")
    stop = commands.add_parser("stop", help="stop servers that run, kept ones and those in use")
    stop.add_argument("name", nargs="*", help="name of a server, or a pattern like 'llama-*'")
    stop.add_argument("--all", action="store_true", help="all servers of this user, or of the cluster")
    for command in (ps, stop):
        command.add_argument("--cluster", metavar="ADDRESS", help="those on a Ray cluster: HOST:PORT, or auto")
    arguments = parser.parse_args(argv)
    if arguments.command == "stop" and arguments.all == bool(arguments.name):
        stop.error("name the servers, or say --all; 'infserver ps' lists them")
    try:
        if arguments.command == "check":
            return _check(arguments.config, probe=arguments.probe)
        if arguments.command == "run":
            return _run(arguments.config, arguments.name)
        if arguments.command == "load":
            from pytest_infserver.cli.load import load_once

            return load_once(arguments)
        if arguments.command == "schema":
            return _schema(arguments.of)
        if arguments.command == "ps":
            return _ps() if arguments.cluster is None else _ps_on_cluster(arguments.cluster)
        if arguments.command == "stop":
            names = ["*"] if arguments.all else arguments.name
            return _stop(names) if arguments.cluster is None else _stop_on_cluster(arguments.cluster, names)
        return _fetch(arguments.model)
    except BrokenPipeError:
        # `infserver schema | head`: the reader has seen enough.
        discard(sys.stdout)
        return 0


def _check(files: Sequence[str], *, probe: bool) -> int:
    from pytest_infserver.errors import InferenceServerError
    from pytest_infserver.launcher.checks.mistakes import find_mistakes
    from pytest_infserver.reporting.dry_run import command_lines

    servers, wrong = find_mistakes(files)
    mistakes: list[InferenceServerError] = [*wrong]
    lines: list[str] = []
    for server in servers.values():
        try:
            _learn_options(server)
            lines += command_lines([server])
        except InferenceServerError as error:
            mistakes.append(error)
    for mistake in mistakes:
        print(f"infserver: {mistake}", file=sys.stderr)
    for line in lines if not mistakes else ():
        print(line)
    if mistakes:
        return 4
    return _probe(servers.values()) if probe else 0


def _learn_options(config: ServerConfig) -> None:
    """Read what the installed engine accepts, unless that was done before."""
    from pytest_infserver.launcher.checks.options import unread_parser
    from pytest_infserver.launcher.engine.known_options.learned import learn
    from pytest_infserver.launcher.factory import create_from_config

    parser = unread_parser(create_from_config(config))
    if parser is not None:
        print(f"infserver: reading once which options {parser.engine} has ...", file=sys.stderr, flush=True)
        problem = learn(parser)
        if problem is not None:
            print(f"infserver: they are not known, and not checked: {problem}", file=sys.stderr)


def _probe(configs: Iterable[ServerConfig]) -> int:
    from pytest_infserver.launcher.keeping.kept import all_servers
    from pytest_infserver.reporting.probe_report import probe_servers

    status = 0
    for good, line in probe_servers(configs, all_servers()):
        print(line, flush=True)
        status = status if good else 1
    return status


def _run(file: str, names: Sequence[str]) -> int:
    from pytest_infserver.cli.foreground import run_servers
    from pytest_infserver.errors import ConfigError

    try:
        return run_servers(file, names)
    except ConfigError as error:
        print(f"infserver: {error}", file=sys.stderr)
        return 4


def _schema(of: str) -> int:
    if of == "run":
        from pytest_infserver.reporting.record.run_schema import run_schema

        schema = run_schema()
    else:
        from pytest_infserver.config.schema import json_schema

        schema = json_schema()
    print(json.dumps(schema, indent=2))
    return 0


def _ps() -> int:
    from pytest_infserver.launcher.keeping.kept import all_servers
    from pytest_infserver.reporting.terminal.server_table import server_table

    for line in server_table(all_servers()):
        print(line)
    return 0


def _ps_on_cluster(address: str) -> int:
    from pytest_infserver.cluster.listing import cluster_to_look_at
    from pytest_infserver.errors import InferenceServerError
    from pytest_infserver.reporting.terminal.server_table import cluster_table

    try:
        with cluster_to_look_at(address) as cluster:
            lines = cluster_table(cluster.servers())
    except InferenceServerError as error:
        return _cluster_failed(error)
    for line in lines:
        print(line)
    return 0


def _stop_on_cluster(address: str, names: Sequence[str]) -> int:
    from pytest_infserver.cluster.listing import cluster_to_look_at
    from pytest_infserver.errors import InferenceServerError

    try:
        with cluster_to_look_at(address) as cluster:
            return _stop_those(cluster.servers(), names)
    except InferenceServerError as error:
        return _cluster_failed(error)


def _cluster_failed(error: Exception) -> int:
    from pytest_infserver.errors import ConfigError

    print(f"infserver: {error}", file=sys.stderr)
    return 4 if isinstance(error, ConfigError) else 1


def _stop(names: Sequence[str]) -> int:
    from pytest_infserver.launcher.keeping.kept import all_servers

    return _stop_those(all_servers(), names)


def _stop_those(servers: Sequence[Stoppable], names: Sequence[str]) -> int:
    from pytest_infserver.reporting.server_stop import NoSuchServer, chosen, stop_all

    if names == ["*"] and not servers:
        print("no server runs")
        return 0
    try:
        wanted = chosen(servers, names)
    except NoSuchServer as error:
        print(f"infserver: {error}", file=sys.stderr)
        return 1
    status = 0
    for gone, line in stop_all(wanted):
        print(line, flush=True)
        status = status if gone else 1
    return status


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
