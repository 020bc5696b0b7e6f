"""Temporary files: the server gets a temporary directory of its own, and what is in it at the end is left behind."""

from __future__ import annotations

import contextlib
import os
import stat
import time

from pytest_infserver.launcher.leaks.finding import Finding

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

    def make(self) -> None:
        """Make it, for nobody else's eyes.

        Raises:
            OSError: It cannot be made.
        """
        os.mkdir(self.path, 0o700)  # noqa: PTH102

    def left(self) -> list[Finding]:
        """Return what is in it, each thing at its top once, and remove it."""
        found = []
        _make_accessible(self.path)
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
        # Imported here: most servers leave nothing, and os.rmdir does.
        try:
            os.rmdir(self.path)  # noqa: PTH106
        except FileNotFoundError:
            pass
        except OSError:
            import shutil

            status = os.lstat(self.path)
            if not stat.S_ISDIR(status.st_mode):
                # Somebody else was quicker to use the path.
                return
            if _is_mounted_on(self.path):
                # What somebody has mounted there is not temporary.
                return
            for folder, names, _ in os.walk(self.path):
                # Before the walk enters them.
                for name in names:
                    _make_accessible(os.path.join(folder, name))  # noqa: PTH118
            shutil.rmtree(self.path, ignore_errors=True)


def _is_mounted_on(folder: str) -> bool:
    """Tell whether anything is mounted in a folder, also of the same file system."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:  # noqa: PTH123
            places = [line.split()[4] for line in file]
    except OSError:
        # Elsewhere than on Linux.
        return any(os.path.ismount(place) for place, _, _ in os.walk(folder))
    # The kernel writes blanks so.
    inside = os.fsencode(os.path.realpath(folder)).replace(b" ", b"\\040") + b"/"
    return any(place.startswith(inside) for place in places)


def _make_accessible(folder: str) -> None:
    with contextlib.suppress(OSError):
        # A link's target is none of our business.
        if not os.path.islink(folder):  # noqa: PTH114
            os.chmod(folder, 0o700)  # noqa: PTH101
