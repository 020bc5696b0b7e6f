"""vLLM: ``vllm serve MODEL``. Facts from vLLM 0.32."""

from __future__ import annotations

import re

from pytest_infserver.config.flags import ARGUMENT_KEYS
from pytest_infserver.launcher.backends.hub import HUB_DOWNLOADS
from pytest_infserver.launcher.server import InferenceServer


class VLLMServer(InferenceServer):
    """A vLLM server."""

    install_hint = "Install it with 'pip install vllm' into the environment whose bin directory is on PATH."
    config_keys = frozenset(ARGUMENT_KEYS)
    reserved_options = {"--host": "host", "--port": "port", "--model": "model"}  # noqa: RUF012
    endpoint_paths = {  # noqa: RUF012
        "health": "/health",
        "models": "/v1/models",
        "completions": "/v1/completions",
        "chat": "/v1/chat/completions",
        "responses": "/v1/responses",
        "messages": "/v1/messages",
        "embeddings": "/v1/embeddings",
        "tokenize": "/tokenize",
        "detokenize": "/detokenize",
        "metrics": "/metrics",
        "version": "/version",
        "ping": "/ping",
        "load": "/load",
    }
    api_key_variables = ("VLLM_API_KEY",)
    fatal_patterns = (re.compile(rb"Engine core initialization failed|EngineCore failed to start"),)
    # An engine failure ends in generic lines; the cause is an earlier line of the engine process.
    cause_patterns = (
        re.compile(rb"\((?:EngineCore|Worker)\S*(?: \S+)* pid=\d+\) ERROR.*\b\w+(?:Error|Exception): "),
        re.compile(rb"\[Errno 98\] Address already in use"),
        re.compile(rb"error: (?:unrecognized|argument|the following) .*"),
    )
    download_patterns = HUB_DOWNLOADS
    # A clean exit leaves its ZeroMQ sockets, each named by a UUID, and the file through which its workers met.
    known_leftovers = ("socket:????????-????-????-????-????????????", "file:vllm_dist_*")

    def get_backend_name(self) -> str:
        """Return ``vllm``."""
        return "vllm"

    def get_binary_path(self) -> str:
        """Return the ``vllm`` command."""
        return "vllm"

    def get_launch_command(self) -> list[str]:
        """Return ``vllm serve MODEL --host HOST --port PORT`` and the configured arguments."""
        address = ["--host", self.host, "--port", str(self.port)]
        return [self.binary_path, "serve", self.model_path, *address, *self.server_args()]
