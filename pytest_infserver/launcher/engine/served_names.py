"""Under which names an engine serves its model: what requests say in ``model``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.launcher.engine.arguments import option_values
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.launcher.engine.facts import EngineFacts
    from pytest_infserver.system.http.address import Address

_TIMEOUT = 10.0


def served_names(argv: Sequence[str], facts: EngineFacts, model: str) -> list[str]:
    """Return the names that a command gives to the model, the first one first, and to its LoRA adapters.

    Args:
        argv: The command, or the engine's arguments.
        facts: How the engine calls its options.
        model: The model as the engine is told, which is its name if the command says nothing else; may be "".
    """
    given = [name for word in _last(argv, asked(facts).name_options) for name in word.split(",") if name]
    names = given or [model]
    adapters = [_adapter(word) for words in option_values(argv, *asked(facts).adapter_options) for word in words]
    return [*dict.fromkeys(name for name in (*names, *adapters) if name)]


def asked_names(address: Address) -> list[str]:
    """Return the names that a running server lists in ``/v1/models``; none if it has no such list."""
    import requests

    from pytest_infserver.system.http.session import session_for

    try:
        with session_for(address, lambda: address) as session:
            entries = session.get(address.url_for("/v1/models"), timeout=_TIMEOUT).json()["data"]
            return [str(entry["id"]) for entry in entries]
    except (requests.RequestException, OSError, ValueError, KeyError, TypeError):
        return []


def _last(argv: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """Return the words of the last of some options: the one that counts."""
    yield from next(iter(option_values(argv, *flags)[-1:]), [])


def _adapter(word: str) -> str:
    """Return the name in ``name=path``, or in ``{"name": ...}``."""
    if word.startswith("{"):
        try:
            return str(json.loads(word).get("name", ""))
        except (ValueError, AttributeError):
            return ""
    return word.partition("=")[0] if "=" in word else ""
