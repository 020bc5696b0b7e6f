"""A server's files on its node: brought here, and named by where they are here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pytest_infserver.errors import InferenceServerError, ProfileError
from pytest_infserver.launcher.profiling.traces import claim
from pytest_infserver.system.disk.files import FOR_ALL, whole_file
from pytest_infserver.system.disk.folders import make_output_folder
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_LIST_LIMIT = 30.0
"""Seconds that the list of the files may take on a busy machine."""
_READ_LIMIT = 60.0
_CHUNK = 8 << 20
_DOUBLE_SUFFIXES = (".speedscope.json", ".json.gz")
_NOT_BROUGHT = {"server.log", "events.jsonl", "server.previous.log"}


class NodeFiles:
    """The files of one life of a server; each is brought once.

    Attributes:
        folder: Where they are on the node; empty as long as that is not known.
    """

    def __init__(self, server: InferenceServer, ask: Callable[..., Any]) -> None:
        """Prepare to bring them.

        Args:
            server: The server.
            ask: Calls a method of its `ServerOnNode`: its name, the seconds that it may take, its arguments.
        """
        self.folder = ""
        self._server = server
        self._ask = ask
        self._brought: set[str] = set()

    @property
    def _here(self) -> Path:
        return self._server.log_path.parent

    def local(self, value: Any) -> Any:
        """Return a text with the folder of the node's files replaced by that to which they are brought."""
        if not isinstance(value, str) or not self.folder:
            return value
        return value.replace(f"{self.folder}/logs/{self._server.name}", str(self._here)).replace(
            f"{self.folder}/profiles/{self._server.name}", str(self._server.profile_dir)
        )

    def shown(self, value: Any) -> Any:
        """Return what a node says as users may see it: it does not know all secrets that this process knows."""
        value = self.local(value)
        return clean(value, self._server.secrets) if isinstance(value, str) else value

    def bring_launch_files(self) -> None:
        """Bring what lies beside the log: how it was launched, and reports about hangs."""
        with contextlib.suppress(InferenceServerError, OSError):
            for path, size, mode in self._ask("files", _LIST_LIMIT):
                parts = PurePosixPath(path).parts
                if parts[0] == "logs" and parts[-1] not in _NOT_BROUGHT and path not in self._brought:
                    self._brought.add(path)
                    self._bring(path, size, self._here / parts[-1], mode)

    def bring_profiles(self) -> dict[str, Path]:
        """Bring the traces that are not here yet; return path on the node to path here."""
        files = [
            (path, size, mode)
            for path, size, mode in self._ask("files", _LIST_LIMIT)
            if _is_trace(path) and path not in self._brought and size
        ]
        brought: dict[str, Path] = {}
        try:
            for top, whole in _by_trace(files).items():
                target = self._claim(top, is_folder=len(PurePosixPath(whole[0][0]).parts) > 3)
                for path, size, mode in whole:
                    place = target.joinpath(*PurePosixPath(path).parts[3:])
                    make_output_folder(target.parent, *place.parent.relative_to(target.parent).parts)
                    self._bring(path, size, place, mode)
                    self._brought.add(path)
                    brought[path] = place
        except OSError as error:
            where = f"{self._server}: its traces cannot be brought from {self._server.node}"
            raise ProfileError(f"{where}: {error}") from None
        if brought:
            self._server.runtime.profiling.made += [*brought.values()]
            self._server.journal.note("profile", files=[str(path) for path in brought.values()])
        return brought

    def _claim(self, name: str, *, is_folder: bool) -> Path:
        """Take a name in the folder for traces that nothing has yet."""
        suffix = next((one for one in _DOUBLE_SUFFIXES if name.endswith(one)), PurePosixPath(name).suffix)
        if is_folder:
            suffix = ""
        return claim(self._server.profile_dir, name.removesuffix(suffix), suffix)

    def _bring(self, path: str, size: int, target: Path, mode: int) -> None:
        with whole_file(target, mode & FOR_ALL) as file:
            at = 0
            while at < size:
                data: bytes = self._ask("read", _READ_LIMIT, path, at, _CHUNK)
                if not data:
                    break
                file.write(data)
                at += len(data)


def _is_trace(path: str) -> bool:
    """Return whether a file of a node is one of a server's traces: ``profiles/NAME/TRACE``, and folders in it."""
    parts = PurePosixPath(path).parts
    return parts[0] == "profiles" and len(parts) > 2


def _by_trace(files: Sequence[tuple[str, int, int]]) -> dict[str, list[tuple[str, int, int]]]:
    """Return the files of each trace by its name: that of a file, or of a folder with several."""
    traces: dict[str, list[tuple[str, int, int]]] = {}
    for entry in files:
        # profiles/SERVER/TRACE, or profiles/SERVER/TRACE/...
        traces.setdefault(PurePosixPath(entry[0]).parts[2], []).append(entry)
    return traces
