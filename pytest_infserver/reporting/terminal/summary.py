"""The table of servers at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_infserver.reporting.paths import from_here
from pytest_infserver.reporting.record.server_record import where_it_ran
from pytest_infserver.reporting.terminal.server_table import as_size

_NUMBERS = frozenset({"tests", "failed", "restarts"})


def is_wanted(when: str, *, verbosity: int, failed: bool) -> bool:
    """Return whether the table is shown.

    Args:
        when: ``auto``, ``always`` or ``never``.
        verbosity: How often ``-v`` was given, less ``-q``.
        failed: Whether a test has failed.
    """
    return when == "always" or (when == "auto" and (verbosity > 0 or failed))


def summary_lines(record: Mapping[str, Any], folder: Path) -> list[str]:
    """Return a line for each server, and below them where their logs are and where on a cluster they ran.

    Args:
        record: That of the run.
        folder: What its paths are relative to.
    """
    servers = record["servers"]
    if not servers:
        return []
    rows = [_row(server, record["started"]) for server in servers]
    # A column that says nothing of any server is left out.
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    table = [dict(zip(names, names, strict=True)), *({name: row[name] or "-" for name in names} for row in rows)]
    lines = _aligned(names, table)
    logged = [server for server in servers if server["log"]]
    width = max((len(server["name"]) for server in logged), default=0)
    for server in logged:
        parts = (f"{server['name']:<{width}}", from_here(folder / server["log"]), where_it_ran(server["lives"]))
        lines.append("  ".join(filter(None, parts)))
    return lines


def _row(server: Mapping[str, Any], begun: float) -> dict[str, str]:
    heartbeat = server["heartbeat"]
    starts = [life["launched"] for life in server["lives"] if life["launched"] is not None]
    return {
        "server": server["name"],
        "backend": server["backend"],
        "start": f"+{max(0.0, starts[0] - begun):.1f} s" if starts else "",
        "ready": _how_ready(server),
        "tests": str(server["tests"]),
        "failed": str(server["failed"]) if server["failed"] else "",
        "restarts": str(server["restarts"]),
        "peak RSS": as_size(server["peak_rss_bytes"]) if server["peak_rss_bytes"] else "",
        "peak GPU": as_size(server["peak_gpu_bytes"]) if server["peak_gpu_bytes"] else "",
        "heartbeat p50/p99": _latencies(heartbeat),
        "stop": _how_stopped(server),
        "leaks": _leaks(server),
    }


def _how_ready(server: Mapping[str, Any]) -> str:
    if server["ready_seconds"] is not None:
        return f"{server['ready_seconds']:.1f} s"
    return "kept" if any(life["taken_over"] for life in server["lives"]) else "never"


def _how_stopped(server: Mapping[str, Any]) -> str:
    last = server["lives"][-1] if server["lives"] else None
    if last is not None and last["end"] in ("kept", "died"):
        return str(last["end"])
    return "" if server["stop_seconds"] is None else f"{server['stop_seconds']:.1f} s"


def _latencies(heartbeat: Mapping[str, Any]) -> str:
    if heartbeat["p50_seconds"] is None:
        return f"{heartbeat['failed']} failed" if heartbeat["failed"] else ""
    text = f"{_ms(heartbeat['p50_seconds'])}/{_ms(heartbeat['p99_seconds'])} ms"
    return f"{text}, {heartbeat['failed']} failed" if heartbeat["failed"] else text


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}" if seconds >= 0.0005 else "<1"


def _leaks(server: Mapping[str, Any]) -> str:
    if server["leaks"] is None:
        return ""
    errors = sum(leak["fails"] for leak in server["leaks"])
    warnings = len(server["leaks"]) - errors
    parts = [
        f"{count} {word}{'s' if count > 1 else ''}"
        for count, word in ((errors, "error"), (warnings, "warning"))
        if count
    ]
    return ", ".join(parts) or "none"


def _aligned(names: Sequence[str], table: Sequence[Mapping[str, str]]) -> list[str]:
    widths = {name: max(len(row[name]) for row in table) for name in names}
    return [
        "  ".join(
            row[name].rjust(widths[name]) if name in _NUMBERS else row[name].ljust(widths[name]) for name in names
        ).rstrip()
        for row in table
    ]
