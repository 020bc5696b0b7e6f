"""A server that wants a key, or another one: the answer says so, and which setting names the key that was sent."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver import create_server
from pytest_infserver.launcher.startup.probes.probe import key_hint

KEY = "key-of-the-test"


def by_flag(name: str) -> dict[str, Any]:
    return {"config": {"server_args": {name: KEY}}}


@pytest.mark.parametrize("backend", ["vllm", "sglang", "llamacpp", "transformers", "remote"])
@pytest.mark.parametrize("status", [401, 403])
def test_without_a_key(backend: str, status: int) -> None:
    settings = {"url": "http://127.0.0.1:1"} if backend == "remote" else {"model": "m"}
    address = create_server(backend, **settings).address
    assert key_hint(status, address) == "it wants an API key; name it with 'api_key' or 'api_key_env'"
    assert key_hint(503, address) == ""


@pytest.mark.parametrize(
    ("backend", "settings", "source"),
    [
        ("vllm", by_flag("api-key"), "--api-key"),
        ("vllm", {"env_vars": {"VLLM_API_KEY": KEY}}, "VLLM_API_KEY"),
        ("vllm", {"api_key": KEY}, "api_key"),
        ("sglang", by_flag("api-key"), "--api-key"),
        ("sglang", {"api_key": KEY}, "api_key"),
        ("llamacpp", by_flag("api-key"), "--api-key"),
        ("llamacpp", {"env_vars": {"LLAMA_API_KEY": KEY}}, "LLAMA_API_KEY"),
        ("transformers", {"env_vars": {"MINE": KEY}, "api_key_env": "MINE"}, "api_key_env: MINE"),
        ("remote", {"url": "http://127.0.0.1:1", "api_key": KEY}, "api_key"),
    ],
)
def test_with_a_key_that_is_not_taken(backend: str, settings: dict[str, Any], source: str) -> None:
    address = create_server(backend, **({} if backend == "remote" else {"model": "m"}), **settings).address
    assert address.headers == {"Authorization": f"Bearer {KEY}"}
    assert key_hint(403, address) == f"it does not take the API key that was sent, which {source} names"
