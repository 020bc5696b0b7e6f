"""The record of a run in the compact form that the script of `report.html` draws: long runs stay small files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pytest_infserver.reporting.timeline.links import link
from pytest_infserver.reporting.timeline.rows import rows
from pytest_infserver.reporting.timeline.text import plain

Excerpt = Callable[[str, int, int, int], str]
"""``excerpt(server_name, start, end, limit)``: about ``limit`` characters of a server's log between two offsets."""

OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed", "rerun", "interrupted")
BAD = ("failed", "error")
MAX_ID = 400
MAX_NAME = 200
MEANINGS = {
    "launch": "Which start of the server's process in this run: 1 is the first, each restart is one more.",
    "used": "alone: no other test used this server at the same time. shared: others did, and what the log and"
    " the engine say may be theirs.",
    "engine": "What the engine itself has counted, at its metrics endpoint: tokens, requests, errors.",
    "waiting": "For the test's servers to start or to be free, before its fixtures. No part of the setup that pytest"
    " reports.",
    "other": "What pytest and its plugins did between these parts, such as hooks and the making of reports.",
    "total": "From the test's begin to its end: waiting + setup + call + teardown + other.",
}
"""What words of the page mean."""
_MESSAGES = 40_000
"""Characters for the messages of all tests."""
_MAX_MESSAGE = 1500
_DETAILS = 500_000
"""Characters for the tracebacks and captured outputs of all tests."""
_LEAST_DETAILS = 600
_MAX_PHASES = 60
_MAX_NAPS = 1000
_MAX_ARTIFACTS = 20
_MEMORY_POINTS = 2400
"""Points for the memory of all servers; each keeps at least 20, and all the samples it has if that fits."""
_HEARTBEATS = 1500


class Payload:
    """What the script gets, and where the excerpts of logs go.

    Args:
        record: As `known` returns it.

    Attributes:
        data: JSON types only, with finite numbers.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._begin = record["started"] or _first(record)
        self._servers = record["servers"]
        self._indices = {server["name"]: index for index, server in enumerate(self._servers)}
        # What has no time comes last.
        self._tests = sorted(record["tests"], key=self._order)
        self._workers = sorted({plain(test["worker"], MAX_NAME) for test in self._tests if test["worker"]})
        # Where a server does not start, a thousand tests say the same.
        messages = dict.fromkeys(test["message"] for test in self._tests if test["message"])
        self._messages = {message: number for number, message in enumerate(messages)}
        longest = max(80, min(_MAX_MESSAGE, _MESSAGES // max(len(messages), 1)))
        self.data: dict[str, Any] = {
            "begin": self._begin,
            "end": self._end(record),
            "outcomes": OUTCOMES,
            "meanings": MEANINGS,
            "workers": self._workers,
            "messages": [plain(message, longest) for message in self._messages],
            "servers": [self._server(server) for server in self._servers],
            "tests": self._all_tests(),
        }

    def add_excerpts(self, excerpt: Excerpt, size: Callable[[str], int], budget: int) -> None:
        """Add what the servers logged during the tests: for failed tests first, then for others while there is room.

        Args:
            excerpt: Reads it.
            size: Tells how much room a text takes in the page.
            budget: The room for all of them.
        """
        bad = [index for index, test in enumerate(self._tests) if test["outcome"] in BAD]
        others = [index for index, test in enumerate(self._tests) if test["outcome"] not in BAD]
        for group, most in ((bad, 16 * 1024), (others, 1500)):
            left = sum(len(self._tests[index]["servers"]) for index in group)
            for index in group:
                for place, use in enumerate(self._uses(self._tests[index])):
                    limit = min(most, max(300, budget // max(left, 1)))
                    left -= 1
                    start, end = use["log_start"], use["log_end"]
                    if budget < limit or start is None or end is None or end <= start:
                        continue
                    text = plain(excerpt(str(use["name"]), int(start), int(end), limit), 2 * limit).strip("\n")
                    if text and size(text) <= budget:
                        budget -= size(text)
                        self.data["tests"][index][_EXCERPTS].append([place, text])

    def add_details(self) -> None:
        """Add the tracebacks and the captured output of the tests that failed."""
        texts = dict.fromkeys(one["text"] for test in self._tests for one in test["details"] if one["text"])
        numbers = {text: number for number, text in enumerate(texts)}
        # What short ones do not need is there for the long ones.
        limits, left = {}, _DETAILS
        for place, text in enumerate(sorted(texts, key=len)):
            limits[text] = max(_LEAST_DETAILS, left // (len(texts) - place))
            left -= min(len(text), limits[text], left)
        self.data["details"] = [plain(text, limits[text]) for text in texts]
        for test, made in zip(self._tests, self.data["tests"], strict=True):
            made.append([[plain(one["title"], 120), numbers[one["text"]]] for one in test["details"] if one["text"]])

    def packed(self) -> dict[str, Any]:
        """Return the data without what is empty at the ends of the lists."""
        return {**self.data, "tests": [_trimmed(test) for test in self.data["tests"]]}

    def _order(self, test: Mapping[str, Any]) -> float:
        begin = self._ms(test["started"])
        return float("inf") if begin is None else begin

    def _ms(self, moment: float | None) -> int | None:
        return None if moment is None else round((moment - self._begin) * 1000)

    def _end(self, record: Mapping[str, Any]) -> int:
        ends = [record["ended"], *(test["ended"] for test in self._tests)]
        ends += [life["ended"] or life["ready"] for server in self._servers for life in server["lives"]]
        return max([1, *(end for end in map(self._ms, ends) if end is not None)])

    def _uses(self, test: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [use for use in test["servers"] if use["name"] in self._indices]

    def _server(self, server: Mapping[str, Any]) -> dict[str, Any]:
        heartbeat = server["heartbeat"]
        share = max(1, len(self._servers))
        return {
            "name": plain(server["name"], MAX_NAME),
            "backend": plain(server["backend"], MAX_NAME),
            "model": plain(server["model"], MAX_NAME),
            "url": plain(server["url"], MAX_NAME),
            "attached": bool(server["attached"]),
            "log": link(server["log"]),
            "lives": [self._life(life) for life in server["lives"]],
            "memory": self._memory(server["memory"], _MEMORY_POINTS // share),
            "heartbeat": self._heartbeat(heartbeat["samples"], _HEARTBEATS // share),
            "p50": heartbeat["p50_seconds"],
            "p99": heartbeat["p99_seconds"],
            # The same figures as in the table.
            "ready": server["ready_seconds"],
            "peaks": [server["peak_rss_bytes"], server["peak_gpu_bytes"]],
        }

    def _life(self, life: Mapping[str, Any]) -> dict[str, Any]:
        phases = [[self._ms(at), plain(name, 80)] for at, name in life["phases"][:_MAX_PHASES]]
        moments = {name: self._ms(life[name]) for name in ("launched", "ready", "stopping", "ended")}
        naps = [[self._ms(begin), self._ms(woken)] for begin, woken in life["asleep"][:_MAX_NAPS]]
        words = {name: plain(life[name], 500) for name in ("node", "end", "how", "cause") if life[name]}
        numbers = {name: life[name] for name in ("launch", "pid")}
        return {
            **{name: value for name, value in {**moments, **numbers}.items() if value is not None},
            **words,
            "taken": bool(life["taken_over"]),
            "phases": phases,
            **({"asleep": naps} if naps else {}),
        }

    def _memory(self, points: Sequence[Any], most: int) -> list[list[int | None]]:
        """Return times as differences in ms, and resident and GPU memory in units of 100 kB."""
        kept = _worst(sorted(points, key=_moment), most, lambda point: (point[2] or 0, point[1] or 0))
        columns = [_units([point[column] for point in kept], 1e-5) for column in (1, 2)]
        return [_differences(self._ms(point[0]) or 0 for point in kept), *columns]

    def _heartbeat(self, samples: Sequence[Any], most: int) -> list[list[int | None]]:
        """Return times as differences in ms, and latencies in µs; a failed check has none."""
        kept = _worst(
            sorted(samples, key=_moment), most, lambda sample: float("inf") if sample[1] is None else sample[1]
        )
        return [_differences(self._ms(sample[0]) or 0 for sample in kept), _units([sample[1] for sample in kept], 1e6)]

    def _all_tests(self) -> list[list[Any]]:
        places = self._places()
        previous = ""
        made = []
        for index, test in enumerate(self._tests):
            name = plain(test["id"], MAX_ID)
            shared = _common(previous, name)
            previous = name
            # The script counts in units of UTF-16.
            units = len(name[:shared].encode("utf-16-le")) // 2
            made.append([units, name[shared:], *self._test(test, places.get((index, None)))])
            made[-1][_USES] = [
                _trimmed(self._use(use, places.get((index, self._indices[use["name"]])))) for use in self._uses(test)
            ]
        return made

    def _test(self, test: Mapping[str, Any], row: int | None) -> list[Any]:
        outcome = test["outcome"]
        worker = plain(test["worker"], MAX_NAME)
        seconds = [test[f"{phase}_seconds"] for phase in ("setup", "call", "teardown", "wait")]
        *durations, wait = [None if one is None else round(one * 1000) for one in seconds]
        begin, end = self._ms(test["started"]), self._ms(test["ended"])
        return [
            OUTCOMES.index(outcome) if outcome in OUTCOMES else plain(outcome, 40),
            begin,
            None if begin is None or end is None else max(0, end - begin),
            *durations,
            self._workers.index(worker) if worker else None,
            row,
            [],
            self._messages.get(test["message"]),
            [],
            [[plain(one, 300), link(one)] for one in test["artifacts"][:_MAX_ARTIFACTS]],
            wait or None,
        ]

    def _use(self, use: Mapping[str, Any], row: int | None) -> list[Any]:
        start, end = use["log_start"], use["log_end"]
        return [
            self._indices[use["name"]],
            row,
            None if use["shared"] is None else int(use["shared"]),
            use["launch"],
            start,
            None if start is None or end is None else end - start,
            *use["metrics"].values(),
        ]

    def _places(self) -> dict[tuple[int, int | None], int]:
        """Return the row of each test in the lane of each of its servers; None is the lane of those without one."""
        lanes: dict[int | None, list[tuple[int, int, int]]] = {}
        for index, test in enumerate(self._tests):
            begin, end = self._ms(test["started"]), self._ms(test["ended"])
            if begin is None or end is None:
                continue
            used: set[int | None] = {self._indices[use["name"]] for use in self._uses(test)}
            for lane in used or {None}:
                lanes.setdefault(lane, []).append((begin, end, index))
        places = {}
        for lane, spans in lanes.items():
            chosen = rows((begin, end) for begin, end, _ in spans)
            places.update({(span[2], lane): row for span, row in zip(spans, chosen, strict=True)})
        return places


_USES = 10
_EXCERPTS = 12
"""Where these are in the list of a test."""


def _moment(point: Sequence[float]) -> float:
    return point[0]


def _common(first: str, second: str) -> int:
    """Return how many characters two texts have in common at their beginnings."""
    length = min(len(first), len(second))
    return next((index for index in range(length) if first[index] != second[index]), length)


def _first(record: Mapping[str, Any]) -> float:
    moments = [test["started"] for test in record["tests"]]
    return min((moment for moment in moments if moment is not None), default=0.0)


def _worst(points: list[Any], most: int, badness: Callable[[Any], Any]) -> list[Any]:
    """Return at most about ``most`` of the points: of each group of neighbours the worst, so that no peak is lost."""
    step = -(-len(points) // max(20, most))
    if step <= 1:
        return points
    return [max(points[begin : begin + step], key=badness) for begin in range(0, len(points), step)]


def _differences(values: Iterable[int]) -> list[int | None]:
    previous = 0
    made: list[int | None] = []
    for value in values:
        made.append(value - previous)
        previous = value
    return made


def _units(values: Iterable[float | None], factor: float) -> list[int | None]:
    made = [None if value is None else round(value * factor) for value in values]
    return made if any(value is not None for value in made) else []


def _trimmed(values: list[Any]) -> list[Any]:
    whole = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    while whole and whole[-1] in (None, "", []):
        whole.pop()
    return whole
