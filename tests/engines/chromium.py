"""Debian's headless Chromium with the libraries and fonts that it needs, unpacked by an unprivileged user."""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import debian

CODENAMES = ("bookworm", "trixie")
PACKAGE = "chromium-headless-shell"
FONTS = ("fonts-inter", "fonts-dejavu-core")
"""So that a page looks alike on every machine: the first is its `system-ui`, the second its `monospace`."""
FLAGS = (
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_FONTS_CONF = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{root}/usr/share/fonts</dir>
  <cachedir>{folder}/fontconfig</cachedir>
  <alias><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
  <alias><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio", "lib/x86_64-linux-gnu")
_SCRIPT = """#!/bin/sh
export FONTCONFIG_FILE='{folder}/fonts.conf'
export LD_LIBRARY_PATH='{libraries}'
exec '{root}/usr/lib/chromium/chromium-headless-shell' "$@"
"""


def unsupported() -> str | None:
    """Return why Chromium cannot be installed on this machine, or None."""
    return debian.unsupported("chromium", CODENAMES)


def key() -> str:
    """Return the name of its folder: another Debian or recipe makes another one."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return f"chromium-{debian.codename() or 'unknown'}-{digest}"


def binary(folder: Path) -> Path:
    """Return the command below its folder."""
    return folder / "chromium"


def install(folder: Path, run: debian.Run) -> None:
    """Download the packages, unpack them and write a command that finds them."""
    root = debian.unpack(folder, FONTS, run, needed_by=PACKAGE)
    (folder / "fonts.conf").write_text(_FONTS_CONF.format(folder=folder, root=root))
    libraries = ":".join(str(root / path) for path in _LIBRARIES)
    binary(folder).write_text(_SCRIPT.format(folder=folder, root=root, libraries=libraries))
    binary(folder).chmod(0o755)
    page = "data:text/html,<p>there</p>"
    run([str(binary(folder)), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", page], folder)
