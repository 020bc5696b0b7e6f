"""Programs that see GPUs where there are none: as nvidia-ml-py reads them from a stand-in of its library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STUB = Path(__file__).parent / "launcher" / "nvml_stub.c"
LIMIT = 60.0
"""Seconds after which a program counts as hung."""
_PREAMBLE = f"""
import json, os, signal, sys, threading, time
from pathlib import Path
signal.alarm({LIMIT:.0f})

def say(*lines):
    '''Make the driver say this from now on, all of it at once.'''
    state = Path(os.environ["NVML_STUB"])
    new = state.with_suffix(".new")
    new.write_text("".join(line + "\\n" for line in lines))
    new.rename(state)

def result(value):
    print("RESULT", json.dumps(value))
"""


def compile_stub(folder: Path, *options: str) -> None:
    """Put the stand-in of NVIDIA's library into a folder; skip where that cannot be."""
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux's LD_LIBRARY_PATH")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", library, STUB], timeout=LIMIT, check=True)


@dataclass(frozen=True)
class Driver:
    """A driver that says what it is told to."""

    library_folder: Path
    state: Path

    def run(self, code: str, *lines: str, **variables: str) -> Any:
        """Run a program; return what it gave to ``result()``.

        Args:
            code: The program; ``say()`` in it changes what the driver says.
            lines: What the driver says at first: see nvml_stub.c.
            variables: Environment variables.
        """
        self.state.write_text("".join(f"{line}\n" for line in lines))
        return run_python(code, LD_LIBRARY_PATH=str(self.library_folder), NVML_STUB=str(self.state), **variables)


def run_python(code: str, **variables: str) -> Any:
    """Run a program in an interpreter of its own, with these environment variables; return its result."""
    done = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT + 10,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(results) == 1, done.stdout
    return json.loads(results[0].removeprefix("RESULT "))
