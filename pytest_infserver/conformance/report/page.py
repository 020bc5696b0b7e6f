"""`conformance.html`: the grid on one page, in the look of `report.html`. It needs no script and asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

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
from pytest_infserver.reporting.timeline.document import document_head, resource

if TYPE_CHECKING:
    from pytest_infserver.conformance.report.grid import Grid

_STYLE = """
.grid-page td, .grid-page tbody th { border-top: 1px solid var(--line); }
.grid-page .area { font-weight: 600; padding-top: 14px; }
.grid-page .v-passes, .grid-page .v-passes-now { color: var(--passed); }
.grid-page .v-fails { color: var(--failed); font-weight: 600; }
.grid-page .v-known { color: var(--xfailed); }
.grid-page .v-not-offered, .grid-page .v-not-asked { color: var(--faint); }
.grid-page details { max-width: 70ch; } .grid-page details p { margin: 4px 0; overflow-wrap: anywhere; }
"""
_ORDER = (FAILS, FIXED, KNOWN, NOT_ASKED, PASSES, NOT_OFFERED)
_CLASSES = {FAILS: "o-failed", KNOWN: "o-xfailed", FIXED: "o-xpassed", PASSES: "o-passed"}


def render_page(grid: Grid, data: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        grid: The grid.
        data: What `conformance.json` has.
    """
    facts = f"level {data['level']} · {data['date']} · pytest-infserver {data['pytest_infserver']}"
    legend = " ".join(f'<span class="v-{_class(word)}">{word}</span>: {text}.' for word, text in WORDS.items())
    title = f"Conformance: {', '.join(grid.servers)}"
    return f"""{document_head(title, resource("report.css") + _STYLE)}<body>
<main class="grid-page">
<header class="head">
<p class="title">Conformance of inference servers</p>
<h1>{_headline(grid)}</h1>
<p class="facts">{escape(facts)}</p>
<p class="facts faint">{legend}</p>
</header>
<section><div class="scroll"><table>{_head(grid)}<tbody>{_rows(grid)}</tbody></table></div></section>
</main>
</body>
</html>
"""


def _class(word: str) -> str:
    return word.replace(" ", "-")


def _headline(grid: Grid) -> str:
    words = [one.verdict for one in grid.verdicts]
    parts = [
        f'<span class="count {_CLASSES.get(word, "o-other")}"><b>{words.count(word)}</b> {word}</span>'
        for word in _ORDER
        if word in words
    ]
    return " ".join(parts)


def _head(grid: Grid) -> str:
    names = (
        f'<th scope="col">{escape(name)}<br><span class="faint">{escape(grid.heading(name))}</span></th>'
        for name in grid.servers
    )
    return f'<thead><tr><th scope="col">statement</th>{"".join(names)}</tr></thead>'


def _rows(grid: Grid) -> str:
    rows, area = [], ""
    for key in grid.statements():
        first, _, name = key.partition(".")
        cells = [grid.cell(key, server) for server in grid.servers]
        if first != area:
            area = first
            rows.append(f'<tr><th class="area" scope="rowgroup" colspan="{len(cells) + 1}">{escape(area)}</th></tr>')
        about = next(cell for cell in cells if cell is not None)
        title = (
            f'<th scope="row"><details><summary>{escape(name.replace("_", " "))}</summary>'
            f'<p>{escape(about.statement)}</p><p class="faint">{escape(about.source)} ({about.level})</p>'
            "</details></th>"
        )
        rows.append(f"<tr>{title}{''.join(map(_cell, cells))}</tr>")
    return "".join(rows)


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "<td></td>"
    word = f'<span class="v-{_class(verdict.verdict)}">{verdict.verdict}</span>'
    if not verdict.reason:
        return f"<td>{word}</td>"
    curl = f"<pre>{escape(verdict.curl)}</pre>" if verdict.curl else ""
    return f"<td><details><summary>{word}</summary><p>{escape(verdict.reason)}</p>{curl}</details></td>"
