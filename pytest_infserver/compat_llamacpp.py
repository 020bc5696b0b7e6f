"""``ServerProcess`` with the interface of the class in llama.cpp's own tests, on this package's launcher."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from pytest_infserver.compat_vllm import name_of_test_file
from pytest_infserver.launcher.backends.llamacpp import LlamaCppServer
from pytest_infserver.launcher.clients.joined_stream import join_chat
from pytest_infserver.launcher.engine_process import EngineProcess

_FLAGS = (  # attributes, each with its flag where that is called otherwise
    "temperature:temp seed offline model_url model_draft model_draft_hf_repo:hf-repo-draft model_hf_repo:hf-repo"
    " model_hf_file:hf-file models_dir models_max models_preset no_models_autoload model_alias:alias model_tags:tags"
    " n_ctx:ctx-size n_batch:batch-size n_ubatch:ubatch-size n_threads:threads n_gpu_layer:n-gpu-layers n_predict"
    " n_slots:parallel n_ga:grp-attn-n n_ga_w:grp-attn-w server_continuous_batching:cont-batching"
    " server_embeddings:embedding server_reranking:reranking server_metrics:metrics server_tools:tools"
    " server_tools_runtime:tools-runtime kv_unified swa_full pooling ctk:cache-type-k ctv:cache-type-v"
    " ctkd:cache-type-k-draft fa:flash-attn slot_save_path api_key enable_ctx_shift:context-shift spec_type"
    " spec_draft_n_min spec_draft_n_max spec_synth_len spec_synth_rates no_ui reasoning_format reasoning chat_template"
    " chat_template_file mmproj_url no_mmproj media_path sleep_idle_seconds cache_ram no_cache_idle_slots ui_mcp_proxy"
    " mcp_servers_config mcp_servers_json backend_sampling cors_origins debug:verbose"
)
_MAY_BE_ZERO = {"temperature", "seed", "models_max", "spec_synth_len", "sleep_idle_seconds", "cache_ram"}

# Without a model it is a router.
_Server: Any = type("_Server", (LlamaCppServer,), {"requires_model": False, "__module__": __name__})

server_instances: set[ServerProcess] = set()
"""Those that have been started and not stopped."""


class ServerError(Exception):
    """The server has refused a stream: ``code`` is the status of its answer, ``body`` what that says."""

    def __init__(self, code: int, body: Any) -> None:
        super().__init__(code, body)
        self.code, self.body = code, body


class ServerResponse:
    """An answer: ``status_code``, ``headers``, and as ``body`` its JSON, else its text; None for OPTIONS."""

    def __init__(self, answer: requests.Response) -> None:
        self.status_code, self.headers, self.body = answer.status_code, dict(answer.headers), None
        if answer.request.method != "OPTIONS":
            try:
                self.body = answer.json()
            except ValueError:
                self.body = answer.text


class ServerProcess:
    """A ``llama-server``, or the embedded llama.cpp. Its arguments are the attributes that were set and are not empty.

    Further ones: ``model_file`` (or ``builtin:tiny``), ``lora_files``, ``jinja``, ``server_slots``, ``server_path``,
    ``log_path``, ``gcp_compat``.
    """

    def __init__(self) -> None:
        self.server_host, self.server_port = "127.0.0.1", int(os.environ.get("PORT", "8080"))
        self.temperature, self.seed, self.debug = 0.8, 42, "DEBUG" in os.environ
        self.n_gpu_layer = int(os.environ.get("N_GPU_LAYERS", "0"))
        self.server: LlamaCppServer | None = None

    def __getattr__(self, name: str) -> Any:
        return None if not name.startswith("_") else object.__getattribute__(self, name)

    @property
    def process(self) -> EngineProcess | None:
        """The server's process, while it is started."""
        return None if self.server is None else self.server.process

    def start(self, timeout_seconds: float = 60) -> None:
        """Start the server and return when it is ready; a `RuntimeError` if that is not so in time."""
        env = {"LLAMA_SERVER_DEBUG_FAKE_TIMING": "1", "LLAMA_CACHE": os.environ.get("LLAMA_CACHE", "tmp")}
        if self.gcp_compat:
            env.update(AIP_MODE="PREDICTION", AIP_HTTP_PORT=str(self.server_port))
        binary = self.server_path or os.environ.get("LLAMA_SERVER_BIN_PATH")
        where = {"host": self.server_host, "port": self.server_port, "binary_path": binary, "env_vars": env}
        limits = {"startup_timeout": timeout_seconds, "stop_timeout": 5, "config": {"server_args": self._words()}}
        self.server = _Server(self.model_file, name=name_of_test_file("llamacpp"), **where, **limits)
        server_instances.add(self)
        try:
            self.server.start()
        finally:
            if self.log_path:
                Path(self.log_path).unlink(missing_ok=True)
                Path(self.log_path).symlink_to(self.server.log_path)

    def stop(self) -> None:
        """Stop the server; no effect if it was not started."""
        server_instances.discard(self)
        server, self.server = self.server, None
        if server is not None:
            server.stop()

    def _words(self) -> list[str]:
        words = ["--jinja" if self.jinja else "--no-jinja", "--slots" if self.server_slots else "--no-slots"]
        for attribute, _, flag in (one.partition(":") for one in _FLAGS.split()):
            value = getattr(self, attribute)
            if value or (value == 0 and value is not False and attribute in _MAY_BE_ZERO):
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                words += [f"--{(flag or attribute).replace('_', '-')}", *([] if value is True else [text])]
        return words + [word for file in self.lora_files or () for word in ("--lora", str(file))]

    def make_url(self, path: str, host: str | None = None) -> str:
        """Return the URL of a path, on the first of its addresses or another one."""
        return f"http://{host or self.server_host.partition(',')[0].strip()}:{self.server_port}{path}"

    def make_request(
        self, method: str, path: str, data: Any = None, headers: Any = None, timeout: Any = 600, host: Any = None
    ) -> ServerResponse:
        """Send a request, with ``data`` as JSON, and return the answer."""
        return ServerResponse(self._send(method, path, data, headers, host, timeout=timeout))

    def make_stream_request(
        self, method: str, path: str, data: Any = None, headers: Any = None, host: Any = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream; a `ServerError` if it is refused."""
        with self._send(method, path, data, headers, host, stream=True) as answer:
            if answer.status_code != requests.codes.ok:
                raise ServerError(answer.status_code, answer.json())
            for kind, _, event in (line.decode().partition(": ") for line in answer.iter_lines()):
                if event == "[DONE]":
                    return
                if kind == "data":
                    yield json.loads(event)

    def _send(self, method: str, path: str, data: Any, headers: Any, host: Any, **settings: Any) -> requests.Response:
        settings["proxies"] = {"http": "", "https": ""}
        return requests.request(method, self.make_url(path, host), headers=headers, json=data, **settings)

    def make_any_request(self, method: str, path: str, data: Any, headers: Any = None, timeout: Any = 600) -> Any:
        """Return the body of a chat completion, put together if ``data`` asks for a stream."""
        if not data.get("stream"):
            answer = self.make_request(method, path, data, headers, timeout)
            assert answer.status_code == requests.codes.ok, f"{answer.status_code}: {answer.body}"
            return answer.body
        return join_chat(self.make_stream_request(method, path, data, headers))
