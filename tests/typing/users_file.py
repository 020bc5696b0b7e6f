"""What a user may write, with types: mypy and pyright check it against the installed package, see `.ci/run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest

from pytest_infserver import (
    CommandServer,
    ConfigError,
    InferenceServer,
    ServerConfig,
    ServerStartupError,
    VLLMServer,
    create_server,
    load_server_configs,
    register_backend,
    start_server_from_config,
    variant,
)
from pytest_infserver.backends import Phase, ServerFactory


def test_answers(inference_server: InferenceServer) -> None:
    url: str = inference_server.url_for("/v1/completions")
    port: int | None = inference_server.port
    endpoints: dict[str, str] = inference_server.list_endpoints()
    healthy: bool = inference_server.check_health()
    log: str = inference_server.read_log()
    assert healthy, (url, port, endpoints, log)


@pytest.mark.infserver_needs("one", "two")
def test_two(inference_servers: Mapping[str, InferenceServer]) -> None:
    names: list[str] = [server.name for server in inference_servers.values()]
    assert names


@pytest.mark.parametrize("inference_server", ["one", variant("one", extra_args=["--x"])], indirect=True)
def test_variant(inference_server: InferenceServer, inference_server_factory: ServerFactory) -> None:
    other: InferenceServer = inference_server_factory("one", fresh=True)
    with other.profiling("part") as files:
        pass
    assert [file.name for file in files]


class MyServer(CommandServer):
    phases: ClassVar[Sequence[Phase]] = ()

    def get_backend_name(self) -> str:
        return "mine"


def by_hand() -> None:
    register_backend(MyServer)
    configs: list[ServerConfig] = load_server_configs("servers.yaml")
    try:
        with VLLMServer(model="m", debug_mode=True) as server:
            print(server.server_url)
        started: InferenceServer = start_server_from_config("servers.yaml", overrides={"startup_timeout": 60})
        made: InferenceServer = create_server("llamacpp", model="builtin:tiny")
    except (ConfigError, ServerStartupError) as error:
        raise SystemExit(str(error)) from None
    print(configs, started, made)
