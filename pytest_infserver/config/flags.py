"""How the engine's own arguments are called, in YAML and on its command line."""

from __future__ import annotations

ARGUMENT_KEYS = ("api_server_args", "server_args")
"""The engine's arguments in ``config``: vLLM's name and everybody else's, each accepted by all."""


def to_flag(key: str) -> str:
    """Return the command-line spelling of a mapping's key: ``max_model_len`` is ``--max-model-len``."""
    if key.startswith("-"):
        return key
    name, dot, rest = key.partition(".")
    return f"--{name.replace('_', '-')}{dot}{rest}"
