"""Any server that a command line starts, described by YAML alone."""

from __future__ import annotations

from pytest_infserver.launcher.checks.settings import written_words
from pytest_infserver.launcher.placeholders import named_in
from pytest_infserver.launcher.server import InferenceServer


class CommandServer(InferenceServer):
    """A server started by ``launch_command``, which knows ``{model}``, ``{host}``, ``{port}`` and ``{ports.NAME}``."""

    install_hint = "The binary is the first word of 'launch_command'."
    requires_model = False

    def _check_settings(self) -> None:
        super()._check_settings()
        command = self.settings.launch_command
        if command is None:
            if not self.attached:
                raise self.settings.error("backend 'command' needs a 'launch_command', a list of words")
            return
        named = {name for _, text in written_words(self.settings) for name in named_in(text)}
        if "port" not in named and self.settings.port is None and self._needs_port():
            message = "say where the server listens: write {port} into 'launch_command' or 'env_vars', or set 'port'"
            raise self.settings.error(message, "launch_command")
        if "model" in named and not self.settings.model:
            raise self.settings.error("'launch_command' names {model}, but there is no 'model'", "launch_command")

    def _needs_port(self) -> bool:
        """Return whether something is asked at the server's own port."""
        on_socket = self.reach.uds is not None
        ready = self.settings.ready
        elsewhere = ready is not None and all("port" in one or {"log", "command"} & set(one) for one in ready)
        return not on_socket and not elsewhere

    def get_backend_name(self) -> str:
        """Return ``command``."""
        return "command"

    def get_binary_path(self) -> str:
        """Return the first word of the launch command."""
        return (self.settings.launch_command or ("",))[0]

    def get_launch_command(self) -> list[str]:
        """Return the configured command, its placeholders filled in, and the configured arguments."""
        return self.fill([self.binary_path, *(self.settings.launch_command or ())[1:]]) + self.server_args()
