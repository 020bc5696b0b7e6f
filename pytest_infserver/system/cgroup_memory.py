"""How often the kernel has killed for memory in a process's cgroup, and the limit there; cgroup v1 and v2."""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_MAX_LEVELS = 32
_UNLIMITED = 1 << 60
"""Bytes: cgroup v1 writes a number near 2^63 where there is no limit."""


@dataclass(frozen=True)
class Level:
    """One cgroup, as it was at one moment.

    Attributes:
        folder: Where it is mounted.
        file: What its counter was read from.
        kills: How many of its own processes the kernel has killed for memory; None if that cannot be told.
        kills_below: The same with those of the cgroups below it.
    """

    folder: Path
    file: Path
    kills: int | None
    kills_below: int


@dataclass(frozen=True)
class Limit:
    """How much memory a cgroup may use.

    Attributes:
        file: Where that can be changed.
        size: The limit in bytes.
        peak: The most that was used, in bytes; None where the kernel does not tell.
    """

    file: Path
    size: int
    peak: int | None

    @property
    def reached(self) -> bool | None:
        """Whether it was reached, or all but; None if nobody can tell."""
        return None if self.peak is None else self.peak >= 0.95 * self.size


class _Mount(NamedTuple):
    point: str
    root: str
    version: int


def levels(pid: int | None = None, proc: Path = PROC) -> tuple[Level, ...]:
    """Return a process's cgroup and those above it, as far as they can be seen and count; nothing is raised.

    Args:
        pid: The process; this one if None.
        proc: Where the kernel shows the processes.
    """
    found = []
    for folder, version in _folders(pid, proc):
        level = _level(folder, version)
        if level is not None:
            found.append(level)
    return tuple(found)


def place(pid: int | None = None, proc: Path = PROC) -> bytes:
    """Return what the kernel says of where a process is, or nothing: whether that changes says whether it has moved."""
    return _read(proc / _name(pid) / "cgroup")


def folder_of(path: str, proc: Path = PROC) -> Path | None:
    """Return where a cgroup is mounted that counts memory, by the path that the kernel calls it."""
    for mount in _mounts(proc):
        inside = _inside(mount, path)
        folder = None if inside is None else Path(mount.point, *inside)
        if folder is not None and _limit(folder) is not None:
            return folder
    return None


def tightest_limit(folders: tuple[Path, ...]) -> Limit | None:
    """Return the smallest limit of these cgroups, or None if none of them has one."""
    found = [limit for limit in map(_limit, folders) if limit is not None]
    return min(found, key=lambda limit: limit.size, default=None)


def reread(level: Level) -> Level | None:
    """Return a cgroup as it is now, or None if it is gone."""
    return _level(level.folder, 1 if level.file.name == "memory.oom_control" else 2)


def _name(pid: int | None) -> str:
    return "self" if pid is None else str(pid)


def _read(path: Path) -> bytes:
    # ValueError: a path with a NUL.
    with contextlib.suppress(OSError, ValueError):
        return path.read_bytes()
    return b""


def _folders(pid: int | None, proc: Path) -> list[tuple[Path, int]]:
    """Return the folders of a process's cgroup and those above it, each with the version of cgroups."""
    paths: dict[int, str] = {}
    for line in place(pid, proc).decode("utf-8", "surrogateescape").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            paths[1] = path
        elif number == "0" and not controllers:
            paths[2] = path
    # Where both are mounted, memory belongs to the one whose controller is named.
    for version in (1, 2):
        for mount in _mounts(proc):
            inside = _inside(mount, paths[version]) if mount.version == version and version in paths else None
            if inside is not None:
                return [(folder, version) for folder in _upwards(Path(mount.point), inside)]
    return []


def _inside(mount: _Mount, path: str) -> list[str] | None:
    """Return the way from a mount to a cgroup, or None if that is not below it."""
    parts, root = path.strip("/").split("/"), mount.root.strip("/").split("/")
    parts, root = [part for part in parts if part], [part for part in root if part]
    if ".." in parts or parts[: len(root)] != root:
        return None
    return parts[len(root) :]


def _upwards(top: Path, inside: list[str]) -> list[Path]:
    return [top.joinpath(*inside[:depth]) for depth in range(len(inside), -1, -1)][:_MAX_LEVELS]


@functools.lru_cache(maxsize=16)
def _mounts(proc: Path) -> tuple[_Mount, ...]:
    """Return where cgroups are mounted that count memory; once, since that list may be long."""
    found = []
    for line in _read(proc / "self" / "mountinfo").decode("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(kind) < 3:
            continue
        root, point = map(_unescaped, fields[3:5])
        if kind[0] == "cgroup2":
            found.append(_Mount(point, root, 2))
        elif kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            found.append(_Mount(point, root, 1))
    # Whoever sees more of the tree sees more of what is above.
    return tuple(sorted(found, key=lambda mount: len(mount.root)))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _level(folder: Path, version: int) -> Level | None:
    if version == 1:
        file = folder / "memory.oom_control"
        own = below = _counter(file)
    else:
        file = folder / "memory.events"
        own, below = _counter(folder / "memory.events.local"), _counter(file)
    return None if below is None else Level(folder, file, own, below)


def _counter(file: Path) -> int | None:
    match = re.search(rb"^oom_kill (\d{1,18})$", _read(file), re.MULTILINE)
    return int(match[1]) if match else None


def _limit(folder: Path) -> Limit | None:
    for name, peak in (("memory.max", "memory.peak"), ("memory.limit_in_bytes", "memory.max_usage_in_bytes")):
        size = _size(folder / name)
        if size is not None and size < _UNLIMITED:
            return Limit(folder / name, size, _size(folder / peak))
    return None


def _size(file: Path) -> int | None:
    text = _read(file)[:32].strip()
    return int(text) if text.isdigit() else None
