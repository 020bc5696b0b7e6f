"""Where the launcher refuses to run."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.usefixtures("nothing_left")
def test_windows_is_refused_with_one_line() -> None:
    code = """
import sys, pytest_infserver.errors
sys.platform = "win32"
try:
    from pytest_infserver import VLLMServer
except pytest_infserver.errors.ConfigError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == (
        "pytest-infserver starts no servers on Windows, where the engines do not run: use Linux or WSL\n"
    )
