"""Debian's packages, unpacked into a folder by an unprivileged user, with APT's lists and cache in it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

Run = Callable[[Sequence[str], Path], None]
"""Runs a command and keeps what it says in a folder."""

USUAL_MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unsupported(what: str, codenames: Sequence[str]) -> str | None:
    """Return why a program cannot be installed on this machine, or None."""
    if codename() not in codenames or platform.machine() != "x86_64":
        known = " or ".join(codenames)
        system = f"{codename() or platform.system()} {platform.machine()}"
        return f"{what} is installed from Debian ({known}) on amd64; this is {system}"
    absent = [command for command in ("apt-get", "dpkg") if shutil.which(command) is None]
    absent += [] if Path(KEYRING).exists() else [KEYRING]
    return f"{what} is installed with {absent[0]}, which is not here" if absent else None


def unpack(folder: Path, packages: Sequence[str], run: Run, *, needed_by: str | None = None) -> Path:
    """Download packages and unpack them.

    Args:
        folder: Gets a folder ``root`` with the packages' files.
        packages: Their names; what they need is not fetched.
        run: Runs the commands.
        needed_by: One more package, of which that is fetched too what it needs and this machine does not have.

    Returns:
        The folder ``root``.
    """
    downloads, root = folder / "packages", folder / "root"
    for path in (folder / "lists" / "partial", folder / "cache" / "archives" / "partial", downloads, root):
        path.mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(sources(codename(), mirror(codename())))
    # Read after the machine's own settings, of which it keeps those for proxies and certificates.
    (folder / "apt.conf").write_text(settings(folder))
    apt = ["apt-get", "-c", str(folder / "apt.conf"), "-q"]
    run([*apt, "update"], downloads)
    run([*apt, "download", *packages], downloads)
    if needed_by is not None:
        run([*apt, "download", needed_by], downloads)
        # Against the machine's own list of what is installed, which is only read.
        state = ["-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "Debug::NoLocking=1"]
        fetch = ["--yes", "--download-only", "--no-install-recommends", "install"]
        run([*apt, *state, *fetch, needed_by], downloads)
    for package in sorted([*downloads.glob("*.deb"), *(folder / "cache" / "archives").glob("*.deb")]):
        run(["dpkg", "-x", str(package), str(root)], downloads)
    for path in (downloads, folder / "lists", folder / "cache"):
        shutil.rmtree(path)
    return root


def settings(folder: Path) -> str:
    """Return APT's settings for one folder."""
    values = {
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        # Its own user could not read the folder; whoever is not root has none.
        "APT::Sandbox::User": "root",
        "Acquire::Retries": 5,
        "Acquire::Languages": "none",
    }
    lines = [f'{name} "{value}";' for name, value in values.items()]
    # Hooks are about the machine's own lists.
    return "\n".join(["#clear APT::Update;", *lines, ""])


def sources(suite: str, url: str) -> str:
    """Return the line that says where Debian's packages are."""
    return f"deb [arch=amd64 signed-by={KEYRING}] {url} {suite} main contrib non-free\n"


def mirror(suite: str) -> str:
    """Return the mirror that this machine uses."""
    wanted = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return mirror_among(result.stdout, suite)


def mirror_among(lines: str, suite: str) -> str:
    """Return the first mirror of Debian among lines of URL, suite and component; else the usual one."""
    for line in lines.splitlines():
        url, _, rest = line.partition(" ")
        if rest == f"{suite} main" and url.rstrip("/").endswith("/debian"):
            return url.rstrip("/")
    return USUAL_MIRROR


def codename() -> str:
    """Return this Debian's name, or of another system what it calls itself."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    return release.get("VERSION_CODENAME") or release.get("ID", "")
