"""A server's log file: bytes from a foreign program, never loaded whole."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from pytest_infserver.system.disk.files import move_file, open_append, open_read
from pytest_infserver.system.disk.folders import make_output_folder
from pytest_infserver.system.disk.locks import take_lock

MAX_READ = 64 * 1024
"""Bytes that are read when nobody says how many."""
_MAX_FOLDERS = 1000


class ServerLog:
    """The log of one server, at ``output_dir/name/server.log``.

    A second server of the same name that runs at the same time gets ``name-2``, and so on. What an earlier server
    wrote is kept once, as ``server.previous.log``; a restart of the same server appends.
    """

    def __init__(self, output_dir: Path, name: str) -> None:
        self._output_dir = output_dir
        self._name = name
        self._inode: int | None = None
        self.path = output_dir / name / "server.log"

    def open(self) -> tuple[int, int]:
        """Open the log for the server's output.

        Returns:
            The file descriptor for the output, and one that locks the folder until all its duplicates are closed.

        Raises:
            OSError: The folder or the file cannot be made.
        """
        folder, lock = self._lock_folder()
        try:
            self.path = folder / "server.log"
            with contextlib.suppress(FileNotFoundError):
                status = self.path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_size and status.st_ino != self._inode:
                    move_file(self.path, folder / "server.previous.log")
            output = open_append(self.path)
            self._inode = os.fstat(output).st_ino
        except BaseException:
            os.close(lock)
            raise
        return output, lock

    def adopt(self, path: Path) -> None:
        """Go on with the log of a server that runs already; its supervisor holds the folder's lock."""
        self.path = path
        with contextlib.suppress(OSError):
            self._inode = path.stat().st_ino

    def _lock_folder(self) -> tuple[Path, int]:
        others = [self._output_dir / f"{self._name}-{number}" for number in range(2, _MAX_FOLDERS)]
        # The last one first: a restart goes on in the same file.
        for folder in (self.path.parent, self._output_dir / self._name, *others):
            make_output_folder(self._output_dir, folder.name)
            lock = take_lock(folder / ".lock")
            if lock is not None:
                return folder, lock
        raise OSError(f"{_MAX_FOLDERS} servers called {self._name} run already")

    def size(self) -> int:
        """Return the log's size in bytes, 0 if there is none."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def read(self, start: int = 0, limit: int = MAX_READ) -> str:
        """Return what stands behind byte ``start``: its last ``limit`` bytes, undecodable ones replaced."""
        data, left_out = self.read_bytes(start, limit)
        text = data.decode("utf-8", "replace").replace("\r\n", "\n")
        return f"[... {left_out} bytes left out, see {self.path}]\n{text}" if left_out else text

    def read_bytes(self, start: int, limit: int, end: int | None = None) -> tuple[bytes, int]:
        """Return the last ``limit`` bytes between ``start`` and ``end``, and how many before them were left out."""
        data, left_out, _ = self._read(start, limit, end)
        return data, left_out

    def read_new(self, position: int, limit: int) -> tuple[bytes, int, int]:
        """Return what has been added behind a position, where the server may write at any moment.

        Args:
            position: Byte up to which it has been read.
            limit: At most the last so many bytes are returned.

        Returns:
            The bytes, how many before them were left out, and the position from which the next call goes on.
        """
        return self._read(position, limit, None)

    def _read(self, start: int, limit: int, end: int | None) -> tuple[bytes, int, int]:
        try:
            with open_read(self.path) as file:
                size = file.seek(0, os.SEEK_END)
                end = size if end is None else min(end, size)
                # A log that was truncated meanwhile is read from its beginning.
                start = start if start <= end else 0
                begin = max(start, end - limit)
                file.seek(begin)
                data = file.read(end - begin)
                return data, begin - start, begin + len(data)
        except OSError:
            return b"", 0, start

    def read_head(self, start: int, limit: int) -> bytes:
        """Return the first ``limit`` bytes behind ``start``."""
        try:
            with open_read(self.path) as file:
                file.seek(start)
                return file.read(limit)
        except OSError:
            return b""
