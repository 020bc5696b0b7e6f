"""Lets an engine's own parser read command lines; run in that engine's environment.

    echo '[["--model-path", "m", "--tp", "2"]]' | python parse_arguments.py sglang

Prints as JSON what the parser says to each of them, "" for one that it accepts, and all the options it knows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys


def sglang_parser() -> argparse.ArgumentParser:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser


def vllm_parser() -> argparse.ArgumentParser:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser())
    return parser


def complaint(parser: argparse.ArgumentParser, words: list[str]) -> str:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parser.parse_args(words)
    except SystemExit:
        return errors.getvalue().strip().splitlines()[-1]
    except Exception as error:
        # Such as a value that is no JSON.
        return repr(error)
    return ""


def main() -> None:
    parser = {"sglang": sglang_parser, "vllm": vllm_parser}[sys.argv[1]]()
    complaints = [complaint(parser, words) for words in json.load(sys.stdin)]
    json.dump({"complaints": complaints, "options": sorted(parser._option_string_actions)}, sys.stdout)


if __name__ == "__main__":
    main()
