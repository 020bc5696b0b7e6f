"""Whether py-spy may look into a server's processes, and what to do if not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ADVICE = """\
  sudo sysctl kernel.yama.ptrace_scope=0
  sudo setcap cap_sys_ptrace=ep {py_spy}
  in a container: docker run --cap-add SYS_PTRACE ...
"""
_CAP_SYS_PTRACE = 19


def may_trace(py_spy: str) -> str | None:
    """Return why a py-spy that is started by this process may not look into another of the same user, or None."""
    if sys.platform == "darwin" and os.geteuid() != 0:
        return "macOS allows that to root only: run it with sudo"
    scope = _scope()
    if scope == 0 or (scope < 3 and (_has_capability() or _has_file_capability(py_spy))):
        return None
    if scope >= 3:
        return f"Linux forbids that to everybody (kernel.yama.ptrace_scope={scope}) until it boots again"
    return (
        f"Linux allows that to a process's ancestors only (kernel.yama.ptrace_scope={scope}), and py-spy is none of"
        f" them. Do one of these:\n{ADVICE.format(py_spy=py_spy).rstrip()}"
    )


def _scope() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        # A kernel without Yama.
        return 0


def _has_capability() -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    masks = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")]
    return bool(masks and int(masks[0], 16) >> _CAP_SYS_PTRACE & 1)


def _has_file_capability(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except (OSError, AttributeError):
        return False
