"""Run by an engine's own interpreter: writes as JSON which options the engine's parser has.

    python option_reader.py MARK [--idle] -m sglang.launch_server --help
    python option_reader.py MARK [--idle] /path/to/vllm serve --help

The command is run as it is; when its parser is about to show the help, what it knows is written instead, in a line that
begins with MARK. Parsers of argparse and click are understood. Only the standard library, of any Python 3.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

LAST_LIMIT = 300
"""Seconds after which it ends whatever happens."""
_ARGPARSE_PLAIN = ("_StoreAction", "_AppendAction", "_ExtendAction", "ExtendAction")


def _argparse_option(action: argparse.Action) -> dict[str, Any]:
    plain = type(action).__name__ in _ARGPARSE_PLAIN
    kind = getattr(action.type, "__name__", "") if action.type in (int, float) else ""
    choices = list(action.choices) if plain and action.choices and action.type in (None, str) else []
    values = 1 if action.nargs is None else action.nargs if isinstance(action.nargs, int) else None
    return {
        "flags": list(action.option_strings),
        "values": values,
        "kind": kind if plain else "",
        "choices": choices if all(type(one) is str for one in choices) else [],
    }


def of_argparse(parser: argparse.ArgumentParser) -> dict[str, Any] | None:
    """Return what a parser of argparse knows, or None if it takes words that it does not know."""
    # There is no public way (Python 3.10 to 3.14).
    actions = vars(parser)["_actions"]
    if any(action.nargs in (argparse.REMAINDER, argparse.PARSER, "A...", "...") for action in actions):
        return None
    places = [action.nargs for action in actions if not action.option_strings]
    return {
        "options": [_argparse_option(action) for action in actions if action.option_strings],
        "abbreviations": True,
        "greedy": False,
        # A word more than there are places for is an error.
        "few_places": all(nargs in (None, "?") for nargs in places),
    }


def _click_option(option: Any) -> dict[str, Any]:
    kind = {"integer": "int", "float": "float"}.get(getattr(option.type, "name", ""), "")
    choices = getattr(option.type, "choices", None) if getattr(option.type, "case_sensitive", False) else None
    plain = getattr(option, "nargs", 1) == 1 and not getattr(option, "is_flag", False)
    optional = getattr(option, "_flag_needs_value", False)
    values = 0 if getattr(option, "is_flag", False) or getattr(option, "count", False) else option.nargs
    return {
        "flags": [*option.opts, *option.secondary_opts],
        "values": None if optional else values,
        "kind": kind if plain else "",
        "choices": [one for one in choices or () if type(one) is str] if plain else [],
    }


def of_click(command: Any) -> dict[str, Any] | None:
    """Return what a command of click knows, or None if it takes words that it does not know."""
    settings = getattr(command, "context_settings", None) or {}
    if hasattr(command, "commands") or settings.get("ignore_unknown_options") or settings.get("allow_extra_args"):
        return None
    help_names = settings.get("help_option_names") or ["--help"]
    options = [_click_option(one) for one in command.params if one.param_type_name == "option"]
    options.append({"flags": list(help_names), "values": 0, "kind": "", "choices": []})
    return {"options": options, "abbreviations": False, "greedy": True, "few_places": False}


def show(mark: str, table: dict[str, Any] | None) -> NoReturn:
    """Write what was found, and end."""
    sys.stdout.flush()
    os.write(1, (f"\n{mark}{json.dumps(table)}\n").encode())
    os._exit(0)


def wait_for_the_help(mark: str) -> None:
    """Have the parser that is asked for its help answer in our way."""
    strict: list[bool] = []
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *arguments: Any, **settings: Any) -> Any:
        strict.append(True)
        return parse(self, *arguments, **settings)

    def print_help(self: argparse.ArgumentParser, file: Any = None) -> None:
        # Without parse_args whoever parses takes what the parser does not know for something else.
        show(mark, of_argparse(self) if strict else None)

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
    argparse.ArgumentParser.print_help = print_help  # type: ignore[method-assign]
    for name in ("click.core", "typer._click.core"):
        with contextlib.suppress(Exception):
            command = __import__(name, fromlist=["Command"]).Command
            command.get_help = lambda self, context: show(mark, of_click(self))


def end_with(parent: int) -> None:
    """End when the process that has asked is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def be_idle() -> None:
    """Use only what nobody else wants: an engine starts meanwhile."""
    os.nice(19)
    if hasattr(os, "sched_setscheduler") and hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Run the command."""
    parent = os.getppid()
    mark, words = sys.argv[1], sys.argv[2:]
    if words[0] == "--idle":
        be_idle()
        words = words[1:]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LAST_LIMIT)
    end_with(parent)
    # Not the folder of this file: its neighbours would hide the engine's modules.
    del sys.path[0]
    wait_for_the_help(mark)
    if words[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
