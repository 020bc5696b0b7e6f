"""``RemoteOpenAIServer`` with the interface of the class in vLLM's own tests, on this package's launcher."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partialmethod
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.errors import ConfigError
from pytest_infserver.launcher.backends.vllm import VLLMServer

if TYPE_CHECKING:
    import openai

    from pytest_infserver.launcher.engine_process import EngineProcess

_CLIENT_TIMEOUT, _STARTUP_TIMEOUT, _STOP_TIMEOUT = 600, 480.0, 15.0


class RemoteOpenAIServer:
    """``vllm serve`` from its construction to the end of a ``with`` block.

    Attributes:
        server: The `VLLMServer` that does the work.
        model: The model.
        host, port, uds: Where the server listens; ``uds`` is a unix socket, or None.
    """

    DUMMY_API_KEY = "token-abc123"

    def __init__(
        self,
        model: str,
        vllm_serve_args: Sequence[str],
        *,
        env_dict: Mapping[str, str] | None = None,
        port: int | None = None,
        auto_port: bool = True,
        seed: int | None = 0,
        max_wait_seconds: float | None = None,
        override_hf_configs: Mapping[str, Any] | None = None,
    ) -> None:
        """Start the server and wait until it is ready.

        Args:
            model: Name or path of the model.
            vllm_serve_args: Arguments of ``vllm serve``.
            env_dict: Environment variables of the server.
            port: Its port; also as ``--port`` in the arguments.
            auto_port: Whether a free port is looked for; without it and ``port`` it is 8000.
            seed: Its ``--seed``, unless that is in the arguments; None leaves it out.
            max_wait_seconds: Seconds until it must be ready.
            override_hf_configs: Its ``--hf-overrides``.

        Raises:
            ConfigError: The arguments name a port although one is to be looked for.
            ServerStartupError: It has not become ready. That is a RuntimeError, too.
        """
        named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        named.add_argument("--host", default="127.0.0.1")
        named.add_argument("--port")
        found, args = named.parse_known_args(list(vllm_serve_args))
        if found.port is not None and auto_port:
            raise ConfigError("the arguments have a --port: leave it out, or say auto_port=False")
        if port is None and not auto_port:
            port = int(found.port or 8000)
        if seed is not None and not any(word.partition("=")[0] == "--seed" for word in args):
            args += ["--seed", str(seed)]
        if override_hf_configs is not None:
            args += ["--hf-overrides", json.dumps(override_hf_configs)]
        self.model = model
        self.server = VLLMServer(
            model,
            name=name_of_test_file("vllm"),
            host=found.host,
            port=port,
            startup_timeout=max_wait_seconds or _STARTUP_TIMEOUT,
            stop_timeout=_STOP_TIMEOUT,
            env_vars={"VLLM_WORKER_MULTIPROC_METHOD": "spawn", **(env_dict or {})},
            config={"server_args": args},
        )
        self.server.start()
        self.host, self.port, self.uds = self.server.host, self.server.port, self.server.address.uds

    @property
    def proc(self) -> EngineProcess:
        """The process of ``vllm serve``."""
        return self.server.process

    @property
    def url_root(self) -> str:
        """The server's URL."""
        return self.server.server_url

    def url_for(self, *parts: str) -> str:
        """Return the URL of a path, of which the parts are given."""
        return self.server.url_for(*parts)

    def get_client(self, **kwargs: Any) -> openai.OpenAI:
        """Return a new client; arguments of ``openai.OpenAI`` replace ours."""
        return self.server.client(**{**self._client_settings(), **kwargs})

    def get_async_client(self, **kwargs: Any) -> openai.AsyncOpenAI:
        """Return a new asynchronous client, good in any event loop."""
        return self.server.async_client(**{**self._client_settings(), **kwargs})

    def _anthropic(self, kind: str, **kwargs: Any) -> Any:
        """Return a new client of the package anthropic, which must be installed."""
        settings = {"base_url": self.url_root, "max_retries": 0, **self._client_settings(), **kwargs}
        return getattr(import_module("anthropic"), kind)(**settings)

    get_client_anthropic = partialmethod(_anthropic, "Anthropic")
    get_async_client_anthropic = partialmethod(_anthropic, "AsyncAnthropic")

    def _client_settings(self) -> dict[str, Any]:
        return {"timeout": _CLIENT_TIMEOUT, "api_key": self.server.api_key or self.DUMMY_API_KEY}

    def shutdown(self) -> None:
        """Stop the server."""
        self.server.stop()

    @staticmethod
    def shutdown_many(servers: Iterable[RemoteOpenAIServer]) -> None:
        """Stop several servers."""
        for one in servers:
            one.shutdown()

    def __enter__(self) -> RemoteOpenAIServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()


def name_of_test_file(otherwise: str) -> str:
    """Return what the log's folder is called: as the file of the test that runs, or otherwise outside of tests."""
    file = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
    return Path(file).stem or otherwise
