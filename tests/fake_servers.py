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


def fake_block(*arguments: str, **settings: Any) -> dict[str, Any]:
    """Return a server's block in a servers.yaml: the fake engine with these arguments, and further settings."""
    return {"backend": "command", "launch_command": fake_command(*arguments), **settings}


def write_servers(folder: Path, defaults: dict[str, Any] | None = None, **servers: list[str] | dict[str, Any]) -> Path:
    """Write a servers.yaml into a folder; each server is a fake one with these arguments, or has this block."""
    blocks = {name: what if isinstance(what, dict) else fake_block(*what) for name, what in servers.items()}
    path = folder / "servers.yaml"
    path.write_text(yaml.safe_dump({"defaults": {"startup_timeout": 30, **(defaults or {})}, "servers": blocks}))
    return path
