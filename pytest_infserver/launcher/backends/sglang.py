"""SGLang: ``python -m sglang.launch_server``. Facts from SGLang 0.5.23."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from pytest_infserver.config.flags import ARGUMENT_KEYS
from pytest_infserver.errors import ServerStartupError
from pytest_infserver.launcher.backends.hub import HUB_DOWNLOADS
from pytest_infserver.launcher.server import InferenceServer


class SGLangServer(InferenceServer):
    """An SGLang server. ``binary_path`` may be a Python interpreter or the ``sglang`` command."""

    install_hint = "Install it with 'pip install sglang'."
    config_keys = frozenset(ARGUMENT_KEYS)
    reserved_options = {  # noqa: RUF012
        "--host": "host",
        "--port": "port",
        "--model-path": "model",
        "--model": "model",
    }
    endpoint_paths = {  # noqa: RUF012
        "health": "/health",
        "health_generate": "/health_generate",
        "models": "/v1/models",
        "completions": "/v1/completions",
        "chat": "/v1/chat/completions",
        "embeddings": "/v1/embeddings",
        "generate": "/generate",
        "metrics": "/metrics",
        "model_info": "/get_model_info",
        "server_info": "/get_server_info",
        "flush_cache": "/flush_cache",
    }
    known_leftovers = ("shm:sglang_loads_*",)
    fatal_patterns = (re.compile(rb"Scheduler hit an exception"),)
    cause_patterns = (re.compile(rb"Scheduler hit an exception|error: (?:unrecognized|argument) .*"),)
    download_patterns = HUB_DOWNLOADS

    def get_backend_name(self) -> str:
        """Return ``sglang``."""
        return "sglang"

    def get_binary_path(self) -> str:
        """Return this Python interpreter: SGLang is expected in its environment."""
        return sys.executable

    def get_launch_command(self) -> list[str]:
        """Return ``python -m sglang.launch_server --model-path MODEL``, or ``sglang serve`` for that binary."""
        python = Path(self.binary_path).name.startswith(("python", "pypy"))
        start = ["-m", "sglang.launch_server"] if python else ["serve"]
        address = ["--host", self.host, "--port", str(self.port)]
        return [self.binary_path, *start, "--model-path", self.model_path, *address, *self.server_args()]

    def require_engine(self) -> None:
        """Make sure that SGLang is there, where that can be seen without starting it.

        Raises:
            ServerStartupError: It is not.
        """
        super().require_engine()
        if self.binary_path == sys.executable and importlib.util.find_spec("sglang") is None:
            raise ServerStartupError(
                f"{self} cannot start: the package 'sglang' is not installed for {sys.executable}."
                f" {self.install_hint} Or name another environment's interpreter or 'sglang' command with"
                " 'binary_path:' (YAML) or binary_path=... (Python)."
            )
