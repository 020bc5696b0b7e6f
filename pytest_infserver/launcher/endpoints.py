"""Which of an engine's endpoints a running server really has."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from itertools import islice

from pytest_infserver.launcher.http_probe import ask

_TIMEOUT = 10.0
_CHUNK = 64 * 1024
_MAX_CHUNKS = 256


def existing(
    server_url: str,
    paths: Mapping[str, str],
    mounted: Collection[str] = (),
    headers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return those endpoints that a running server has.

    Args:
        server_url: Its URL.
        paths: Name to path of what it may have. Its ``/openapi.json`` decides; all of them if it has none.
        mounted: Names of those that it does not list there; they are asked for with GET.
        headers: Sent with each request.
    """
    known = openapi_paths(server_url, headers)
    if known is None:
        return dict(paths)
    found = known | {path for name, path in paths.items() if name in mounted and _answers(server_url + path, headers)}
    return {name: path for name, path in paths.items() if path in found or path == "/openapi.json"}


def _answers(url: str, headers: Mapping[str, str] | None) -> bool:
    return ask(url, _TIMEOUT, dict(headers or {})).status not in (None, 404)


def openapi_paths(server_url: str, headers: Mapping[str, str] | None = None) -> frozenset[str] | None:
    """Return the paths of the server's OpenAPI document, or None if there is no such document."""
    import requests

    with requests.Session() as session:
        session.trust_env = False  # a proxy of the environment would be asked for 127.0.0.1
        try:
            with session.get(f"{server_url}/openapi.json", timeout=_TIMEOUT, headers=headers, stream=True) as response:
                if not response.ok:
                    return None
                # A longer document is cut, and no JSON then.
                body = b"".join(islice(response.iter_content(_CHUNK), _MAX_CHUNKS))
                paths = json.loads(body).get("paths")
        except (requests.RequestException, ValueError, AttributeError):
            return None
    return frozenset(paths) if isinstance(paths, dict) else None
