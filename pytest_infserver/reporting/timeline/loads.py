"""The loads and scores of a run in `report.html`: a table, and for each load a picture of its latencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pytest_infserver.load.table import shown, shown_rate
from pytest_infserver.reporting.timeline.text import plain

_MAX_NAME = 200
_MOST = 100
"""Loads and scores that are shown."""
_WIDTH, _HEIGHT, _FOOT = 520, 90, 16
_DRAWN = (("ttft", "time to the first token", "var(--accent)"), ("e2e", "end to end", "var(--faint)"))


def measures_section(tests: Sequence[Mapping[str, Any]]) -> str:
    """Return the section, or "" if no test has measured anything.

    Args:
        tests: The records of the tests.
    """
    loads = [(test, load) for test in tests for load in test["loads"]]
    scores = [(test, score) for test in tests for score in test["scores"]]
    if not loads and not scores:
        return ""
    parts = [_load(test, load) for test, load in loads[:_MOST]]
    parts += [_scores(scores[:_MOST])] if scores else []
    more = len(loads) + len(scores) - min(len(loads), _MOST) - min(len(scores), _MOST)
    parts += [f"<p>and {more} more in run.json</p>"] if more else []
    return f'<section aria-labelledby="load-title"><h2 id="load-title">Load</h2>{"".join(parts)}</section>\n'


def _load(test: Mapping[str, Any], load: Mapping[str, Any]) -> str:
    times = [
        f"{title} {shown(load[name]['p50'])} / {shown(load[name]['p90'])} / {shown(load[name]['p99'])}"
        for name, title in (("ttft", "TTFT"), ("itl", "ITL"), ("tpot", "TPOT"), ("e2e", "end to end"))
        if load[name]["count"]
    ]
    rates = [shown_rate(load[f"{name}_per_second"]) for name in ("requests", "output_tokens")]
    facts = [
        f"{_number(load['completed'])} requests, {_number(load['failed'])} failed",
        f"{rates[0]} requests/s, {rates[1]} tokens/s",
        *([f"p50 / p90 / p99: {'; '.join(times)}"] if times else []),
        *(f"{_number(one['count'])} x {one['kind']}: {one['text']}" for one in load["failures"]),
        *load["notes"],
    ]
    lines = "".join(f"<li>{_text(fact)}</li>" for fact in facts)
    head = f"{_text(test['id'])}: {_text(load['workload'])} on {_text(load['server'])}"
    return f"<h3>{head}</h3><ul>{lines}</ul>{_picture(load)}"


def _picture(load: Mapping[str, Any]) -> str:
    bins = {name: [(end, count) for end, count in load[name]["histogram"] if end > 0 and count] for name, *_ in _DRAWN}
    ends = [end for found in bins.values() for end, _ in found]
    if not ends:
        return ""
    low, high = math.log(min(ends)) - 0.05, math.log(max(ends)) + 0.05
    most = max(count for found in bins.values() for _, count in found)
    bars = []
    for name, title, colour in _DRAWN:
        for end, count in bins[name]:
            height = max(1.0, (_HEIGHT - _FOOT) * count / most)
            left = (_WIDTH - 4) * (math.log(end) - low) / (high - low)
            bars.append(
                f'<rect x="{left:.1f}" y="{_HEIGHT - _FOOT - height:.1f}" width="4" height="{height:.1f}"'
                f' fill="{colour}" fill-opacity="0.75"><title>{title}: {count:g} up to {shown(end)}</title></rect>'
            )
    style = f'y="{_HEIGHT - 3}" font-size="11" fill="currentColor"'
    marks = "".join(
        f'<text x="{place}" text-anchor="{anchor}" {style}>{shown(value)}</text>'
        for place, anchor, value in ((0, "start", min(ends)), (_WIDTH, "end", max(ends)))
    )
    label = "How many requests took how long, to the first token and to the end; the scale is logarithmic"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(bars)}{marks}</svg>"
    )


def _scores(scores: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("score", "value", "at least", "at most", "baseline", "test"))
    rows = []
    for test, score in scores:
        numbers = [_number(score[name]) for name in ("value", "min", "max", "baseline")]
        cells = [score["name"], *numbers, test["id"]]
        rows.append(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _text(value: object) -> str:
    return escape(plain(value, _MAX_NAME))
