"""llama.cpp: ``llama-server`` from PATH, else the same server embedded in the package xllamacpp."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_infserver.config.flags import ARGUMENT_KEYS
from pytest_infserver.errors import ServerStartupError
from pytest_infserver.launcher.engine.address_flags import AddressFlags, setting
from pytest_infserver.launcher.engine.arguments import option_values
from pytest_infserver.launcher.engine.known_options.option_table import KnownOption, OptionTable
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.launcher.startup.phases import Phase
from pytest_infserver.models.builtin import is_builtin


@functools.lru_cache
def embedded_options() -> OptionTable:
    """Return what the embedded llama.cpp accepts."""
    from pytest_infserver.embedded_llamacpp.options import OPTIONS, complaint_of

    options = [
        KnownOption((*one.flags, *one.off), 0 if one.parse is None else 1, complaint=complaint_of(one))
        for one in OPTIONS
    ]
    options.append(KnownOption(("-h", "--help", "--usage", "--version"), 0))
    return OptionTable(
        "the embedded llama.cpp",
        tuple(options),
        abbreviations=False,
        greedy=True,
        few_places=True,
        with_equals=False,
        knows_short=True,
    )


class LlamaCppServer(InferenceServer):
    """A llama.cpp server. ``binary_path`` may name a ``llama-server``."""

    install_hint = "Install llama.cpp, or \"pip install 'pytest-infserver[llamacpp]'\" for the embedded one."
    packages = ("xllamacpp",)
    takes_entrypoint = True
    config_keys = frozenset(ARGUMENT_KEYS)
    reserved_options = {"--host": "host", "--port": "port", "--model": "model", "-m": "model"}  # noqa: RUF012
    endpoint_paths = {  # noqa: RUF012
        "health": "/health",
        "models": "/v1/models",
        "completions": "/v1/completions",
        "chat": "/v1/chat/completions",
        "responses": "/v1/responses",
        "messages": "/v1/messages",
        "tokenize": "/tokenize",
        "detokenize": "/detokenize",
        "props": "/props",
        "slots": "/slots",
        "metrics": "/metrics",
        "embeddings": "/v1/embeddings",
        "rerank": "/v1/rerank",
    }
    name_options = ("--alias", "-a")
    adapter_options = ()
    model_sources = (
        *("--models-dir", "--models-preset", "--hf-repo", "-hf", "-hfr", "--docker-repo", "-dr", "--model-url", "-mu"),
        *("LLAMA_ARG_MODELS_DIR", "LLAMA_ARG_MODELS_PRESET", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_DOCKER_REPO"),
        *("LLAMA_ARG_MODEL", "LLAMA_ARG_MODEL_URL"),
        # Such as --fim-qwen-7b-default.
        "--*-default",
    )
    address_flags = AddressFlags(
        certificate=("--ssl-cert-file", "LLAMA_ARG_SSL_CERT_FILE"),
        base_path=("--api-prefix", "LLAMA_ARG_API_PREFIX"),
        api_key=("--api-key",),
        key_file=("--api-key-file",),
        added=("base_path",),
    )
    api_key_variables = ("LLAMA_API_KEY",)
    # The one of --host: seen with build 10434.
    known_leftovers = ("socket:*.sock",)
    fatal_patterns = (re.compile(rb"exiting due to model loading error|couldn't bind HTTP server socket"),)
    cause_patterns = (
        re.compile(rb"error: invalid argument.*|error while handling argument.*"),
        re.compile(rb"couldn't bind HTTP server socket"),
        re.compile(rb"gguf_init_from_file.*: failed|error loading model|failed to load model"),
    )

    # It works in native threads while its Python waits.
    py_spy_args = ("--idle",)
    works_in_native_code = True
    phases = (
        Phase(re.compile(rb"load_model: loading model|llama_model_loader: loaded meta"), "loading weights"),
        Phase(re.compile(rb"warming up the model"), "warming up"),
        Phase(re.compile(rb"server is listening|model loaded"), "nearly ready"),
    )

    def _check_settings(self) -> None:
        super()._check_settings()
        uds = self.settings.uds
        if uds is not None and not uds.endswith(".sock") and not self.attached:
            raise self.settings.error("'uds': llama-server takes a path for a socket only if it ends with .sock", "uds")
        prefix = setting(self.address_flags.base_path, self.server_args(), self.env_vars)
        if prefix is not None and not self.attached and prefix[0] != (usual := f"/{prefix[0].strip('/')}"):
            # Nothing would be found below a path without a slash, nor below one with two of them.
            message = f"llama-server puts '{prefix[1]}' before its paths as it is: write {usual}, not {prefix[0]}"
            raise self.settings.error(message, "config")

    def get_backend_name(self) -> str:
        """Return ``llamacpp``."""
        return "llamacpp"

    def get_binary_path(self) -> str:
        """Return ``llama-server`` if it is on PATH, else this Python interpreter, which runs the embedded one."""
        return shutil.which("llama-server") or sys.executable

    def get_launch_command(self) -> list[str]:
        """Return ``llama-server --model MODEL --host HOST --port PORT`` and the configured arguments."""
        arguments = self.server_args()
        # A host that ends like this is a unix socket.
        address = ["--host", self.settings.uds or self.host, "--port", str(self.port)]
        # Without a model it is a router, or fetches what --hf-repo names.
        model = ["--model", self.model_path, *self._for_builtin_model(arguments)] if self.model else []
        return [*self.options_entry, *model, *address, *arguments]

    @property
    def options_entry(self) -> Sequence[str]:
        """``llama-server``, or the embedded one's words."""
        # -P (Python 3.11): a module of the user's in the working directory must not take a library's place.
        python = ["-P"] if sys.version_info >= (3, 11) else []
        return self.entry(*([*python, "-m", "pytest_infserver.embedded_llamacpp.server"] if self._embedded() else []))

    @property
    def own_options(self) -> OptionTable | None:
        """What the embedded one accepts; a ``llama-server`` is asked."""
        return embedded_options() if self._embedded() else None

    @property
    def prints_options(self) -> bool:
        """Whether it is a ``llama-server``."""
        is_one = Path(self.binary_path).name.startswith("llama-server")
        return is_one and not self._embedded() and self.settings.entrypoint is None

    @property
    def api_key(self) -> str | None:
        """The first API key that the server was given, or None; llama-server takes several, comma-separated."""
        keys = super().api_key
        return None if keys is None else keys.partition(",")[0]

    def list_endpoints(self) -> dict[str, str]:
        """Return name to URL; what llama-server only has behind a flag needs that flag. It has no OpenAPI."""
        arguments = self.server_args()
        optional = {
            "metrics": "--metrics" in arguments,
            "embeddings": "--embeddings" in arguments or "--embedding" in arguments,
            "rerank": "--rerank" in arguments or "--reranking" in arguments,
            "slots": "--no-slots" not in arguments,
        }
        return {name: url for name, url in super().list_endpoints().items() if optional.get(name, True)}

    def why_not_profiled(self, tool: str) -> str | None:
        """Return why not: a ``llama-server`` has no Python."""
        if tool == "py-spy" and not self._embedded():
            return f"{self.binary_path} is no Python program; nsys can profile it"
        return None

    def require_engine(self) -> None:
        """Make sure that there is a llama-server or the embedded one.

        Raises:
            ServerStartupError: There is neither.
        """
        super().require_engine()
        if self._embedded() and importlib.util.find_spec("xllamacpp") is None:
            raise ServerStartupError(
                f"{self} cannot start: no 'llama-server' is on PATH, and the package 'xllamacpp' is not installed for"
                f" {sys.executable}. {self.install_hint} Or name a llama-server with 'binary_path:' (YAML) or"
                " binary_path=... (Python)."
            )

    def _for_builtin_model(self, arguments: list[str]) -> list[str]:
        words = []
        if is_builtin(self.model) and not option_values(arguments, "--alias", "-a"):
            # Otherwise clients are told that the model is called like its file in the cache.
            words += ["--alias", self.model]
        if self.model == "builtin:tiny" and not option_values(arguments, "--threads", "-t"):
            # Several threads spin for one another: on a loaded machine seconds instead of milliseconds.
            words += ["--threads", "1"]
        return words

    def _embedded(self) -> bool:
        return self.binary_path == sys.executable and self.settings.entrypoint is None
