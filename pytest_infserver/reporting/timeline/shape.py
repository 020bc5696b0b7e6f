"""What a record of a run looks like; what does not look like that is taken for not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MOST = 1e18


class _ListOrUnknown(list[Any]):
    """The shape of a list of which it matters whether it is empty or not known."""


_METRICS = {"prompt_tokens": float, "generated_tokens": float, "requests": float, "errors": float}
_LIFE = {
    **dict.fromkeys(("launch", "pid", "launched", "ready", "stopping", "ended"), float),
    **dict.fromkeys(("node", "end", "how", "cause"), str),
    "taken_over": bool,
    "phases": [(float, str)],
    "asleep": [(float, float)],
}
_SERVER = {
    **dict.fromkeys(("name", "backend", "model", "url", "command", "log"), str),
    **dict.fromkeys(("tests", "failed", "restarts", "ready_seconds", "stop_seconds"), float),
    **dict.fromkeys(("peak_rss_bytes", "peak_gpu_bytes"), float),
    "attached": bool,
    "lives": [_LIFE],
    "memory": [(float, float, float)],
    "heartbeat": {
        **dict.fromkeys(("count", "failed", "p50_seconds", "p99_seconds"), float),
        "samples": [(float, float)],
    },
    "leaks": _ListOrUnknown([{"kind": str, "text": str, "fails": bool}]),
    "artifacts": [str],
    "metrics": _METRICS,
}
_TIMES = {
    **dict.fromkeys(("count", "mean", "low", "high", "p50", "p90", "p99", "most"), float),
    "histogram": [(float, float)],
}
_LOAD = {
    **dict.fromkeys(("server", "workload", "prompts", "interrupted"), str),
    **dict.fromkeys(("completed", "failed", "seconds"), float),
    **dict.fromkeys(("requests_per_second", "output_tokens_per_second", "input_tokens_per_second", "goodput"), float),
    **dict.fromkeys(("ttft", "itl", "tpot", "e2e"), _TIMES),
    "failures": [{"kind": str, "count": float, "text": str}],
    "notes": [str],
}
_TEST = {
    **dict.fromkeys(("id", "outcome", "worker", "message"), str),
    **dict.fromkeys(("started", "ended"), float),
    **dict.fromkeys(("wait_seconds", "setup_seconds", "call_seconds", "teardown_seconds"), float),
    "details": [{"title": str, "text": str}],
    "servers": [
        {
            "name": str,
            **dict.fromkeys(("launch", "log_start", "log_end"), float),
            "shared": bool,
            "metrics": _METRICS,
        }
    ],
    "loads": [_LOAD],
    "scores": [{"name": str, "server": str, **dict.fromkeys(("value", "min", "max", "baseline"), float)}],
    "artifacts": [str],
}
_RECORD = {
    **dict.fromkeys(("pytest_infserver", "pytest", "python", "platform", "cluster"), str),
    **dict.fromkeys(("started", "ended", "exit_status", "workers"), float),
    "outcomes": dict,
    "servers": [_SERVER],
    "tests": [_TEST],
    "incidents": [str],
    "errors": [str],
}


def known(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record in which every value has the type that it should have.

    A number or text that is none is None, and so is a number that is not finite. A list or mapping that is none is
    empty, but for the leaks, which may not have been looked for. Items of lists that are of another kind are left out.
    """
    made: dict[str, Any] = _conform(record, _RECORD) or _conform({}, _RECORD)
    return made


def _conform(value: Any, shape: Any) -> Any:
    if shape is float:
        return _number(value)
    if shape is str:
        return value if isinstance(value, str) else None
    if shape is bool:
        return value if isinstance(value, bool) else None
    if shape is dict:
        counts = value.items() if isinstance(value, Mapping) else ()
        return {name: count for name, one in counts if isinstance(name, str) and (count := _number(one)) is not None}
    if isinstance(shape, _ListOrUnknown) and value is None:
        return None
    if isinstance(shape, list):
        items = value if isinstance(value, list) else ()
        if isinstance(shape[0], tuple) and all(part is float for part in shape[0]):
            return _points(items, len(shape[0]))
        return [item for one in items if (item := _conform(one, shape[0])) is not None]
    if isinstance(shape, tuple):
        # Without its time a point is of no use.
        if not isinstance(value, (list, tuple)) or len(value) != len(shape) or _number(value[0]) is None:
            return None
        return [_conform(one, part) for one, part in zip(value, shape, strict=True)]
    if not isinstance(value, Mapping):
        return None
    made = {}
    for key, part in shape.items():
        one = _conform(value.get(key), part)
        made[key] = _conform({}, part) if one is None and isinstance(part, dict) else one
    return made


def _points(items: Sequence[Any], length: int) -> list[list[Any]]:
    """Return what `_conform` would, faster: there may be thousands."""
    return [
        [moment, *map(_number, one[1:])]
        for one in items
        if isinstance(one, (list, tuple)) and len(one) == length and (moment := _number(one[0])) is not None
    ]


def _number(value: Any) -> float | int | None:
    # A bool is not meant; and NaN is not between any two numbers.
    return value if type(value) in (float, int) and -_MOST < value < _MOST else None
