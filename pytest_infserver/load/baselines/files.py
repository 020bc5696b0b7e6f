"""Baselines: what was measured before, as JSON files in the project that can be committed."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.load.baselines.comparison import Figures
from pytest_infserver.load.baselines.machine import driver, in_words, machine, machine_key
from pytest_infserver.system.disk.files import read_start, write_whole

FOLDER = ".infserver/load"
"""Below the project's root."""
_VERSION = 1
_MAX_FILE = 1 << 22


class BaselineError(InferenceServerError):
    """A file of baselines cannot be used; the message says which, and what to do."""


@dataclass(frozen=True)
class Baseline:
    """What was measured before.

    Attributes:
        path: Its file.
        runs: The figures of each run.
        engine: The engine and its version.
        driver: The GPU driver's version, or None.
        saved: When, in words.
    """

    path: Path
    runs: Sequence[Figures]
    engine: str
    driver: str | None
    saved: str

    def differences(self, engine: str) -> list[str]:
        """Return what is not as it was, in words: it may be just what is measured."""
        found = [f"baseline of {self.engine}, saved {self.saved}; this is {engine}"] if engine != self.engine else []
        now = driver()
        if now != self.driver:
            found.append(f"baseline with GPU driver {self.driver}; this is {now}")
        return found


@dataclass(frozen=True)
class Baselines:
    """The files of one folder.

    Attributes:
        folder: Where they are.
        server: The server's name.
        identity: What else they belong to: its settings.
        engine: Its engine and that one's version.
    """

    folder: Path
    server: str
    identity: Mapping[str, Any] = field(repr=False)
    engine: str = ""

    def path(self, what: str, *, any_machine: bool = False) -> Path:
        """Return the file of a workload's key, or of a score.

        Args:
            what: The key, or ``score-NAME``.
            any_machine: Whether it is the same on each machine.
        """
        return self.folder / f"{self._stem(what)}{'' if any_machine else f'-{machine_key()}'}.json"

    def _stem(self, what: str) -> str:
        mark = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        return re.sub(r"[^\w.+-]+", "_", f"{self.server}-{what}-{mark}")

    def load(self, what: str, *, any_machine: bool = False) -> Baseline | None:
        """Return a baseline, or None if there is none of this machine.

        Raises:
            BaselineError: The file is none.
        """
        path = self.path(what, any_machine=any_machine)
        try:
            text = read_start(path, _MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BaselineError(f"the baseline {path} cannot be read: {error}") from None
        try:
            data = json.loads(text)
            if data["version"] != _VERSION:
                raise ValueError(f"it has version {data['version']!r}, this package knows {_VERSION}")
            runs = [{str(name): _time(value) for name, value in run.items()} for run in data["runs"]]
            if not runs:
                raise ValueError("it has no run")
            return Baseline(path, runs, str(data["engine"]), data.get("driver"), str(data["saved"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise BaselineError(
                f"{path} is no baseline: {said}; remove it, or write it anew with --infserver-load-save"
            ) from None

    def elsewhere(self, what: str) -> list[str]:
        """Return of which other machines there are baselines, in words."""
        found = []
        for path in sorted(self.folder.glob(f"{glob.escape(self._stem(what))}-*.json")):
            try:
                data = json.loads(read_start(path, _MAX_FILE))
                found.append(f"{path.name}: {in_words(data['machine'])}, saved {data['saved']}")
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return found

    def save(self, what: str, about: str, runs: Sequence[Figures], *, any_machine: bool = False) -> Path:
        """Write one anew, whole or not at all; return its file.

        Raises:
            BaselineError: It cannot be written.
        """
        path = self.path(what, any_machine=any_machine)
        data = {
            "version": _VERSION,
            "about": about,
            "server": {"name": self.server, **self.identity},
            "engine": self.engine,
            "machine": machine(),
            "driver": driver(),
            "saved": time.strftime("%Y-%m-%d %H:%M"),
            "runs": [{name: float(f"{value:.6g}") for name, value in run.items()} for run in runs],
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(data, indent=1) + "\n").encode())
        except OSError as error:
            raise BaselineError(f"the baseline {path} cannot be written: {error}") from None
        return path


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no figure")
    return float(value)
