"""What became of one server, as a dictionary for run.json; see `run_record` for its place there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.reporting.paths import relative
from pytest_infserver.reporting.record.series import MAX_POINTS, halved
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.diagnosis.journal import Event
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.reporting.record.memory_sampler import Memory

_MAX_TEXT = 500
_WORTH_A_PHASE = 0.05


def server_record(
    server: InferenceServer, label: str, folder: Path, memory: Sequence[tuple[float, Memory]] = ()
) -> dict[str, Any]:
    """Return what is known of a server at the end of a run.

    Args:
        server: The server.
        label: What it is called among the servers of the run.
        folder: Paths are relative to it.
        memory: What it was seen using.
    """
    events = server.journal.events
    lives = lives_of(events)
    used = [event.fields["max_rss_bytes"] for event in events if event.fields.get("max_rss_bytes")]
    unchecked = server.attached or not server.debug_mode
    gpu = [value for _, (_, value) in memory if value is not None]
    runs = [life for life in lives if life["ready"] is not None]
    return {
        "name": label,
        "backend": server.backend_name,
        "model": clean(server.model, server.secrets),
        "url": clean(server.server_url, server.secrets),
        "attached": server.attached,
        "command": _command(server),
        "log": None if server.attached else relative(server.log_path, folder),
        "folder": None if server.attached else relative(server.log_path.parent, folder),
        "lives": lives,
        "restarts": max(0, len(runs) - 1),
        "ready_seconds": _last(events, "ready"),
        "stop_seconds": _last(events, "stopped"),
        "peak_rss_bytes": max([*used, *(rss for _, (rss, _) in memory)], default=None),
        "peak_gpu_bytes": max(gpu, default=None),
        "memory": [[_time(time), *values] for time, values in memory],
        "heartbeat": heartbeat_record(list(server.heartbeats)),
        # null: nobody has looked.
        "leaks": [leak for event in events for leak in _left_behind(event)] or (None if unchecked else []),
        "artifacts": [relative(path, folder) for path in server.profiles],
    }


def _command(server: InferenceServer) -> str | None:
    try:
        return None if server.attached else str(server.command())
    except Exception:
        # It could not be started because of that, which its life tells.
        return None


def lives_of(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return a server's launches, each from its beginning to its end."""
    lives: list[dict[str, Any]] = []
    life: dict[str, Any] | None = None

    def end(event: Event, kind: str, how: str | None) -> None:
        if life is not None and life["end"] is None:
            life.update(ended=_time(event.time), end=kind, how=how, cause=_short(event.fields.get("cause")))

    starting: float | None = None
    node: str | None = None
    for event in events:
        fields = event.fields
        if event.kind == "starting":
            starting, node = _time(event.time), None
        elif event.kind == "placed":
            # Nothing else has a start look for a second place.
            end(event, "failed", "its node was lost")
            node = fields["node"]
        elif event.kind in ("launched", "taken_over", "attached"):
            # Nothing else makes a start launch its server twice.
            end(event, "failed", "its port was taken")
            life, starting = _new_life(event, starting, node), None
            lives.append(life)
        elif event.kind == "failed":
            if life is None or life["end"] is not None:
                life, starting = _new_life(event, starting, node), None
                lives.append(life)
            # Its process may have been killed by us, for this reason.
            end(event, "failed", _short(fields["error"]))
            life["cause"] = _cause(fields["error"])
        elif life is None or life["end"] is not None:
            continue
        elif event.kind == "phase":
            life["phases"].append([_time(event.time), fields["phase"]])
        elif event.kind == "ready":
            life["ready"] = _time(event.time)
        elif event.kind == "asleep":
            life["asleep"].append([_time(event.time), None])
        elif event.kind == "awake" and life["asleep"]:
            life["asleep"][-1][1] = _time(event.time)
        elif event.kind == "stopping":
            life["stopping"] = _time(event.time)
        elif event.kind in ("stopped", "died"):
            end(event, event.kind, _short(fields.get("how")))
        elif event.kind == "kept":
            end(event, "kept", None)
    return lives


def where_it_ran(lives: Iterable[Mapping[str, Any]]) -> str:
    """Return on which nodes of a cluster a server had its lives, in words; nothing without a cluster."""
    nodes = dict.fromkeys(life["node"] for life in lives if life["node"])
    return f"on {', then '.join(nodes)}" if nodes else ""


def _cause(error: str) -> str | None:
    """Return the cause that the text of a start error names."""
    found = re.search(r"^  cause: +(.*)$", error, re.MULTILINE)
    return None if found is None else _short(found[1])


def _new_life(event: Event, starting: float | None, node: str | None) -> dict[str, Any]:
    is_running, now = event.kind == "taken_over", _time(event.time)
    began = now if starting is None else starting
    return {
        "launch": event.fields.get("launch"),
        "pid": event.fields.get("pid"),
        "node": node,
        # With what is done before there is a process, such as the download of a model.
        "launched": None if event.kind in ("taken_over", "attached") else began,
        "ready": now if is_running else None,
        "stopping": None,
        "ended": None,
        "asleep": [],
        "phases": [[now, "starting"]] if event.kind == "launched" and now - began >= _WORTH_A_PHASE else [],
        "end": None,
        "how": None,
        "cause": None,
        "taken_over": is_running,
    }


def heartbeat_record(samples: Sequence[tuple[float, float | None]]) -> dict[str, Any]:
    """Return what the heartbeat has seen.

    Args:
        samples: When the server was checked, and in how many seconds it answered; None if it did not.
    """
    good = sorted(seconds for _, seconds in samples if seconds is not None)
    shown = list(samples)
    while len(shown) > MAX_POINTS:
        shown = halved(shown, _slower)
    return {
        "count": len(samples),
        "failed": len(samples) - len(good),
        "p50_seconds": _percentile(good, 0.5),
        "p99_seconds": _percentile(good, 0.99),
        "samples": [[_time(time), None if seconds is None else round(seconds, 6)] for time, seconds in shown],
    }


def _slower(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    # The nearest rank: a value that was measured.
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 6) if ordered else None


def merged(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one record for each name: a factory may start many servers with the same one."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        first = found.setdefault(record["name"], record)
        if first is not record:
            _merge(first, record)
    return list(found.values())


def _merge(first: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key in ("lives", "artifacts"):
        first[key] = [*first[key], *other[key]]
    if other["leaks"] is not None:
        first["leaks"] = [*(first["leaks"] or ()), *other["leaks"]]
    first["memory"] = sorted([*first["memory"], *other["memory"]])[-MAX_POINTS:]
    for key in ("url", "command", "log", "folder", "ready_seconds", "stop_seconds"):
        first[key] = first[key] if other[key] is None else other[key]
    for key in ("peak_rss_bytes", "peak_gpu_bytes"):
        first[key] = max([size for size in (first[key], other[key]) if size is not None], default=None)
    samples = [*first["heartbeat"]["samples"], *other["heartbeat"]["samples"]]
    first["heartbeat"] = heartbeat_record(
        [(time, seconds) for time, seconds in sorted(samples, key=lambda one: one[0])]
    )


def _last(events: Sequence[Event], kind: str) -> float | None:
    return next((event.fields["seconds"] for event in reversed(events) if event.kind == kind), None)


def _left_behind(event: Event) -> list[dict[str, Any]]:
    if event.fields.get("leaks"):
        return list(event.fields["leaks"])
    killed = event.fields.get("survivors", ())
    return [{"kind": "process", "text": f"{text}; killed", "fails": False} for text in killed]


def _short(text: Any) -> str | None:
    line = str(text).partition("\n")[0] if text else ""
    return (line if len(line) <= _MAX_TEXT else f"{line[:_MAX_TEXT]} ...") or None


def _time(seconds: float) -> float:
    return round(seconds, 3)
