"""Any server that a command line starts, described by YAML alone."""

from __future__ import annotations

import re
from difflib import get_close_matches

from pytest_infserver.launcher.server import InferenceServer

_PLACEHOLDERS = ("model", "host", "port")


class CommandServer(InferenceServer):
    """A server started by ``launch_command``, which knows ``{model}``, ``{host}`` and ``{port}``."""

    install_hint = "The binary is the first word of 'launch_command'."
    requires_model = False

    def _check_settings(self) -> None:
        super()._check_settings()
        command = self.settings.launch_command
        if command is None:
            if not self.attached:
                raise self.settings.error("backend 'command' needs a 'launch_command', a list of words")
            return
        self._check_placeholders(command)
        if "{port}" not in " ".join(command) and self.settings.port is None:
            message = "say where the server listens: write {port} into 'launch_command', or set 'port'"
            raise self.settings.error(message, "launch_command")
        if "{model}" in " ".join(command) and not self.settings.model:
            raise self.settings.error("'launch_command' names {model}, but there is no 'model'", "launch_command")

    def _check_placeholders(self, command: tuple[str, ...]) -> None:
        for index, word in enumerate(command):
            for name in re.findall(r"\{(\w+)\}", word):
                near = get_close_matches(name, _PLACEHOLDERS, n=1)
                if near and name not in _PLACEHOLDERS:
                    message = f"unknown placeholder {{{name}}}; did you mean {{{near[0]}}}?"
                    raise self.settings.error(message, "launch_command", index)

    def get_backend_name(self) -> str:
        """Return ``command``."""
        return "command"

    def get_binary_path(self) -> str:
        """Return the first word of the launch command."""
        return (self.settings.launch_command or ("",))[0]

    def get_launch_command(self) -> list[str]:
        """Return the configured command, its placeholders filled in, and the configured arguments."""
        values = {"model": self.model_path, "host": self.host, "port": str(self.port)}
        words = [self.binary_path, *(self.settings.launch_command or ())[1:]]
        return [_filled(word, values) for word in words] + self.server_args()


def _filled(word: str, values: dict[str, str]) -> str:
    # Not str.format: a JSON argument is full of braces.
    return re.sub(rf"\{{({'|'.join(_PLACEHOLDERS)})\}}", lambda match: values[match.group(1)], word)
