"""Which engine a server is, and which version of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_infserver.conformance.asking.exchange import Answer, NoAnswer, Request, send
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.engine.version import installed_version
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.fetch import Limits

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_LOOK_SECONDS = 5.0
_MAX_BYTES = 1 << 20
_MAX_VERSION = 60
_WAYS = (
    ("/version", "version", "vllm"),
    ("/server_info", "version", "sglang"),
    ("/get_server_info", "version", "sglang"),
    ("/props", "build_info", "llama.cpp"),
)
"""Paths, the field that has the version, and whose they are."""


def engine_and_version(server: InferenceServer, seconds: float) -> str:
    """Return the engine of a server and its version, such as ``vllm 0.32.0``; of a foreign one what it says.

    Args:
        server: The server.
        seconds: Limit of a request.
    """
    if not server.attached:
        name = server.backend_name
        try:
            command = server.command()
            version = installed_version(command.argv[0], asked(server).packages, command.env)
        except (InferenceServerError, OSError):
            version = None
        if version is not None:
            return f"{name} {version}"
    return said(server.address, seconds) or ("" if server.attached else server.backend_name)


def said(address: Address, seconds: float) -> str:
    """Return what a server says that it is; "" if it does not, or not in a way that is known here.

    Args:
        address: Where it is.
        seconds: Limit of a request.
    """
    limits = Limits(min(seconds, _LOOK_SECONDS), _MAX_BYTES)
    for path, key, engine in _WAYS:
        try:
            answer = send(address, Request("GET", path), limits)
        except NoAnswer:
            return ""
        if answer.status == 200 and (version := _field(answer, key)):
            return f"{engine} {version}"
    return ""


def _field(answer: Answer, key: str) -> str:
    try:
        found = answer.json()
    except AssertionError:
        return ""
    word = found.get(key) if isinstance(found, Mapping) else None
    return "".join(filter(str.isprintable, word))[:_MAX_VERSION] if isinstance(word, str) else ""
