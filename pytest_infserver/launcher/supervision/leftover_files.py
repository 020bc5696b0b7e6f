"""The files that a supervisor removes when its server is gone."""

from __future__ import annotations

from pytest_infserver.system.disk.removal import Seen


class LeftoverFiles:
    """The folders that go with a server; no dataclass, whose module alone costs each start 4 ms."""

    def __init__(self, scratch: str | None = None, work_folder: str | None = None) -> None:
        """Remember them as they are now: the server may put others in their place.

        Args:
            scratch: A folder that goes with the server, or None.
            work_folder: The owner's folder, if nobody is to have it when the owner is gone, or None.
        """
        self._scratch = Seen.at(scratch)
        self._work_folder = Seen.at(work_folder)

    def remove(self, *, owner_gone: bool) -> None:
        """Remove what nobody needs any more.

        Args:
            owner_gone: Whether the owner has ended before its server.
        """
        for folder in (self._scratch, self._work_folder if owner_gone else None):
            if folder is not None:
                folder.remove()
