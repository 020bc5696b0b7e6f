"""SGLang: ``python -m sglang.launch_server``. Facts from SGLang 0.5.23."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_infserver.config.flags import ARGUMENT_KEYS
from pytest_infserver.errors import ServerStartupError
from pytest_infserver.launcher.backends.hub import HUB_DOWNLOADS
from pytest_infserver.launcher.engine.address_flags import AddressFlags
from pytest_infserver.launcher.engine.arguments import option_values
from pytest_infserver.launcher.engine.changed_options import ChangedOption
from pytest_infserver.launcher.engine.sleep_requests import SleepRequests
from pytest_infserver.launcher.profiling.endpoints import Options, ProfileEndpoints
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.launcher.share import SeveralNodes
from pytest_infserver.launcher.startup.phases import Phase


def _nothing(folder: str, version: str | None, options: Options) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return that SGLang needs no setting: each request says where its traces go."""
    return [], {}


def _profile_request(folder: str, options: Options) -> Mapping[str, Any]:
    return {"output_dir": folder, **options}


def _capture_request(folder: str, options: Options) -> Mapping[str, Any]:
    return {"output_dir": folder, "activities": ["CUDA_PROFILER"]}


class SGLangServer(InferenceServer):
    """An SGLang server. ``binary_path`` may be a Python interpreter or the ``sglang`` command."""

    install_hint = "Install it with 'pip install sglang'."
    packages = ("sglang",)
    # Checked against the parser of SGLang 0.5.23; some are gone for longer.
    changed_options = (
        ChangedOption("--mem-fraction-reserved", "write --mem-fraction-static, the share for weights and KV cache"),
        ChangedOption("--enable-ep-moe", "write --ep-size", since="0.5.23"),
        ChangedOption("--enable-deepep-moe", "write --moe-a2a-backend deepep", since="0.5.23"),
        ChangedOption("--cuda-graph-max-bs", "write --cuda-graph-max-bs-decode", since="0.5.23"),
        ChangedOption("--cuda-graph-bs", "write --cuda-graph-bs-decode", since="0.5.23"),
    )
    takes_entrypoint = True
    config_keys = frozenset(ARGUMENT_KEYS)
    uses_gpus = True
    # --tp and the like are argparse's abbreviations.
    parallel_sizes = (
        ("--tensor-parallel-size", "--tp-size", "--tp"),
        ("--pipeline-parallel-size", "--pp-size", "--pp"),
        ("--data-parallel-size", "--dp-size", "--dp"),
    )
    inner_sizes = {"--data-parallel-size": "--enable-dp-attention"}  # noqa: RUF012
    node_counts = ("--nnodes",)
    several_nodes = SeveralNodes.RANKS
    node_options = {  # noqa: RUF012
        "--nnodes": "the key 'nodes' says it",
        "--node-rank": "each node is told its own",
        "--dist-init-addr": "the address is chosen on the node of rank 0",
        "--nccl-init-addr": "the address is chosen on the node of rank 0",
        "--use-ray": "SGLang would place its schedulers itself",
    }
    reserved_options = {  # noqa: RUF012
        "--host": "host",
        "--port": "port",
        "--model-path": "model",
        "--model": "model",
    }
    # Its --fastapi-root-path is for a proxy: requests without that path are answered.
    address_flags = AddressFlags(certificate=("--ssl-certfile",), api_key=("--api-key",), added=("api_key",))
    drawn_ports = range(22000, 30000)
    torch_endpoints = ProfileEndpoints(_nothing, _profile_request)
    cuda_endpoints = ProfileEndpoints(_nothing, _capture_request)
    endpoint_paths = {  # noqa: RUF012
        "health": "/health",
        "health_generate": "/health_generate",
        "models": "/v1/models",
        "completions": "/v1/completions",
        "chat": "/v1/chat/completions",
        "responses": "/v1/responses",
        "messages": "/v1/messages",
        "embeddings": "/v1/embeddings",
        "rerank": "/v1/rerank",
        "tokenize": "/v1/tokenize",
        "detokenize": "/v1/detokenize",
        "generate": "/generate",
        "metrics": "/metrics",
        "model_info": "/get_model_info",
        "server_info": "/get_server_info",
        "flush_cache": "/flush_cache",
        "pause": "/pause_generation",
        "resume": "/continue_generation",
        "sleep": "/release_memory_occupation",
        "wake_up": "/resume_memory_occupation",
    }
    mounted_endpoints = frozenset({"metrics"})  # with --enable-metrics
    # At its stop it kills its own processes: what they share, and sockets and files named by Python's tempfile, stay.
    known_leftovers = (
        "shm:sglang_loads_*",
        "shm:sgl_shm_mq_*",
        "semaphore:sem.mp-????????",
        "socket:tmp????????",
        "file:tmp????????",
    )
    # It binds its port when the model is loaded, and needs 10 s more to end if it cannot.
    fatal_patterns = (re.compile(rb"Scheduler hit an exception|error while attempting to bind on address"),)
    noise_patterns = (re.compile(rb"Ignore import error when loading|Received sigquit from a child process"),)
    cause_patterns = (
        re.compile(rb"Scheduler hit an exception|error: (?:unrecognized|argument) .*"),
        # All that a rank on another node says of its scheduler's end.
        re.compile(rb"Scheduler or DataParallelController \d+ terminated with -?[1-9]"),
    )
    download_patterns = HUB_DOWNLOADS
    first_phase = "importing"
    phases = (
        Phase(re.compile(rb"[Ll]oading \w* ?(?:checkpoint )?shards: +(\d+)%"), "loading weights {} %"),
        Phase(re.compile(rb"Load weight begin"), "loading weights"),
        Phase(re.compile(rb"Init (?:parallel|torch distributed) begin"), "starting the engine"),
        Phase(re.compile(rb"Load weight end|KV Cache is allocated"), "allocating the KV cache"),
        Phase(re.compile(rb"Capturing batches[^%]*?(\d+)%"), "capturing graphs {} %"),
        Phase(re.compile(rb"Capture .*graph begin"), "capturing graphs"),
        Phase(re.compile(rb"Application startup complete"), "warming up"),
        Phase(re.compile(rb"The server is fired up"), "nearly ready"),
    )

    sleep_requests = SleepRequests(
        "/release_memory_occupation",
        "/resume_memory_occupation",
        advice="SGLang gives memory back with --enable-memory-saver",
    )

    def get_backend_name(self) -> str:
        """Return ``sglang``."""
        return "sglang"

    def get_binary_path(self) -> str:
        """Return this Python interpreter: SGLang is expected in its environment."""
        return sys.executable

    def get_launch_command(self) -> list[str]:
        """Return ``python -m sglang.launch_server --model-path MODEL``, or ``sglang serve`` for that binary."""
        address = ["--host", self.host, "--port", str(self.port)]
        words = [*self.options_entry, "--model-path", self.model_path, *address, *self.server_args()]
        if self.share is None:
            return words
        ranks = ["--nnodes", str(self.share.nodes), "--node-rank", str(self.share.rank)]
        return [*words, *ranks, "--dist-init-addr", self.share.meeting]

    @property
    def options_entry(self) -> Sequence[str]:
        """``python -m sglang.launch_server``, or ``sglang serve`` for that binary."""
        python = Path(self.binary_path).name.startswith(("python", "pypy"))
        return self.entry(*(["-m", "sglang.launch_server"] if python else ["serve"]))

    def derived_ports(self, port: int) -> Sequence[int]:
        """Return what data parallel attention takes besides ``port``: a handshake at +13, and the block from +233 on.

        Source: `PortArgs.init_new` and `DataParallelController` of SGLang 0.5.23. Plain data parallel uses unix
        sockets. One port more for each rank is for the server in Rust.
        """
        argv = self.server_args()
        if self.share is not None or "--enable-dp-attention" not in argv or option_values(argv, "--dist-init-addr"):
            return ()
        count = 7 + self._data_parallel_size()
        first = port + 233
        if first + count > 65535:
            first = port - 233
        return (port + 13, *range(first, first + count))

    def meeting_ports(self, port: int) -> Sequence[int]:
        """Return what data parallel attention takes besides the port where the ranks meet: see `derived_ports`."""
        if "--enable-dp-attention" not in self.server_args():
            return ()
        return tuple({port + 13, *range(port + 1, port + 7 + self._data_parallel_size())})

    def _data_parallel_size(self) -> int:
        sizes = option_values(self.server_args(), "--dp", "--dp-size", "--data-parallel-size")
        size = sizes[-1][0] if sizes and sizes[-1] else ""
        return int(size) if size.isascii() and size.isdigit() else 1

    def require_engine(self) -> None:
        """Make sure that SGLang is there, where that can be seen without starting it.

        Raises:
            ServerStartupError: It is not.
        """
        super().require_engine()
        usual = self.settings.entrypoint is None
        if usual and self.binary_path == sys.executable and importlib.util.find_spec("sglang") is None:
            raise ServerStartupError(
                f"{self} cannot start: the package 'sglang' is not installed for {sys.executable}."
                f" {self.install_hint} Or name another environment's interpreter or 'sglang' command with"
                " 'binary_path:' (YAML) or binary_path=... (Python)."
            )
