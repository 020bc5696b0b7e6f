"""Temporary files: the server gets a temporary directory of its own, and what is in it at the end is left behind."""

from __future__ import annotations

import os
import stat
import time

from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.disk.removal import Seen, make_accessible, remove_own_folder

PYTORCH_CACHES = ("file:torchinductor_*",)
"""PyTorch 2.13 keeps precompiled headers there, whatever TORCHINDUCTOR_CACHE_DIR says."""


def new_path(parent: str) -> str:
    """Return a path in ``parent`` that nobody uses: a short one, for a unix socket's has at most 107 bytes."""
    return os.path.join(parent, f"infs-{os.urandom(5).hex()}")  # noqa: PTH118


class TemporaryDirectory:
    """The directory that a server gets as its TMPDIR.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._made: Seen | None = None

    def make(self) -> None:
        """Make it, for nobody else's eyes.

        Raises:
            OSError: It cannot be made.
        """
        os.mkdir(self.path, 0o700)  # noqa: PTH102
        self._made = Seen.at(self.path)

    def left(self) -> list[Finding]:
        """Return what is in it, each thing at its top once, and remove it."""
        found: list[Finding] = []
        if self._made is not None and Seen.at(self.path) != self._made:
            # Gone, or the server has put something else there, which is not what it was given.
            return found
        make_accessible(self.path)
        try:
            entries = sorted(os.listdir(self.path))  # noqa: PTH208
        except OSError:
            entries = []
        for name in entries:
            path = os.path.join(self.path, name)  # noqa: PTH118
            try:
                status = os.lstat(path)
            except OSError:
                continue
            kind = "socket" if stat.S_ISSOCK(status.st_mode) else "file"
            detail = "a directory in the server's TMPDIR" if stat.S_ISDIR(status.st_mode) else "in the server's TMPDIR"
            found.append(Finding(kind, path, detail, age=max(0.0, time.time() - status.st_ctime)))
        self.remove()
        return [finding._replace(removed=not os.path.lexists(finding.name)) for finding in found]

    def remove(self) -> None:
        """Remove it with all that is in it, as far as possible."""
        if self._made is not None:
            self._made.remove()
        else:
            # Another process has made it.
            remove_own_folder(self.path)
