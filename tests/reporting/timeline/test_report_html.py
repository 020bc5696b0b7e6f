"""`report.html` as a text: what is in it, how large it is, and that nothing breaks it. Browsers: tests/engines."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from reporting.timeline.records import sample_excerpt, sample_record, with_odd_values

from pytest_infserver.reporting.timeline.html import duration, render_html
from pytest_infserver.reporting.timeline.payload import OUTCOMES, Payload

MARKUP = '"\'><img src=x onerror="window.hit=1"><script>window.hit=1</script><!-- ]]>'
NASTY = f"{MARKUP} \u2028\u2029 &lt;b&gt; \0\x1b[31m\ud800"


def no_log(*_: object) -> str:
    return ""


class Page(HTMLParser):
    """The page, read by another parser than a browser's."""

    VOID = ("meta", "rect", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.texts: dict[str, list[str]] = {}
        self.handlers: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.handlers += [name for name in values if name.startswith("on")]
        self.links += [values["href"] or ""] if "href" in values else []
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        if tag not in self.VOID:
            self.open.append("data" if values.get("id") == "data" else tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() in (tag, "data")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def data(self) -> Any:
        return json.loads("".join(self.texts["data"]))

    def text(self) -> str:
        return " ".join(
            part for tag, parts in self.texts.items() if tag not in ("data", "script", "style") for part in parts
        )


def ids(data: Any) -> list[str]:
    """Return the tests' ids as the script unpacks them."""
    found, before = [], b""
    for row in data["tests"]:
        before = before[: 2 * row[0]] + row[1].encode("utf-16-le")
        found.append(before.decode("utf-16-le"))
    return found


def test_the_page_is_one_file_that_a_parser_understands() -> None:
    record = sample_record()
    page = Page(render_html(record, sample_excerpt(record)))
    assert page.open == []
    assert page.tags.count("script") == 2
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not page.handlers
    assert set(page.links) == {
        "./llama-tp1/server.log",
        "./llama-tp2/server.log",
        "../profiles/llama-tp2/server.nsys-rep",
    }


def test_the_policy_lets_in_this_script_and_style_and_no_request_out() -> None:
    page = Page(render_html(sample_record(), no_log))
    rules = dict(rule.strip().partition(" ")[::2] for rule in page.policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    for kind in ("script", "style"):
        text = "".join(page.texts[kind])
        assert (
            rules.pop(f"{kind}-src") == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        )
    assert rules == {"base-uri": "'none'", "form-action": "'none'"}


def test_what_ran_is_there_without_a_script() -> None:
    record = sample_record()
    text = Page(render_html(record, no_log)).text()
    counts = Page(render_html(record, no_log)).texts["b"]
    assert sorted(map(int, counts)) == sorted(record["outcomes"].values())
    for server in record["servers"]:
        assert server["name"] in text
        assert server["backend"] in text
    assert "launch 1 died: killed by SIGKILL (by the kernel for memory): torch.OutOfMemoryError" in text
    checks = record["servers"][1]["heartbeat"]
    assert checks["failed"] == 2
    assert f"2 of {checks['count']} failed" in text
    assert (
        "pytest-infserver 0.1.0 · pytest 9.2.0 · Python 3.11.7 · Linux-6.1-x86_64 · exit status 1 (some failed)" in text
    )
    failed = [test for test in record["tests"] if test["outcome"] in ("failed", "error")]
    assert len(failed) > 1
    for test in failed:
        assert test["id"] in text
    assert record["incidents"][0] in text


def test_on_a_cluster_it_says_where_each_server_ran() -> None:
    record = sample_record()
    page = Page(render_html(record, no_log))
    assert "cluster" not in page.text()
    assert not [life for server in page.data()["servers"] for life in server["lives"] if "node" in life]
    record["cluster"] = "head:6379"
    first, again = record["servers"][0]["lives"]
    first["node"], again["node"] = "gpu-1 (10.0.0.7)", "gpu-2 (10.0.0.8), gpu-3 (10.0.0.9)"
    page = Page(render_html(record, no_log))
    assert " · Ray cluster head:6379 · " in page.text()
    assert " · on gpu-1 (10.0.0.7), then gpu-2 (10.0.0.8), gpu-3 (10.0.0.9)" in page.text()
    assert "launch 1 on gpu-1 (10.0.0.7) died: killed by SIGKILL" in page.text()
    server, *others = page.data()["servers"]
    assert [life["node"] for life in server["lives"]] == [first["node"], again["node"]]
    assert not [life for other in others for life in other["lives"] if "node" in life]


def test_it_says_when_a_server_was_asleep() -> None:
    record = sample_record()
    first, *others = [life for server in record["servers"] for life in server["lives"]]
    first["asleep"] = [[record["started"] + 2, record["started"] + 3.5], [record["started"] + 4, None]]
    lives = [life for server in Page(render_html(record, no_log)).data()["servers"] for life in server["lives"]]
    assert lives[0]["asleep"] == [[2000, 3500], [4000, None]]
    assert len(lives) == len(others) + 1
    assert not [life for life in lives[1:] if "asleep" in life]


def test_every_test_comes_back_from_the_compact_form() -> None:
    record = sample_record(300)
    record["tests"][7]["id"] = "tests/test_\N{PILE OF POO}.py::test_a[\N{PILE OF POO}x]"
    record["tests"][8]["id"] = "tests/test_\N{PILE OF POO}.py::test_a[\N{PISTOL}x]"
    data = Page(render_html(record, no_log)).data()
    tests = sorted(record["tests"], key=lambda test: test["started"])
    assert sorted(ids(data)) == sorted(test["id"] for test in tests)
    by_id = dict(zip(ids(data), data["tests"], strict=True))
    for test in tests:
        row = by_id[test["id"]]
        assert OUTCOMES[row[2]] == test["outcome"]
        assert row[3] == round((test["started"] - record["started"]) * 1000)
        assert row[4] == pytest.approx((test["ended"] - test["started"]) * 1000, abs=1)
        assert data["workers"][row[8]] == test["worker"]
        for packed, use in zip(row[10] if len(row) > 10 else [], test["servers"], strict=True):
            assert data["servers"][packed[0]]["name"] == use["name"]
            assert packed[2:6] == [
                int(use["shared"]),
                use["launch"],
                use["log_start"],
                use["log_end"] - use["log_start"],
            ]
            assert packed[6:] == list(use["metrics"].values())


def test_a_thousand_tests_with_all_that_there_can_be_are_less_than_300_kb_and_fast() -> None:
    record = sample_record(1000, servers=6, workers=8, points=600)
    assert sum(len(test["id"]) for test in record["tests"]) > 90_000
    begin = time.perf_counter()
    text = render_html(record, sample_excerpt(record))
    assert time.perf_counter() - begin < 2
    assert len(text.encode()) < 300_000
    data = Page(text).data()
    excerpts = [row[12] for row in data["tests"] if len(row) > 12 and row[12]]
    failed = [row for row in data["tests"] if OUTCOMES[row[2]] in ("failed", "error") and row[10] and row[10][0][5]]
    assert len(failed) > 20
    assert all(row[12][0][1].strip() for row in failed)
    assert len(excerpts) > len(failed)


def test_long_runs_grow_with_the_number_of_tests_only() -> None:
    sizes = []
    for tests in (2000, 8000):
        record = sample_record(tests, servers=6, workers=8, points=600)
        sizes.append(len(render_html(record, sample_excerpt(record)).encode()))
    assert sizes[1] < 4 * sizes[0]


def test_many_failures_have_each_a_short_excerpt_and_message() -> None:
    record = sample_record(1000, points=600)
    for test in record["tests"]:
        test.update(outcome="failed", message="ServerStartupError: " + "E" * 10_000)
    text = render_html(record, lambda *_: "x" * 100_000)
    assert len(text.encode()) < 300_000
    data = Page(text).data()
    [message] = data["messages"]
    assert 1000 < len(message) < 2000
    assert all(row[11] == 0 for row in data["tests"])
    assert sum(bool(len(row) > 12 and row[12]) for row in data["tests"]) > 20
    for index, test in enumerate(record["tests"]):
        test["message"] += str(index)
    text = render_html(record, lambda *_: "x" * 100_000)
    assert len(text.encode()) < 400_000
    data = Page(text).data()
    assert sorted(int(message.rpartition("E")[2]) for message in data["messages"]) == list(range(1000))


def test_failures_are_told_in_full_and_many_of_them_in_short() -> None:
    record = sample_record(1000, points=600)
    failed = [test for test in record["tests"] if test["details"]]
    assert {test["outcome"] for test in failed} <= {"failed", "error"}
    data = Page(render_html(record, no_log)).data()
    assert data["details"] == [one["text"] for one in failed[0]["details"]]
    rows = [row for row in data["tests"] if len(row) > 15]
    assert [row[15] for row in rows] == [[["Failure", 0], ["Captured stdout call", 1]]] * len(failed)
    for number, test in enumerate(record["tests"]):
        test["details"] = [{"title": "Failure", "text": f"{number} " + "x" * 12_000 + f" {number}"}]
    text = render_html(record, no_log)
    assert len(text.encode()) < 1_200_000
    assert {one.split()[-1] for one in Page(text).data()["details"]} == set(map(str, range(1000)))


def test_every_row_of_a_leak_is_there_in_full() -> None:
    record = sample_record(4)
    leaks = [f"process pid {number}, killed; command: python {'x' * 9000} end-{number}" for number in range(60)]
    record["servers"][0]["leaks"] = [{"kind": "process", "text": text, "fails": True} for text in leaks]
    late = "a left behind:\n" + "\n".join(leaks[:2])
    record["errors"] = [late]
    text = Page(render_html(record, no_log)).text()
    assert all(leak in text for leak in leaks)
    assert late in text


def test_words_of_the_page_are_explained() -> None:
    text = render_html(sample_record(4), no_log)
    assert re.search(r'<th scope="col" title="[^"]+counted[^"]+">engine</th>', text)
    assert re.search(r'<div class="bad" title="[^"]+restart[^"]+">launch 1 died', text)
    assert {"launch", "used", "engine", "waiting", "other", "total"} <= set(Page(text).data()["meanings"])


def test_excerpts_are_asked_for_by_place_and_failed_tests_come_first() -> None:
    record = sample_record(40)
    asked = []

    def excerpt(name: str, start: int, end: int, limit: int) -> str:
        asked.append((name, start, end))
        assert 0 < limit <= 16 * 1024
        return "\x1b[31mred\x1b[0m\n"

    data = Page(render_html(record, excerpt)).data()
    uses = [(test, use) for test in record["tests"] for use in test["servers"] if use["log_end"] > use["log_start"]]
    assert sorted(asked) == sorted((use["name"], use["log_start"], use["log_end"]) for _, use in uses)
    bad = [use["log_start"] for test, use in uses if test["outcome"] in ("failed", "error")]
    assert {start for _, start, _ in asked[: len(bad)]} == set(bad)
    assert {text for row in data["tests"] if len(row) > 12 for _, text in row[12]} == {"red"}


def test_peaks_survive_when_points_are_left_out() -> None:
    record = sample_record(10, servers=40, points=600)
    server = record["servers"][3]
    server["heartbeat"]["samples"] = [[moment, 0.003] for moment, _, _ in server["memory"]]
    server["memory"][301][1] = 77_000_000_000
    server["memory"][301][2] = 99_000_000_000
    server["heartbeat"]["samples"][123][1] = None
    server["heartbeat"]["samples"][50][1] = 4.5
    packed = Payload(record).data["servers"][3]
    assert len(packed["memory"][0]) <= 62
    assert max(value or 0 for value in packed["memory"][1]) == 770_000
    assert max(value or 0 for value in packed["memory"][2]) == 990_000
    assert None in packed["heartbeat"][1]
    assert max(value or 0 for value in packed["heartbeat"][1]) == 4_500_000


def changed(value: Any, change: Callable[[Any], Any], keep: tuple[str, ...] = ()) -> Any:
    """Return a record with its leaves changed, except those under some keys."""
    if isinstance(value, dict):
        return {key: part if key in keep else changed(part, change, keep) for key, part in value.items()}
    if isinstance(value, list):
        return [changed(part, change, keep) for part in value]
    return change(value)


def test_foreign_text_is_text_wherever_it_stands() -> None:
    record = changed(sample_record(30), lambda leaf: f"{leaf}{NASTY}" if isinstance(leaf, str) else leaf)
    page = Page(render_html(record, lambda *_: f"{NASTY}\n</script>{NASTY}"))
    assert page.open == []
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert not page.handlers
    assert all(address.startswith(("./", "../", "file:///")) for address in page.links)
    assert MARKUP in page.text()
    assert all(MARKUP in name for name in ids(page.data()))
    # A browser's parser of scripts must not see these, whatever it thinks of JSON.
    data = "".join(page.texts["data"])
    assert not set(data) & set("<>&\u2028\u2029\0\x1b")


def test_what_is_not_known_is_left_out() -> None:
    full = sample_record(30)
    page = Page(render_html(changed(full, lambda _: None, ("id", "name")), no_log))
    assert page.open == []
    assert ids(page.data()) == [test["id"] for test in full["tests"]]
    for keys in ([], ["servers"], ["tests"], list(full)):
        record = {key: None if key in keys else value for key, value in copy.deepcopy(full).items()}
        assert Page(render_html(record, no_log)).open == []
    assert "no tests" in Page(render_html({}, no_log)).text()


@pytest.mark.parametrize("seed", range(60))
def test_no_value_breaks_the_page(seed: int) -> None:
    text = render_html(with_odd_values(sample_record(20, points=8), seed), no_log)
    page = Page(text)
    assert page.open == []
    assert page.data()["end"] > 0
    assert text.encode().decode() == text


def test_ids_of_a_megabyte_do_not_make_a_page_of_many() -> None:
    record = sample_record(20)
    for test in record["tests"]:
        test["id"] = "tests/test_a.py::" + "<" * 1_000_000
    assert len(render_html(record, no_log).encode()) < 300_000


def test_an_excerpt_that_is_longer_than_asked_for_does_not_count() -> None:
    record = sample_record(30)
    assert len(render_html(record, lambda *_: "<" * 1_000_000).encode()) < 300_000


def test_small_runs_cost_little() -> None:
    record = sample_record(118, points=600)
    excerpt = sample_excerpt(record)
    best = min(_seconds(lambda: render_html(record, excerpt)) for _ in range(5))
    # On an idle machine some 15 ms.
    assert best < 0.25


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0.0, "0 ms"),
        (0.00312, "3.12 ms"),
        (0.0998, "0.10 s"),
        (9.999, "10.0 s"),
        (59.96, "1:00 min"),
        (185.2, "3:05 min"),
        (3729, "1:02:09 h"),
    ],
)
def test_durations_are_short_and_say_their_unit(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown
