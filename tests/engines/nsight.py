"""NVIDIA's nsys from Debian's non-free section, unpacked by an unprivileged user: it traces on a CPU, too."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

Run = Callable[[Sequence[str], Path], None]
"""Runs a command and keeps what it says in a folder."""

VERSIONS = {"bookworm": "2022.4.2", "trixie": "2023.4.4"}
"""Debian's codename to the version of nsys there."""
PACKAGES = ("nsight-systems", "nsight-systems-target", "libssh-4")
USUAL_MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LIBRARIES = "usr/lib/x86_64-linux-gnu/nsight-systems"


def unsupported() -> str | None:
    """Return why nsys cannot be installed on this machine, or None."""
    codename = _codename()
    if codename not in VERSIONS or platform.machine() != "x86_64":
        known = " or ".join(VERSIONS)
        system = f"{codename or platform.system()} {platform.machine()}"
        return f"nsys is installed from Debian ({known}) on amd64; this is {system}"
    absent = [command for command in ("apt-get", "dpkg") if shutil.which(command) is None]
    absent += [] if Path(KEYRING).exists() else [KEYRING]
    return f"nsys is installed with {absent[0]}, which is not here" if absent else None


def key() -> str:
    """Return the name of its folder: another version or recipe makes another one."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return f"nsys-{VERSIONS.get(_codename(), 'unknown')}-{digest}"


def binary(folder: Path) -> Path:
    """Return the command below its folder."""
    return folder / "root" / "usr" / "bin" / "nsys"


def install(folder: Path, run: Run) -> None:
    """Download the packages with APT's own lists and cache, and unpack them."""
    packages, root = folder / "packages", folder / "root"
    for path in (folder / "lists" / "partial", folder / "cache" / "archives" / "partial", packages, root):
        path.mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(sources(_codename(), mirror(_codename())))
    # Read after the machine's own settings, of which it keeps those for proxies and certificates.
    (folder / "apt.conf").write_text(settings(folder))
    apt = ["apt-get", "-c", str(folder / "apt.conf"), "-q"]
    run([*apt, "update"], packages)
    run([*apt, "download", *PACKAGES], packages)
    for package in sorted(packages.glob("*.deb")):
        run(["dpkg", "-x", str(package), str(root)], packages)
    # nsys looks for its importer below its own folder; Debian has it beside that.
    (root / _LIBRARIES / "host-linux-x64").symlink_to("../../nsight-systems/host-linux-x64")
    run([str(binary(folder)), "--version"], packages)
    shutil.rmtree(packages)
    shutil.rmtree(folder / "lists")
    shutil.rmtree(folder / "cache")


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


def sources(codename: str, url: str) -> str:
    """Return the line that says where Debian's packages are."""
    return f"deb [arch=amd64 signed-by={KEYRING}] {url} {codename} main contrib non-free\n"


def mirror(codename: str) -> str:
    """Return the mirror that this machine uses."""
    wanted = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return mirror_among(result.stdout, codename)


def mirror_among(lines: str, codename: str) -> str:
    """Return the first mirror of Debian among lines of URL, suite and component; else the usual one."""
    for line in lines.splitlines():
        url, _, rest = line.partition(" ")
        if rest == f"{codename} main" and url.rstrip("/").endswith("/debian"):
            return url.rstrip("/")
    return USUAL_MIRROR


def _codename() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    return release.get("VERSION_CODENAME") or release.get("ID", "")
