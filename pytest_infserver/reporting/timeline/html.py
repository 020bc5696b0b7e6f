"""`report.html`: the run on one page that needs nothing but a browser.

Everything in it comes from foreign programs. What a reader needs without JavaScript is written here, escaped; all else
is data for the script, which makes text of it and never markup. A policy lets no other script or style in, and no
request out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from html import escape
from typing import Any

from pytest_infserver.reporting.record.server_record import where_it_ran
from pytest_infserver.reporting.terminal.server_table import as_size
from pytest_infserver.reporting.timeline.document import document_head, resource
from pytest_infserver.reporting.timeline.links import link
from pytest_infserver.reporting.timeline.loads import measures_section
from pytest_infserver.reporting.timeline.payload import BAD, MAX_ID, MAX_NAME, MEANINGS, Excerpt, Payload
from pytest_infserver.reporting.timeline.shape import known
from pytest_infserver.reporting.timeline.text import plain

MAX_SIZE = 290_000
"""Bytes that excerpts of logs may fill the page up to; what tells of failures comes on top of that."""
_MIN_EXCERPTS = 24_000
_MAX_EXCERPTS = 120_000
_EXCERPTS_PER_TEST = 24
_MAX_LISTED = 100
_MAX_LINE = 20_000
"""More than a leak's path and command line may have."""
_ORDER = ("failed", "error", "interrupted", "passed", "skipped", "xfailed", "xpassed", "rerun")
_EXITS = {
    0: "all passed",
    1: "some failed",
    2: "interrupted",
    3: "internal error",
    4: "usage error",
    5: "no tests",
}
_HEAD = (
    "server",
    "start",
    "ready after",
    "stop",
    "tests",
    "restarts",
    "peak memory",
    "heartbeat",
    "engine",
    "leaks",
    "",
)


def render_html(record: Mapping[str, Any], excerpt: Excerpt) -> str:
    """Return the page.

    Args:
        record: What `run.json` has.
        excerpt: ``excerpt(server_name, start, end, limit)`` returns about ``limit`` characters of what a server has
            logged between two byte offsets, cleaned.
    """
    record = known(record)
    payload = Payload(record)
    style, script = resource("report.css"), resource("report.js")
    before = _before(record, style, script)
    after = f"{_noscript(record)}</main>\n<script>{script}</script>\n</body>\n</html>\n"
    # The script may shorten what it gets, so the room for excerpts is what all else leaves.
    rest = sum(len(part.encode("utf-8", "replace")) for part in (before, _json(payload.packed()), after))
    tests = len(record["tests"])
    least = max(_MIN_EXCERPTS, _EXCERPTS_PER_TEST * tests)
    payload.add_excerpts(excerpt, _size, max(least, min(_MAX_EXCERPTS, MAX_SIZE - rest)))
    payload.add_details()
    data = f'<script type="application/json" id="data">{_json(payload.packed())}</script>\n'
    # What is left of halves of surrogate pairs could not be written.
    return f"{before}{data}{after}".encode("utf-8", "replace").decode()


def _json(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _size(text: str) -> int:
    return len(_json(text).encode("utf-8", "replace"))


def _before(record: Mapping[str, Any], style: str, script: str) -> str:
    return (
        document_head(plain(_title(record), MAX_NAME), style, script)
        + f"""<body>
<main>
<header class="head">
<p class="title">Inference servers under test</p>
<h1>{_headline(record)}</h1>
{_bar(record)}
<p class="facts">{_facts(record)}</p>
<p class="facts faint">{_versions(record)}</p>
</header>
{_notes("Errors", record["errors"], "errors")}{_notes("Incidents", record["incidents"], "incidents")}
<section id="timeline" aria-label="Timeline" hidden></section>
<section aria-labelledby="servers-title">
<h2 id="servers-title">Servers</h2>
{_servers(record)}
</section>
{measures_section(record["tests"])}<section id="tests" aria-label="Tests" hidden></section>
"""
    )


def _text(value: object, limit: int = MAX_NAME) -> str:
    return escape(plain(value, limit))


def _counts(record: Mapping[str, Any]) -> list[tuple[str, int]]:
    outcomes = record["outcomes"]
    names = [name for name in _ORDER if name in outcomes] + [name for name in outcomes if name not in _ORDER]
    return [(name, int(outcomes[name])) for name in names if outcomes[name] >= 1]


def _title(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {_many(count, name)}" for name, count in _counts(record)) or "no tests"


def _headline(record: Mapping[str, Any]) -> str:
    counts = _counts(record)
    parts = [
        f'<span class="count {_class(name)}"><b>{count}</b> {_text(_many(count, name), 40)}</span>'
        for name, count in counts
    ]
    return " ".join(parts) or "no tests"


def _many(count: int, outcome: str) -> str:
    return "errors" if outcome == "error" and count > 1 else outcome


def _class(outcome: object) -> str:
    return f"o-{outcome}" if outcome in _ORDER else "o-other"


def _bar(record: Mapping[str, Any]) -> str:
    counts = _counts(record)
    total = sum(count for _, count in counts)
    if not total:
        return ""
    x = 0.0
    rects = []
    for name, count in counts:
        # One failure among thousands is still to be seen.
        width = max(0.6, 100 * count / total)
        rects.append(f'<rect class="{_class(name)}" x="{x:.2f}" y="0" width="{width:.2f}" height="4"/>')
        x += width
    shape = f'viewBox="0 0 {x:.2f} 4" preserveAspectRatio="none"'
    return f'<svg class="shares" {shape} aria-hidden="true">{"".join(rects)}</svg>'


def _facts(record: Mapping[str, Any]) -> str:
    begin, end = record["started"], record["ended"]
    facts = [
        None if begin is None or end is None else duration(end - begin),
        _plural(len(record["servers"]), "server"),
        _plural(int(record["workers"] or 0), "worker") if record["workers"] else None,
        f"Ray cluster {record['cluster']}" if record["cluster"] else None,
        None if begin is None else _date(begin),
    ]
    return " · ".join(_text(fact) for fact in facts if fact)


def _versions(record: Mapping[str, Any]) -> str:
    status = record["exit_status"]
    names = (("pytest_infserver", "pytest-infserver"), ("pytest", "pytest"), ("python", "Python"))
    facts = [f"{name} {record[key]}" for key, name in names if record[key]]
    facts += [record["platform"]] if record["platform"] else []
    if isinstance(status, int):
        facts.append(f"exit status {status}{f' ({_EXITS[status]})' if status in _EXITS else ''}")
    return " · ".join(map(_text, facts))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _date(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment, tz=timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    except (OverflowError, OSError, ValueError):
        return ""


def duration(seconds: float | None) -> str:
    """Return a time as the page shows it: 3 ms, 1.23 s, 52.1 s, 3:05 min, 1:02:09 h."""
    if seconds is None:
        return "-"
    if seconds < 0.0995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _notes(title: str, lines: list[str], kind: str) -> str:
    if not lines:
        return ""
    shown = [f"<li>{_text(line, _MAX_LINE)}</li>" for line in lines[:_MAX_LISTED]]
    if len(lines) > _MAX_LISTED:
        shown.append(f"<li>and {len(lines) - _MAX_LISTED} more in run.json</li>")
    return f'<section class="notes {kind}"><h2>{title}</h2><ul>{"".join(shown)}</ul></section>\n'


def _servers(record: Mapping[str, Any]) -> str:
    servers = record["servers"]
    if not servers:
        return '<p class="faint">No server was used.</p>'
    head = "".join(f'<th scope="col"{_title_of(name)}>{name}</th>' for name in _HEAD)
    body = "".join(_server(server, record["started"] or 0.0) for server in servers)
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="servers">{table}</table></div>'


def _title_of(name: str) -> str:
    return f' title="{escape(MEANINGS[name])}"' if name in MEANINGS else ""


def _server(server: Mapping[str, Any], begin: float) -> str:
    metrics, failed, restarts = server["metrics"], server["failed"], server["restarts"]
    cells = [
        _start(server, begin),
        duration(server["ready_seconds"]),
        duration(server["stop_seconds"]),
        f"{server['tests'] or 0}{f' ({failed} failed)' if failed else ''}",
        "-" if restarts is None else str(restarts),
        _joined((f"{_bytes(server, 'peak_rss_bytes')}", f"GPU {_bytes(server, 'peak_gpu_bytes')}")),
        _heartbeat(server["heartbeat"]),
        _joined(
            (
                _some(metrics, "prompt_tokens", "in"),
                _some(metrics, "generated_tokens", "out"),
                _some(metrics, "requests", "requests"),
                _some(metrics, "errors", "errors") if metrics["errors"] else "-",
            )
        ),
        "-" if server["leaks"] is None else _leaks(server["leaks"]),
    ]
    title = f'<th scope="row">{_text(server["name"])}<span class="faint">{_kind(server)}</span></th>'
    row = "".join(f"<td>{_lines(cell)}</td>" for cell in cells)
    return f'<tr>{title}{row}<td class="links">{_links(server)}</td></tr>{_more(server, len(cells) + 2)}'


def _start(server: Mapping[str, Any], begin: float) -> str:
    launched = server["lives"][0]["launched"] if server["lives"] else None
    if server["attached"]:
        return "attached"
    if launched is None:
        return "-"
    return f"+{duration(launched - begin)}" if launched >= begin else "before this run"


def _kind(server: Mapping[str, Any]) -> str:
    about = (server["backend"], server["model"], where_it_ran(server["lives"]))
    return " · ".join(_text(part) for part in about if part)


def _bytes(server: Mapping[str, Any], name: str) -> str:
    value = server[name]
    return "-" if value is None else as_size(int(value))


def _joined(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if not part.endswith("-")) or "-"


def _lines(cell: str) -> str:
    return "<br>".join(_text(line) for line in cell.split("\n"))


def _some(values: Mapping[str, Any], name: str, what: str) -> str:
    value = values[name]
    return "-" if value is None else f"{value:,.0f} {what}".replace(",", "\u202f")


def _heartbeat(heartbeat: Mapping[str, Any]) -> str:
    p50, p99 = heartbeat["p50_seconds"], heartbeat["p99_seconds"]
    parts = [
        "-" if p50 is None else f"p50 {duration(p50)}",
        "-" if p99 is None else f"p99 {duration(p99)}",
        f"{heartbeat['failed']} of {heartbeat['count']} failed" if heartbeat["failed"] else "-",
    ]
    return _joined(parts)


def _leaks(leaks: list[dict[str, Any]]) -> str:
    fails = sum(1 for leak in leaks if leak["fails"])
    warnings = len(leaks) - fails
    parts = [_plural(fails, "leak")] if fails else []
    parts += [_plural(warnings, "warning")] if warnings else []
    return "\n".join(parts) or "none"


def _links(server: Mapping[str, Any]) -> str:
    artifacts = server["artifacts"]
    found = [(server["log"], "log"), *((one, plain(one, 300).rpartition("/")[2]) for one in artifacts[:20])]
    made = [f'<a href="{escape(address)}">{_text(name)}</a>' for target, name in found if (address := link(target))]
    if len(artifacts) > 20:
        made.append(f"and {len(artifacts) - 20} more")
    return "<br>".join(made)


def _more(server: Mapping[str, Any], columns: int) -> str:
    """Return a row with what went wrong, and with how the server was run."""
    lines = []
    for life in server["lives"]:
        if life["end"] in ("died", "failed"):
            cause = f": {life['cause']}" if life["cause"] else ""
            launch = f"launch {life['launch']} " if life["launch"] is not None else ""
            node = f"on {life['node']} " if life["node"] else ""
            lines.append(("bad", f"{launch}{node}{life['end']}: {life['how'] or 'nobody knows how'}{cause}"))
    for leak in server["leaks"] or []:
        kind, word = ("bad", "leak") if leak["fails"] else ("", "warning")
        lines.append((kind, f"{word} ({leak['kind']}): {leak['text']}"))
    shown = [
        f'<div class="{kind}"{_title_of(line.partition(" ")[0])}>{_text(line, _MAX_LINE)}</div>'
        for kind, line in lines[:_MAX_LISTED]
    ]
    if len(lines) > _MAX_LISTED:
        shown.append(f"<div>and {len(lines) - _MAX_LISTED} more in run.json</div>")
    if server["url"] or server["command"]:
        about = [_text(server[name], 4000) for name in ("url", "command") if server[name]]
        shown.append(f"<details><summary>address and command</summary><pre>{chr(10).join(about)}</pre></details>")
    return f'<tr class="more"><td colspan="{columns}">{"".join(shown)}</td></tr>' if shown else ""


def _noscript(record: Mapping[str, Any]) -> str:
    """Return what stands instead of the timeline where no script runs: the tests that failed."""
    bad = [test for test in record["tests"] if test["outcome"] in BAD]
    rows = [
        f"<tr><td>{_text(test['outcome'])}</td><td>{_text(test['id'], MAX_ID)}</td>"
        f"<td>{_text(test['message'], 200)}</td></tr>"
        for test in bad[:_MAX_LISTED]
    ]
    table = f"<h2>Failed tests</h2><table><tbody>{''.join(rows)}</tbody></table>" if rows else ""
    more = f"<p>and {len(bad) - _MAX_LISTED} more in run.json</p>" if len(bad) > _MAX_LISTED else ""
    return f"<noscript>{table}{more}<p>The timeline and the list of tests need JavaScript.</p></noscript>\n"
