"""The flags and variables by which an engine is told where it is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_infserver.launcher.engine.arguments import option_values


@dataclass(frozen=True)
class AddressFlags:
    """Names of an engine's settings: flags, which begin with a dash, and environment variables.

    Attributes:
        certificate: The certificate with which it speaks TLS.
        uds: The unix socket on which it listens instead of the port.
        base_path: What all of its paths begin with.
        api_key: The key, or keys, that requests need.
        key_file: A file with such keys, one a line.
        abstract_uds: Whether a socket's name that begins with ``@`` is in no file system.
        base_path_optional: Whether the engine answers requests without the base path, too, and with it only if that is
            written in the usual way.
        added: Keys of the settings that the engine is told by the first of these flags: uds, base_path, api_key.
    """

    certificate: tuple[str, ...] = ()
    uds: tuple[str, ...] = ()
    base_path: tuple[str, ...] = ()
    api_key: tuple[str, ...] = ()
    key_file: tuple[str, ...] = ()
    abstract_uds: bool = False
    base_path_optional: bool = False
    added: tuple[str, ...] = ()

    def seen_base_path(self, value: str) -> str:
        """Return the base path of requests, where the engine was told ``value``."""
        usual = value.startswith("/") and not value.endswith("/") and "%" not in value
        return "" if self.base_path_optional and not usual else value

    def words_for(self, settings: Mapping[str, str | None], words: Sequence[str]) -> list[str]:
        """Return the arguments that tell the engine what is configured, as far as ``words`` do not do so already.

        Args:
            settings: The keys `uds`, `base_path` and `api_key`, with their values.
            words: The engine's other arguments.
        """
        found: list[str] = []
        for key in self.added:
            value, flags = settings.get(key), getattr(self, key)
            if value is not None and not option_values(words, *flags):
                found += [flags[0], value]
        return found


GENERIC = AddressFlags(
    certificate=("--ssl-certfile", "--ssl-cert-file", "--ssl-certificate"),
    uds=("--uds",),
    base_path=("--api-prefix",),
    api_key=("--api-key",),
    key_file=("--api-key-file",),
    abstract_uds=True,
)
"""What most servers call them; a ``--root-path`` means a path for some of them, and for others a proxy's."""


def setting(names: Sequence[str], argv: Sequence[str], env: Mapping[str, str | None]) -> tuple[str, str] | None:
    """Return the value that an engine is given last by one of these flags, else by a variable, and by which one."""
    flags = [name for name in names if name.startswith("-")]
    for flag in flags:
        values = [words[0] for words in option_values(argv, flag) if words and words[0]]
        if values:
            return values[-1], flag
    for name in names:
        if not name.startswith("-") and env.get(name):
            return env[name] or "", name
    return None


def first_key(text: str) -> str | None:
    """Return the first key of a file of them; lines that begin with ``#`` are comments."""
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), None)


def read_key(path: Path, read: Callable[[Path], str]) -> str | None:
    """Return the first key of a file, or None if it cannot be read."""
    try:
        return first_key(read(path))
    except (OSError, UnicodeError):
        return None
