"""Hugging Face transformers: ``transformers serve MODEL``. Facts from transformers 5.23."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_infserver.config.flags import ARGUMENT_KEYS
from pytest_infserver.launcher.backends.hub import HUB_DOWNLOADS
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.launcher.startup.phases import Phase


class TransformersServer(InferenceServer):
    """A ``transformers serve`` server."""

    install_hint = "Install it with \"pip install 'transformers[serving]'\"."
    packages = ("transformers",)
    takes_entrypoint = True
    config_keys = frozenset(ARGUMENT_KEYS)
    # Its default is --device auto, which spreads a model over all GPUs.
    uses_gpus = True
    reserved_options = {"--host": "host", "--port": "port"}  # noqa: RUF012
    # /v1/models is left out: it asks the hub, and answers 500 offline.
    endpoint_paths = {  # noqa: RUF012
        "health": "/health",
        "completions": "/v1/completions",
        "chat": "/v1/chat/completions",
        "responses": "/v1/responses",
    }
    fatal_patterns = (re.compile(rb"error while attempting to bind on address|Application startup failed"),)
    download_patterns = HUB_DOWNLOADS
    first_phase = "importing"
    phases = (
        Phase(re.compile(rb"Loading (?:weights|checkpoint shards): +(\d+)%"), "loading weights {} %"),
        Phase(re.compile(rb"\[transformers\] Loading "), "loading weights"),
        Phase(re.compile(rb"Application startup complete"), "nearly ready"),
    )

    def get_backend_name(self) -> str:
        """Return ``transformers``."""
        return "transformers"

    def get_binary_path(self) -> str:
        """Return the ``transformers`` command."""
        return "transformers"

    def get_launch_command(self) -> list[str]:
        """Return ``transformers serve MODEL --host HOST --port PORT`` and the configured arguments."""
        address = ["--host", self.host, "--port", str(self.port)]
        return [*self.entry("serve"), self.model_path, *address, *self.server_args()]

    @property
    def options_entry(self) -> Sequence[str] | None:
        """``transformers serve``."""
        return self.entry("serve")
