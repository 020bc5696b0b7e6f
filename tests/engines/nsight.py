"""NVIDIA's nsys from Debian's non-free section, unpacked by an unprivileged user: it traces on a CPU, too."""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import debian

VERSIONS = {"bookworm": "2022.4.2", "trixie": "2023.4.4"}
"""Debian's codename to the version of nsys there."""
PACKAGES = ("nsight-systems", "nsight-systems-target", "libssh-4")
_LIBRARIES = "usr/lib/x86_64-linux-gnu/nsight-systems"


def unsupported() -> str | None:
    """Return why nsys cannot be installed on this machine, or None."""
    return debian.unsupported("nsys", list(VERSIONS))


def key() -> str:
    """Return the name of its folder: another version or recipe makes another one."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return f"nsys-{VERSIONS.get(debian.codename(), 'unknown')}-{digest}"


def binary(folder: Path) -> Path:
    """Return the command below its folder."""
    return folder / "root" / "usr" / "bin" / "nsys"


def install(folder: Path, run: debian.Run) -> None:
    """Download the packages and unpack them."""
    root = debian.unpack(folder, PACKAGES, run)
    # nsys looks for its importer below its own folder; Debian has it beside that.
    (root / _LIBRARIES / "host-linux-x64").symlink_to("../../nsight-systems/host-linux-x64")
    run([str(binary(folder)), "--version"], folder)
