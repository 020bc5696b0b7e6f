"""The grid: statements as rows, servers as columns; on the terminal, as `conformance.json`, and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

import pytest_infserver
from pytest_infserver.conformance.verdicts.verdict import (
    FAILS,
    FIXED,
    KNOWN,
    NOT_ASKED,
    NOT_OFFERED,
    PASSES,
    WORDS,
    Verdict,
)

SIGNS = {PASSES: "pass", FAILS: "FAIL", KNOWN: "known", FIXED: "PASS!", NOT_OFFERED: "-", NOT_ASKED: "?"}
"""How each verdict is shown in the grid."""
WORST_FIRST = (FAILS, NOT_ASKED, FIXED, KNOWN, PASSES, NOT_OFFERED)
AREAS = (
    *("models", "completions", "chat", "streaming", "determinism", "sampling", "limits", "structured", "tools"),
    *("reasoning", "embeddings", "rerank", "tokenize", "responses", "messages", "errors", "http", "concurrency"),
)
"""The areas in the order of the grid."""
SCHEMA_VERSION = 1
_MAX_TOLD = 300


class Grid:
    """The verdicts of a run."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], dict[str, Verdict]] = {}
        self._versions: dict[str, str] = {}

    def add(self, verdict: Verdict) -> None:
        """Take a verdict in; of a test that was repeated the last one counts."""
        self._cells.setdefault((verdict.key, verdict.server), {})[verdict.case] = verdict
        if not self._versions.get(verdict.server):
            self._versions[verdict.server] = verdict.version

    @property
    def verdicts(self) -> list[Verdict]:
        """All of them, in the order of the grid."""
        order = {area: number for number, area in enumerate(AREAS)}
        found = (one for cases in self._cells.values() for one in cases.values())
        return sorted(found, key=lambda one: order.get(one.area, len(order)))

    @property
    def servers(self) -> list[str]:
        """The servers, in the order in which they came."""
        return list(self._versions)

    def heading(self, server: str) -> str:
        """Return the engine and version of a server, as far as known."""
        return self._versions.get(server, "")

    def statements(self) -> list[str]:
        """Return the keys of the rows."""
        return list(dict.fromkeys(one.key for one in self.verdicts))

    def cell(self, key: str, server: str) -> Verdict | None:
        """Return the verdict of a statement for a server: the worst of those with several values."""
        found = self._cells.get((key, server), {}).values()
        return min(found, key=lambda one: WORST_FIRST.index(one.verdict), default=None)

    def counts(self, server: str) -> dict[str, int]:
        """Return how often each verdict is there for a server."""
        cells = (self.cell(key, server) for key in self.statements())
        words = [cell.verdict for cell in cells if cell is not None]
        return {word: words.count(word) for word in WORDS}

    def as_data(self, level: str) -> dict[str, Any]:
        """Return what `conformance.json` has.

        Args:
            level: The level that was asked for.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "pytest_infserver": pytest_infserver.__version__,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S +0000"),
            "level": level,
            "servers": [
                {"name": name, "version": self.heading(name), "counts": self.counts(name)} for name in self.servers
            ],
            "verdicts": [one.as_data() for one in self.verdicts],
        }


def grid_lines(grid: Grid) -> list[str]:
    """Return the grid for the terminal: the rows, what they count, and what is behind each that does not just pass."""
    names = grid.servers
    rows = [["", *names], ["", *(grid.heading(name) for name in names)]]
    area = ""
    for key in grid.statements():
        first, _, name = key.partition(".")
        if first != area:
            area = first
            rows.append([first])
        cells = (grid.cell(key, server) for server in names)
        rows.append([f"  {name.replace('_', ' ')}", *("" if cell is None else SIGNS[cell.verdict] for cell in cells)])
    lines = _aligned(rows)
    lines.append("")
    for server in names:
        counts = [f"{count} {word}" for word, count in grid.counts(server).items() if count]
        lines.append(f"{server or 'no server'}: {', '.join(counts)}")
    return lines + _told(grid.verdicts)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    columns = max(map(len, rows))
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(columns)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def _told(verdicts: Iterable[Verdict]) -> list[str]:
    lines = []
    unasked: dict[tuple[str, str], int] = {}
    for one in verdicts:
        if one.verdict in (FAILS, FIXED):
            lines += ["", f"{one.server}: {one.key}: {one.verdict}: {one.reason[:_MAX_TOLD]}"]
            lines += [f"  {one.curl}"] if one.curl else []
        elif one.verdict == NOT_ASKED:
            told = one.server, one.reason[:_MAX_TOLD]
            unasked[told] = unasked.get(told, 0) + 1
    for (server, reason), count in unasked.items():
        times = f" ({count} statements)" if count > 1 else ""
        lines += ["", f"{server or 'no server'}: could not be asked{times}: {reason}"]
    return lines
