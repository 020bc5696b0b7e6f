"""What tests and the starts of servers took in an earlier run, in a file that can be committed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_infserver.errors import ConfigError
from pytest_infserver.system.disk.files import FOR_ALL, read_start, write_whole

DEFAULT_NAME = "infserver_durations.json"
"""The file's name, in pytest's rootdir."""
_MAX_READ = 64 << 20
_ADVICE = "mend it, or delete it and write it anew with --infserver-save-durations"


@dataclass(frozen=True)
class Durations:
    """What an earlier run took.

    Attributes:
        tests: Node id to seconds, without the wait for a server.
        starts: Name of a server to the seconds until it was ready.
    """

    tests: Mapping[str, float] = field(default_factory=dict)
    starts: Mapping[str, float] = field(default_factory=dict)


def read_durations(path: Path) -> Durations:
    """Return what a file says; nothing if there is none.

    Raises:
        ConfigError: It cannot be read, or is not such a file.
    """
    try:
        # A user may have made it a link, which is then that file.
        data = read_start(path.resolve(), _MAX_READ + 1)
    except FileNotFoundError:
        return Durations()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    if len(data) > _MAX_READ:
        raise ConfigError(f"{path}: more than {_MAX_READ >> 20} MiB: {_ADVICE}")
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error}): {_ADVICE}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a mapping with 'tests' and 'starts': {_ADVICE}")
    return Durations(_seconds(path, found, "tests"), _seconds(path, found, "starts"))


def save_durations(path: Path, new: Durations) -> None:
    """Add to a file what is new; what it says about other tests and servers stays.

    Raises:
        ConfigError: The file that is there cannot be read.
        OSError: It cannot be written.
    """
    old = read_durations(path)
    content = {
        "tests": dict(sorted({**old.tests, **_rounded(new.tests)}.items())),
        "starts": dict(sorted({**old.starts, **_rounded(new.starts)}.items())),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        mode = FOR_ALL
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Whoever reads meanwhile finds the old file or the new one.
    write_whole(path, f"{text}\n".encode(), mode)


def _seconds(path: Path, found: Mapping[str, Any], key: str) -> dict[str, float]:
    values = found.get(key, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {key}: expected a mapping of names to seconds: {_ADVICE}")
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise ConfigError(f"{path}: {key}: '{name}': expected seconds, not {value!r}: {_ADVICE}")
    return values


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
