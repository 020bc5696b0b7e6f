"""What happened to servers in xdist's workers, on its way into the summary, which the controller shows."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

INPUT = "infserver_notes"
"""Key of a worker's input: the folder in which it leaves its notes.

Not its output, which the controller has stopped reading when ``-x`` or Ctrl-C ends a run.
"""


@dataclass
class Notes:
    """What belongs to no test.

    Attributes:
        incidents: What is worth a word.
        errors: What makes the run fail.
        profiles: Path of a trace to the server that it shows.
        servers: The records of servers that belong to no other process.
    """

    incidents: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    profiles: dict[str, str] = field(default_factory=dict)
    servers: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Notes) -> None:
        """Take in those of somebody else."""
        self.incidents += other.incidents
        self.errors += other.errors
        self.profiles.update(other.profiles)
        self.servers += other.servers


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
        for path in sorted(Path(self.folder).glob("*.json")):
            notes.add(Notes(**json.loads(path.read_text(encoding="utf-8"))))
        shutil.rmtree(self.folder, ignore_errors=True)
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
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(noted), encoding="utf-8")
        path.with_suffix(".part").replace(path)
    except OSError:
        # The controller is on another machine, or has ended.
        sys.stderr.write("\n".join([*notes.incidents, *notes.errors, ""]))
