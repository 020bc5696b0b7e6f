"""Which of an engine's endpoints a running server really has."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.fetch import Limits, NoReply, fetch, parse_json
from pytest_infserver.system.http.probe import ask

_TIMEOUT = 10.0
_LIMITS = Limits(_TIMEOUT, 4 * 1024 * 1024)


def existing(address: Address, paths: Mapping[str, str], mounted: Collection[str] = ()) -> dict[str, str]:
    """Return those endpoints that a running server has.

    Args:
        address: Where it is reached.
        paths: Name to path of what it may have. Its ``/openapi.json`` decides; all of them if it has none.
        mounted: Names of those that it does not list there; they are asked for with GET.
    """
    known = openapi_paths(address)
    if known is None:
        return dict(paths)
    found = known | {path for name, path in paths.items() if name in mounted and _answers(address, path)}
    return {name: path for name, path in paths.items() if path in found or path == "/openapi.json"}


def _answers(address: Address, path: str) -> bool:
    return ask(address.url_for(path), _TIMEOUT, address.headers, address=address).status not in (None, 404)


def openapi_paths(address: Address) -> frozenset[str] | None:
    """Return the paths of the server's OpenAPI document, or None if there is no such document."""
    try:
        reply = fetch(address.url_for("/openapi.json"), _LIMITS, headers=address.headers, address=address)
        paths = parse_json(reply.body).get("paths") if 200 <= reply.status < 300 else None
    except (NoReply, ValueError, AttributeError):
        return None
    return frozenset(paths) if isinstance(paths, dict) else None
