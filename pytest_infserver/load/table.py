"""Results as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TIMES = (("TTFT", "ttft"), ("ITL", "itl"), ("TPOT", "tpot"), ("end to end", "e2e"))


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """Return one load's result, as `LoadResult.as_dict` tells it, in some lines."""
    failed = f", {result['failed']} failed" if result["failed"] else ""
    lines = [
        f"{result['server']}: {result['workload']}: {result['completed']} requests in {result['seconds']:.1f} s{failed}"
    ]
    rates = (
        ("requests/s", result["requests_per_second"]),
        ("output tokens/s", result["output_tokens_per_second"]),
        ("input tokens/s", result["input_tokens_per_second"]),
        ("goodput", result["goodput"]),
    )
    lines.append("  " + ", ".join(f"{shown_rate(value)} {name}" for name, value in rates))
    rows: list[tuple[str, ...]] = [("", "p50", "p90", "p99", "most", "mean (95 %)")]
    for title, name in _TIMES:
        one = result[name]
        if one["count"]:
            ends = f" ({shown(one['low'])} to {shown(one['high'])})" if one["low"] is not None else ""
            rows.append(
                (title, *(shown(one[part]) for part in ("p50", "p90", "p99", "most")), f"{shown(one['mean'])}{ends}")
            )
    lines += [f"  {line}" for line in columns(rows)] if len(rows) > 1 else []
    if result["queue_seconds"] is not None:
        lines.append(f"  in the engine's queue: {shown(result['queue_seconds'])} on average")
    shares = [
        f"{who} {100 * share:.0f} % of a core"
        for who, share in (("the server", result["server_share"]), ("the generator", result["generator_share"]))
        if share is not None
    ]
    lines += [f"  used: {', '.join(shares)}"] if shares else []
    lines += [f"  failed: {one['count']} x {one['kind']}: {one['text']}" for one in result["failures"]]
    return lines + [f"  note: {note}" for note in result["notes"]]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def shown(seconds: float | None) -> str:
    """Return a time as people read it."""
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{1e3 * seconds:.3g} ms"


def shown_rate(value: float | None) -> str:
    """Return a number per second."""
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"
