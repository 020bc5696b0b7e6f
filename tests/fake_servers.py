"""Servers that are the fake engine: their command line, and a servers.yaml of some."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"


def fake_command(*arguments: str) -> list[str]:
    """Return the command line of the fake engine."""
    return [sys.executable, "-S", str(FAKE_ENGINE), "--host", "{host}", "--port", "{port}", *arguments]


def write_servers(folder: Path, defaults: dict[str, Any] | None = None, **servers: list[str]) -> Path:
    """Write a servers.yaml of fake servers into a folder; each has these arguments."""
    blocks = {name: {"backend": "command", "launch_command": fake_command(*args)} for name, args in servers.items()}
    path = folder / "servers.yaml"
    path.write_text(yaml.safe_dump({"defaults": {"startup_timeout": 30, **(defaults or {})}, "servers": blocks}))
    return path
