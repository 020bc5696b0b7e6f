"""A server that runs already, of whatever engine."""

from __future__ import annotations

from pytest_infserver.launcher.server import InferenceServer


class RemoteServer(InferenceServer):
    """A server at ``url``: never started and never stopped by this package."""

    requires_model = False
    endpoint_paths = {  # noqa: RUF012
        "health": "/health",
        "models": "/v1/models",
        "completions": "/v1/completions",
        "chat": "/v1/chat/completions",
    }

    def _check_settings(self) -> None:
        super()._check_settings()
        if not self.attached:
            raise self.settings.error("backend 'remote' needs a 'url'")

    def get_backend_name(self) -> str:
        """Return ``remote``."""
        return "remote"

    def get_binary_path(self) -> str:
        """Return nothing: there is no binary."""
        return ""

    def get_launch_command(self) -> list[str]:
        """Return nothing: there is no command."""
        return []
