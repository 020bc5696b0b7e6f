"""Debug mode, on the owner's side: from before a launch to the report."""

from __future__ import annotations

import getpass
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_infserver.launcher.leaks.gpu import GpuMemory
from pytest_infserver.launcher.leaks.report import LeakReport, from_message, judged
from pytest_infserver.launcher.leaks.temporary_files import PYTORCH_CACHES, TemporaryDirectory, new_path
from pytest_infserver.launcher.supervision.supervised_process import ServerProcess

_SHORT = 40
"""Longest path, in bytes, under which the server's own temporary directory leaves room for unix sockets: 107 bytes."""


class LeakCheck:
    """The check of one launch.

    Attributes:
        tmpdir: The temporary directory that the supervisor makes for the server.
        private_tmpdir: Whether the server gets it as its TMPDIR: not if the user has said what that is.
        lock_fds: Locks that the supervisor must hold.
    """

    def __init__(self, env_vars: Mapping[str, str | None]) -> None:
        """Look at the machine before the launch.

        Args:
            env_vars: The variables that the user sets for the server.
        """
        self.tmpdir = new_path(_temporary_parent())
        self.private_tmpdir = "TMPDIR" not in env_vars
        self._gpus = GpuMemory()
        self.lock_fds: Sequence[int] = self._gpus.lock_fds

    def environment(self, env: Mapping[str, str]) -> Mapping[str, str]:
        """Return the server's environment with those caches kept that would be lost with its temporary directory."""
        if not self.private_tmpdir:
            return env
        name = re.sub(r'[\\/:*?"<>|]', "_", _user())
        # PyTorch 2.13's own default, which follows TMPDIR; compiling again takes minutes.
        default = str(Path(tempfile.gettempdir()) / f"torchinductor_{name}")
        # At the end: PyTorch sets it again, and setproctitle renames no process whose first variable has moved.
        return env if "TORCHINDUCTOR_CACHE_DIR" in env else {**env, "TORCHINDUCTOR_CACHE_DIR": default}

    def release(self) -> None:
        """Let go of what the supervisor holds now."""
        self._gpus.release()

    def report(self, process: ServerProcess, allowed: Sequence[str], secrets: frozenset[str]) -> LeakReport:
        """Return what is left of a server whose processes are gone.

        Args:
            process: Its process, stopped.
            allowed: ``kind:glob`` of what is a warning only.
            secrets: Values that must not be shown.
        """
        if process.leaks is None:
            TemporaryDirectory(self.tmpdir).remove()
            return LeakReport((), ("everything: the server's supervisor was killed",))
        findings = from_message(process.leaks["findings"])
        findings += self._gpus.left({(pid, start): command for pid, start, command in process.leaks["processes"]})
        not_checked = list(process.leaks["not_checked"])
        if not self.private_tmpdir:
            not_checked.append("temporary files: TMPDIR is set in env_vars")
        if self._gpus.not_checked is not None:
            not_checked.append(self._gpus.not_checked)
        return LeakReport(judged(findings, [*PYTORCH_CACHES, *allowed], secrets), tuple(not_checked))


def _temporary_parent() -> str:
    usual = tempfile.gettempdir()
    short = [usual] if len(os.fsencode(usual)) <= _SHORT else ["/tmp", usual]
    return next((folder for folder in short if os.access(folder, os.W_OK)), usual)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container's user without a name.
        return str(os.getuid())
