"""What happened to servers in xdist's workers, on its way into the summary, which the controller shows."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_infserver.system.disk.files import read_start, write_whole
from pytest_infserver.system.disk.folders import is_private, make_private_folder
from pytest_infserver.system.disk.removal import remove_own_folder

INPUT = "infserver_notes"
"""Key of a worker's input: the folder in which it leaves its notes.

Not its output, which the controller has stopped reading when ``-x`` or Ctrl-C ends a run.
"""
_MAX_READ = 1 << 28
"""Bytes of one worker's notes: they hold the records of all its servers."""


@dataclass
class Notes:
    """What belongs to no test.

    Attributes:
        incidents: What is worth a word.
        errors: What makes the run fail.
        profiles: Path of a trace to the server that it shows.
        servers: The records of servers that belong to no other process.
        elsewhere: How many tests the other shards run.
    """

    incidents: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    profiles: dict[str, str] = field(default_factory=dict)
    servers: list[dict[str, Any]] = field(default_factory=list)
    elsewhere: int = 0

    def add(self, other: Notes) -> None:
        """Take in those of somebody else."""
        self.incidents += other.incidents
        self.errors += other.errors
        self.profiles.update(other.profiles)
        self.servers += other.servers
        # All workers know the same tests.
        self.elsewhere = max(self.elsewhere, other.elsewhere)


class WorkerNotes:
    """The controller's side.

    Attributes:
        folder: Where the workers leave their notes; made by the first that has any.
    """

    def __init__(self) -> None:
        self.folder = os.path.join(tempfile.gettempdir(), f"infserver-{secrets.token_hex(8)}")  # noqa: PTH118

    def collect(self) -> Notes:
        """Return what the workers have noted; to be called once, when they have ended."""
        notes = Notes()
        folder = Path(self.folder)
        for path in sorted(folder.glob("*.json")) if is_private(folder) else ():
            notes.add(Notes(**json.loads(read_start(path, _MAX_READ))))
        remove_own_folder(folder)
        # What is wrong with the configuration each of them says.
        notes.errors = list(dict.fromkeys(notes.errors))
        return notes


def leave_notes(folder: str, worker: str, notes: Notes) -> None:
    """Leave a worker's notes for the controller.

    Args:
        folder: Where.
        worker: The worker's name.
        notes: The notes.
    """
    noted = asdict(notes)
    if not any(noted.values()):
        return
    path = Path(folder, f"{worker}.json")
    try:
        make_private_folder(path.parent)
        write_whole(path, json.dumps(noted).encode(), 0o600)
    except OSError:
        # The controller is on another machine, or has ended.
        sys.stderr.write("\n".join([*notes.incidents, *notes.errors, ""]))
