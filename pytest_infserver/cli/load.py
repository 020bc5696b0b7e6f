"""``infserver load``: a load on one server of a file, outside pytest."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import MISSING, fields
from typing import Any

from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.launcher.factory import create_from_config, load_server_config
from pytest_infserver.load.running import LoadInterrupted
from pytest_infserver.load.table import result_lines
from pytest_infserver.load.workload import Workload, make_workload

_NOT_HERE = ("extra_body", "limits")
_INTERRUPTED = 130


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Declare an option for each field of a workload."""
    for field in fields(Workload):
        if field.name in _NOT_HERE:
            continue
        name = f"--{field.name.replace('_', '-')}"
        if field.name == "stream":
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=None)
            continue
        kind = float if "float" in str(field.type) else int if "int" in str(field.type) else str
        default = "" if field.default in (None, MISSING) else f"default: {field.default}"
        parser.add_argument(name, type=kind, help=default, metavar=kind.__name__.upper())
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def load_once(options: argparse.Namespace) -> int:
    """Start a server if it does not run, send the load, and print what it has shown.

    Returns:
        The exit status: 0; 1 if a request or the server has failed; 4 for a configuration error; 130 after Ctrl-C.
    """
    names = [field.name for field in fields(Workload) if field.name not in _NOT_HERE]
    try:
        workload = {name: value for name in names if (value := getattr(options, name)) is not None}
        make_workload(**workload)
        server = create_from_config(load_server_config(options.config, options.name))
        with server:
            result = server.load(**workload)
    except ConfigError as error:
        print(f"infserver: {error}", file=sys.stderr)
        return 4
    except InferenceServerError as error:
        print(f"infserver: {error}", file=sys.stderr)
        return 1
    except LoadInterrupted as interrupt:
        _print(interrupt.result.as_dict(), options.json)
        return _INTERRUPTED
    _print(result.as_dict(), options.json)
    return 1 if result.failed or not result.completed else 0


def _print(result: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(result, indent=2) if as_json else "\n".join(result_lines(result)))
