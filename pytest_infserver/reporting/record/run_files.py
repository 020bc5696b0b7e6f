"""The files of a run in the output directory: run.json, and what is drawn from it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.system.disk.files import remove_file, write_whole
from pytest_infserver.system.disk.folders import make_output_folder
from pytest_infserver.system.disk.locks import take_lock

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.settings import Settings

RECORD, REPORT, TRACE = FILES = ("run.json", "report.html", "trace.json")
_MAX_RUNS = 100


def run_folder(settings: Settings, configs: Mapping[str, ServerConfig]) -> Path:
    """Return where the files of a run go: beside the servers' folders, if these are all in one place.

    Args:
        settings: What the user said.
        configs: The servers by name.
    """
    folders = {config.output_dir for config in configs.values() if config.url is None and config.output_dir}
    if len(folders) == 1:
        return Path(folders.pop()).absolute()
    layers = [*settings.defaults, *settings.overrides]
    return Path([layer["output_dir"] for _, layer in layers if "output_dir" in layer][-1]).absolute()


class RunFiles:
    """Writes the files; those of two runs at the same time get different names."""

    def __init__(self, folder: Path) -> None:
        """Write nothing yet.

        Args:
            folder: Where.
        """
        self.folder = folder
        self._suffix: str | None = None
        self._lock: int | None = None
        # Servers that start at the same time do so in threads of their own.
        self._claiming = threading.Lock()

    def claim(self) -> None:
        """Keep other runs from using the same names until `close`; nothing, where no file can be made."""
        with self._claiming:
            if self._suffix is None:
                self._suffix = self._claimed()
                if self._lock is not None:
                    self._remove_old()

    def _claimed(self) -> str:
        """Take the first name that no other run has; return what makes it different from the usual one."""
        with contextlib.suppress(OSError):
            make_output_folder(self.folder)
            for number in range(1, _MAX_RUNS):
                suffix = "" if number == 1 else f"-{number}"
                self._lock = take_lock(self.folder / f".run{suffix}.lock")
                if self._lock is not None:
                    return suffix
        return ""

    def _remove_old(self) -> None:
        """Remove the files of an earlier run: if this one is killed they would pass for its own."""
        for name in FILES:
            with contextlib.suppress(OSError):
                remove_file(self._path(name))

    def _path(self, name: str) -> Path:
        stem, dot, ending = name.partition(".")
        return self.folder / f"{stem}{self._suffix}{dot}{ending}"

    def write(self, name: str, pieces: Callable[[], str]) -> Path:
        """Write one file, whole or not at all.

        Args:
            name: Its name.
            pieces: Makes its text.

        Raises:
            OSError: It cannot be written.
        """
        self.claim()
        # Once more: where no name could be claimed nobody has looked whose folder it is.
        make_output_folder(self.folder)
        path = self._path(name)
        # What a terminal or a test has made of bytes may be no Unicode.
        write_whole(path, pieces().encode("utf-8", "backslashreplace"))
        return path

    def close(self) -> None:
        """Let other runs have the names."""
        with self._claiming:
            lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def as_json(record: Mapping[str, Any]) -> str:
    """Return a record as JSON, each server and each test on a line of its own."""
    fields = []
    for key, value in record.items():
        if key in ("servers", "tests") and value:
            lines = ",\n".join(json.dumps(one, allow_nan=False, default=str) for one in value)
            fields.append(f"{json.dumps(key)}: [\n{lines}\n]")
        else:
            fields.append(f"{json.dumps(key)}: {json.dumps(value, default=str)}")
    return "{\n" + ",\n".join(fields) + "\n}\n"
