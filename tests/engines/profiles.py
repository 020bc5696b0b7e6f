"""Reads profiles as their viewers do: py-spy's, those of PyTorch's profiler and nsys's reports."""

from __future__ import annotations

import contextlib
import gzip
import html
import json
import re
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .provision import nsys_binary

NSYS = str(nsys_binary())
"""Known before a test has another home folder."""
LIMIT = 300


def has(frames: str, function: str, file: str) -> bool:
    """Return whether a function or method of a file is among frames, which name its path in full or shortened."""
    return any(re.match(rf"(?:\S+\.)?{function} \(.*{file}", line) for line in frames.splitlines())


def frames_of_flamegraph(path: Path) -> str:
    """Return the titles of a flame graph's boxes, one a line."""
    text = path.read_text()
    assert text.rstrip().endswith("</svg>")
    return html.unescape("\n".join(re.findall(r"<title>([^<]*)</title>", text)))


def frames_of_speedscope(path: Path) -> str:
    """Return the functions of a speedscope profile that were sampled, one a line."""
    data = json.loads(path.read_text())
    frames = [f"{frame['name']} ({frame['file']})" for frame in data["shared"]["frames"]]
    seen = {index for profile in data["profiles"] for sample in profile["samples"] for index in sample}
    return "\n".join(frames[index] for index in sorted(seen))


def operators(files: Iterable[Path]) -> Counter[str]:
    """Return PyTorch's operators in the traces among some files, and how often each ran."""
    names: Counter[str] = Counter()
    for path in files:
        if path.name.endswith(".json.gz"):
            events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
            names.update(event["name"] for event in events if event.get("cat") == "cpu_op")
    return Counter({name: count for name, count in names.items() if name.startswith("aten::")})


@dataclass
class Report:
    """What an nsys report says.

    Attributes:
        calls: Process id to how many calls of the operating system's runtime it made.
        names: Process id to name, of all processes that nsys knew.
    """

    calls: dict[int, int]
    names: dict[int, str]


def read_report(path: Path) -> Report:
    """Export a report to SQLite and read it."""
    database = path.with_name(f"{path.name}.sqlite")
    # nsys 2022 has no --force-export.
    nsys("export", "--type", "sqlite", "--force-overwrite=true", "-o", str(database), str(path))
    with contextlib.closing(sqlite3.connect(database)) as connection:
        pid = "globalTid / 0x1000000 % 0x1000000"
        calls = dict(connection.execute(f"SELECT {pid}, count(*) FROM OSRT_API GROUP BY 1"))
        names = dict(connection.execute("SELECT pid, name FROM PROCESSES"))
        return Report(calls, names)


def nsys(*words: str) -> str:
    """Run nsys and return what it says."""
    result = _run(*words)
    assert result.returncode == 0, result.stdout
    return result.stdout


def summary(path: Path) -> str:
    """Return nsys's table of the runtime's functions."""
    # Its name in 2022, and since; that list ends with status 1.
    name = "osrt_sum" if "osrt_sum" in _run("stats", "--help-reports").stdout else "osrtsum"
    return nsys("stats", "--report", name, "--force-overwrite=true", str(path))


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [NSYS, *words]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT, check=False
    )
