"""Loads and scores in the page."""

from __future__ import annotations

from pytest_infserver.load.results import LoadResult
from pytest_infserver.load.samples import Sample
from pytest_infserver.load.workload import make_workload
from pytest_infserver.reporting.timeline.loads import measures_section
from pytest_infserver.reporting.timeline.shape import known

SCORE = {"name": "<gsm8k>", "value": 0.93, "min": 0.9, "max": None, "baseline": 0.95, "server": "x"}


def shown_tests(loads=(), scores=()):
    return known({"tests": [{"id": "test_<it>", "loads": list(loads), "scores": list(scores)}]})["tests"]


def load(*samples):
    return LoadResult(make_workload(), "<mine>", samples, 1.0).as_dict()


def test_a_load_has_its_numbers_and_a_picture() -> None:
    good = [Sample(0, 0, 0.01 * n, 0.05 * n, (0.01, 0.02), 5, 7) for n in range(1, 30)]
    page = measures_section(shown_tests([load(*good, Sample(0, 0, None, 1, failure="cut off", text="<bad>"))]))
    assert "29 requests, 1 failed" in page
    assert "1 x cut off: &lt;bad&gt;" in page
    assert "test_&lt;it&gt;" in page
    assert page.count("<rect") > 20
    assert "up to" in page
    assert "<it>" not in page


def test_scores_without_a_load() -> None:
    page = measures_section(shown_tests(scores=[SCORE]))
    assert "&lt;gsm8k&gt;</td><td>0.93</td><td>0.9</td><td></td><td>0.95</td>" in page
    assert "<svg" not in page


def test_nothing_and_odd_things() -> None:
    assert measures_section(shown_tests()) == ""
    assert "<svg" not in measures_section(shown_tests([load()]))
    assert measures_section(
        shown_tests([{}, {"ttft": 5, "e2e": {"histogram": [[1], [None, 2], [-1, 5], [0.5, 3]]}}], [{}])
    )
    assert "and 50 more in run.json" in measures_section(shown_tests([load()] * 150))
