"""The command of a module of this package that runs as a process of its own, whatever the tests have in their paths."""

from __future__ import annotations

import os
import sys

_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
_PROGRAM = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module('{}', run_name='__main__')"


def own_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package.

    Args:
        module: Its name.
        *arguments: What it finds in `sys.argv`.
    """
    isolated = [sys.executable, "-I", *["-B"] * sys.dont_write_bytecode]
    return [*isolated, "-c", _PROGRAM.format(module), _PACKAGE_ROOT, *arguments]
