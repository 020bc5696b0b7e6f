"""The embedded llama.cpp below a prefix, on a unix socket and with keys. It is built without TLS."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import InferenceServer, PortInUseError, create_server
from pytest_infserver.launcher.clients.openai_clients import make_client
from pytest_infserver.system.http.session import session_for

pytest.importorskip("xllamacpp")
KEY = "key-of-the-test"


def is_reached(server: InferenceServer) -> None:
    """Make sure that all paths are found where they are said to be, and that the key counts."""
    assert server.check_health()
    body = {"prompt": "Hello", "max_tokens": 2}
    with session_for(server.address) as session:
        endpoints = server.list_endpoints()
        for name in ("health", "models", "props"):
            assert session.get(endpoints[name], timeout=60).status_code == 200, endpoints[name]
        assert session.post("/v1/completions", json=body, timeout=60).status_code == 200
        session.headers.pop("Authorization")
        assert session.post("/v1/completions", json=body, timeout=60).status_code == 401
    with make_client(server) as client:
        assert client.completions.create(model=server.api_model, prompt="Hello", max_tokens=2).usage


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ({"api-prefix": "/llm", "api-key": f"{KEY},another"}, {}),
        ({"api-prefix": "/llm/v2", "api-key-file": "keys"}, {}),
        ({}, {"base_path": "/llm", "api_key": KEY}),
        ({"api-key": "first"}, {"base_path": "/llm", "env_vars": {"LLAMA_API_KEY": "second"}}),
    ],
    ids=["flags", "a file of keys", "keys of the YAML", "flag before variable"],
)
def test_a_prefix_and_a_key(
    tmp_path: Path, nothing_left: None, flags: dict[str, str], settings: dict[str, Any]
) -> None:
    (tmp_path / "keys").write_text(f"# mine\n{KEY}\nanother\n")
    config = {"server_args": flags}
    with create_server(
        "llamacpp", model="builtin:tiny", cwd=tmp_path, output_dir=tmp_path, config=config, **settings
    ) as server:
        assert server.server_url.removeprefix(f"http://127.0.0.1:{server.port}").startswith("/llm")
        is_reached(server)


def test_several_hosts(tmp_path: Path, nothing_left: None) -> None:
    settings: dict[str, Any] = {"output_dir": tmp_path, "api_key": KEY}
    with create_server("llamacpp", model="builtin:tiny", host="127.0.0.1,127.0.0.2", **settings) as server:
        assert server.server_url == f"http://127.0.0.1:{server.port}"
        is_reached(server)
        with create_server("llamacpp", url=f"http://127.0.0.2:{server.port}", api_key=KEY) as same:
            is_reached(same)
        # The port is taken where one of them is.
        with pytest.raises(PortInUseError, match=f"port {server.port} is taken"):
            create_server("llamacpp", model="builtin:tiny", host="127.0.0.3, 127.0.0.2", port=server.port).start()


def test_a_unix_socket(tmp_path: Path, nothing_left: None) -> None:
    with tempfile.TemporaryDirectory(prefix="reach-") as folder:
        uds = f"{folder}/llama.sock"
        with create_server("llamacpp", model="builtin:tiny", uds=uds, api_key=KEY, output_dir=tmp_path) as server:
            assert server.address.uds == uds
            is_reached(server)
