"""The options of the command line, their environment and ini twins. Loaded in every run of pytest: keep it light."""

from __future__ import annotations

import argparse
import os
from typing import Any, NamedTuple

import pytest

_SUITE = os.path.join("pytest_infserver", "conformance")  # noqa: PTH118


class Option(NamedTuple):
    """One setting: ``--infserver-NAME``, ``INFSERVER_NAME`` and the ini key ``infserver_NAME``.

    Attributes:
        name: Its name with dashes.
        help: One sentence.
        kind: ``flag``, ``switch`` (a flag that can also be switched off), ``value`` or ``list`` (may be repeated).
        separators: Characters besides the newline that separate the items of a list in environment and ini.
        metavar: What stands for the value in the help.
        command_line_only: Whether it has no twins.
        can_be_off: Whether its value may also be ``off``.
        optional: Whether its value may be left out, which means ``on``.
    """

    name: str
    help: str
    kind: str = "value"
    separators: str = ""
    metavar: str = "VALUE"
    command_line_only: bool = False
    can_be_off: bool = False
    optional: bool = False

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--infserver-{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"INFSERVER_{self.name.upper().replace('-', '_')}"

    @property
    def ini(self) -> str:
        """The key in pytest.ini or pyproject.toml, and the attribute of the parsed options."""
        return f"infserver_{self.name.replace('-', '_')}"


OPTIONS = (
    Option("config", "YAML file that names the servers.", "list", os.pathsep, "PATH"),
    Option("server", "Keep only servers whose name matches.", "list", ",", "GLOB"),
    Option("backend", "Keep only servers of this backend.", "list", ",", "NAME"),
    Option("model", "Model of every server, or of the one that --infserver-backend names without a file."),
    Option("env", "Environment variable of every server.", "list", "", "KEY=VALUE"),
    Option("set", "Setting of every server, e.g. config.server_args.ctx-size=4096.", "list", "", "KEY=VALUE"),
    Option(
        "url",
        "Attach to a server that runs already; to several, or to one of a file's servers: NAME=URL.",
        "list",
        " ",
        "URL",
        can_be_off=True,
    ),
    Option("profile", "Profile every server with nsys, pytorch, amd or py-spy.", metavar="TOOL", can_be_off=True),
    Option("debug", "Debug mode: what a server leaves behind is an error.", "switch"),
    Option("output-dir", "Directory for logs, one folder per server.", metavar="PATH"),
    Option("startup-timeout", "Seconds until a server must be ready.", metavar="SECONDS"),
    Option(
        "max-servers",
        "How many servers without GPUs run at the same time (default: by memory and cores).",
        metavar="N",
        can_be_off=True,
    ),
    Option("prelaunch", "Start servers before a test asks for them, as far as there is room (default: on).", "switch"),
    Option(
        "keep",
        "Leave servers running for the next run, this long after their last use: 30m, 2h.",
        metavar="DURATION",
        can_be_off=True,
    ),
    Option(
        "on-crash",
        "What follows when a server has died: restart (default; at most 3 times) or fail.",
        "value",
        "",
        "WHAT",
    ),
    Option(
        "log",
        "Servers' logs: live (as they are written; default with -s) or failed (in the reports of failed tests).",
        metavar="WHEN",
    ),
    Option("log-lines", "So many lines of a server's log stand in a failed test's report (default: 400).", metavar="N"),
    Option(
        "share-gpu",
        "An idle vLLM or SGLang whose GPUs another server needs sleeps until its next test, instead of being stopped.",
        "switch",
    ),
    Option("fresh-on-rerun", "A test that is repeated, as with --reruns, gets its servers started anew.", "switch"),
    Option(
        "summary",
        "Table of the servers at the end: auto (default: with -v and on failures), always, never.",
        "value",
        "",
        "WHEN",
    ),
    Option(
        "order",
        "Order of the tests: servers (default; those of each server together, classes and modules whole) or source.",
        "value",
        "",
        "WHAT",
    ),
    Option(
        "shard",
        "Run only one job's share of the tests, dealt by server and by the last durations: 1/3, 2/3 or 3/3.",
        metavar="I/N",
        can_be_off=True,
    ),
    Option(
        "durations",
        "JSON file with these durations (default: infserver_durations.json in the rootdir, if it is there).",
        metavar="PATH",
    ),
    Option(
        "save-durations",
        "Write down there, or in another JSON file, how long tests and starts have taken.",
        metavar="PATH",
        can_be_off=True,
        optional=True,
    ),
    Option("load-save", "Write what loads and scores show as their baselines, in .infserver/load.", "switch"),
    Option(
        "load-compare",
        "Compare loads and scores with their baselines: on (default), off, or require (a missing one is a failure).",
        metavar="WHAT",
    ),
    Option(
        "cluster",
        "Run the servers on a Ray cluster: its HOST:PORT, auto (the one of this machine), or local (one for this run).",
        metavar="ADDRESS",
        can_be_off=True,
    ),
    Option("strict", "A test that no configured server fits fails instead of being skipped.", "switch"),
    Option(
        "optional-names",
        "Names of servers and backends in marks that only other configurations have; other unknown ones are errors.",
        "list",
        ",",
        "GLOB",
    ),
    Option("dry-run", "Print the command of each server and stop.", "flag", command_line_only=True),
)


_ACTIONS = {
    "flag": "store_true",
    "switch": argparse.BooleanOptionalAction,
    "value": "store",
    "list": "append",
}


def add_options(parser: pytest.Parser) -> None:
    """Declare every option and its ini twin."""
    group = parser.getgroup("infserver", "inference servers (pytest-infserver)")
    for option in OPTIONS:
        keywords: dict[str, Any] = {"action": _ACTIONS[option.kind]}
        if option.kind in ("value", "list"):
            keywords["metavar"] = option.metavar
        if option.optional:
            keywords |= {"nargs": "?", "const": "on"}
        twins = "" if option.command_line_only else f" (env {option.variable}, ini {option.ini})"
        group.addoption(option.flag, dest=option.ini, default=None, help=option.help + twins, **keywords)
        if not option.command_line_only:
            parser.addini(option.ini, option.help, type="string", default=None)
    _add_conformance_options(parser)


def _add_conformance_options(parser: pytest.Parser) -> None:
    """Declare what `pytest --pyargs pytest_infserver.conformance` takes: it is too late for its own files to do so."""
    group = parser.getgroup("conformance", "conformance of servers (pytest --pyargs pytest_infserver.conformance)")
    group.addoption("--conformance-level", choices=("core", "full"), default="core", help="core (default) or full.")
    group.addoption(
        "--conformance-known",
        metavar="PATH",
        help="YAML file of known differences: a list of test (area.name), engine (such as vllm 0.32) and reason.",
    )
    group.addoption(
        "--conformance-output",
        metavar="PATH",
        help="Folder for conformance.json and conformance.html (default: server_logs in the rootdir).",
    )
    group.addoption(
        "--conformance-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="Limit of each request (default: 60).",
    )


def runs_conformance(config: pytest.Config) -> bool:
    """Return whether the conformance suite is among what is to run."""
    return any("pytest_infserver.conformance" in word or _SUITE in word for word in config.args)


def is_used(config: pytest.Config) -> bool:
    """Return whether this run says anything to this plugin."""
    return any(
        config.getoption(option.ini) or os.environ.get(option.variable) or _is_in_ini(config, option)
        for option in OPTIONS
    )


def _is_in_ini(config: pytest.Config, option: Option) -> bool:
    return not option.command_line_only and bool(raw_ini(config, option))


def raw_ini(config: pytest.Config, option: Option) -> Any:
    """Return what the ini file says, of whatever type, or None."""
    # getini() insists on one type; in TOML a number or a list is as good as a text for us.
    written = getattr(config, "_inicfg", {}).get(option.ini)
    return config.getini(option.ini) if written is None else written.value
