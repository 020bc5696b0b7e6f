"""What a check for leaks has found, as a value and as a text."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.text import one_line, shortened

_MAX_COMMAND = 160
_MAX_NAME = 8192
_MAX_FAILURES = 20
"""How many of one kind are shown."""
_INTERPRETER = re.compile(r"python|pypy|(ba|da|z)?sh$|perl|ruby|node")
_WORDS = {
    "process": ("a process", "processes"),
    "port": ("a listening port", "listening ports"),
    "shm": ("a shared memory object", "shared memory objects"),
    "semaphore": ("a semaphore", "semaphores"),
    "sysv": ("a SysV segment", "SysV segments"),
    "socket": ("a unix socket", "unix sockets"),
    "file": ("a temporary file", "temporary files"),
    "gpu": ("memory of a GPU", "GPUs' memory"),
}


@dataclass(frozen=True)
class LeakReport:
    """What a server has left behind.

    Attributes:
        findings: All of it, errors and warnings.
        not_checked: What could not be looked for, each with the reason.
    """

    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether any of it is an error."""
        return any(finding.fails for finding in self.findings)

    def without(self, patterns: Sequence[str]) -> LeakReport:
        """Return it without what is of no interest, as ``kind:glob``."""
        findings = tuple(finding for finding in self.findings if not is_allowed(finding, patterns))
        return LeakReport(findings, self.not_checked)


def from_message(entries: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Return the findings that a supervisor has sent."""
    return [Finding(**entry) for entry in entries]


def judged(findings: Sequence[Finding], allowed: Sequence[str], secrets: frozenset[str]) -> tuple[Finding, ...]:
    """Return findings as they are reported: what is allowed is a warning, texts are cleaned.

    Args:
        findings: What was found.
        allowed: ``kind:glob`` of what is a warning only.
        secrets: Values that must not be shown.
    """
    return tuple(
        finding._replace(
            fails=finding.fails and not is_allowed(finding, allowed),
            name=one_line(finding.name, secrets, _MAX_NAME),
            detail=one_line(finding.detail, secrets),
            command=one_line(finding.command, secrets, _MAX_NAME),
        )
        for finding in findings
    )


def is_allowed(finding: Finding, allowed: Sequence[str]) -> bool:
    """Return whether one of the patterns ``kind:glob`` fits what was found; a path also by its last part."""
    names = {finding.name}
    if finding.kind in ("shm", "semaphore", "socket", "file"):
        names.add(os.path.basename(finding.name))  # noqa: PTH119
    for pattern in allowed:
        kind, _, glob = pattern.partition(":")
        if kind == finding.kind and any(fnmatch.fnmatchcase(name, glob) for name in names):
            return True
    return False


def as_text(who: str, findings: Sequence[Finding]) -> str:
    """Return what was left behind by a server, for people: errors first."""
    failures = [finding for finding in findings if finding.fails]
    warnings = [finding for finding in findings if not finding.fails]
    lines = [f"{who} left behind {_summary(findings)}:"]
    shown: set[int | None] = {None}
    for group, prefix, limit in (
        (failures, "  ", _MAX_FAILURES),
        (warnings, "  warning: " if failures else "  ", 1),
    ):
        for kind, same in itertools.groupby(group, lambda finding: finding.kind):
            found = list(same)
            for finding in found[:limit]:
                lines += _finding_lines(finding, prefix, shown)
            more = len(found) - limit
            if more > 0:
                lines.append(f"            and {more} more {kind if more == 1 else _WORDS[kind][1]}")
    if failures:
        advice = "let it clean up, or accept what you know of"
        lines.append(f"  What to do: {advice}: allow_leaks: [{_pattern(failures)}]")
    return "\n".join(lines)


def as_known_text(who: str, findings: Sequence[Finding]) -> str:
    """Return in one line what a server has left behind, where its engine always does."""
    fate = "removed" if all(finding.removed for finding in findings) else "not all of it could be removed"
    return f"{who} left behind {_summary(findings)}, as its engine is known to do; {fate}"


def finding_line(finding: Finding) -> str:
    """Return what was found, in one line with the whole command."""
    head = " ".join(_finding_lines(finding, "", {finding.pid})[0].split())
    return f"{head}; command: {finding.command}" if finding.command else head


def _summary(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.kind for finding in findings)
    words = [(_WORDS[kind][0] if count == 1 else f"{count} {_WORDS[kind][1]}") for kind, count in counts.items()]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _finding_lines(finding: Finding, prefix: str, shown: set[int | None]) -> list[str]:
    is_process = finding.kind == "process"
    parts = [f"pid {finding.pid}" if is_process else finding.name, finding.detail]
    if finding.age is not None:
        parts.append(f"{finding.age:.0f} s old" if finding.age >= 1 else "less than 1 s old")
    if finding.pid is not None and not is_process:
        parts.append(f"held by pid {finding.pid}")
    removed = "killed" if is_process else "closed" if finding.kind == "port" else "removed"
    # What the driver holds is nobody's to remove.
    fate = removed if finding.removed else f"could not be {removed}" if finding.fails and finding.kind != "gpu" else ""
    head = f"{prefix}{finding.kind:<10}{', '.join(filter(None, parts))}{f'; {fate}' if fate else ''}"
    if finding.pid in shown or not finding.command:
        return [head]
    shown.add(finding.pid)
    return [head, f"            {shortened(finding.command, _MAX_COMMAND)}"]


def _pattern(failures: Sequence[Finding]) -> str:
    """Return, as YAML, the pattern that allows the first of these."""
    # Ports go with the processes that hold them.
    first = next((finding for finding in failures if finding.kind not in ("process", "port")), failures[0])
    name = glob.escape(os.path.basename(first.name))  # noqa: PTH119
    if first.kind == "process" and first.command:
        # The interpreter alone would allow too much: a script or a module says more.
        telling, *rest = first.name.split()
        if _INTERPRETER.match(os.path.basename(telling)) and "-c" not in rest:  # noqa: PTH119
            telling = next((word for word in rest if not word.startswith("-")), telling)
        name = f"*{glob.escape(os.path.basename(telling))}*"  # noqa: PTH119
    return json.dumps(f"{first.kind}:{name}", ensure_ascii=False)
