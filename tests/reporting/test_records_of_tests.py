"""What became of the tests, as their reports tell it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver.reporting.record.records_of_tests import TestRecords as Records
from pytest_infserver.reporting.record.records_of_tests import outcomes


def report(when: str, outcome: str = "passed", at: float = 10.0, nodeid: str = "t.py::a", **more: Any) -> Any:
    longrepr = more.pop("longrepr", None)
    made = pytest.TestReport(
        nodeid,
        ("t.py", 1, "a"),
        {},
        outcome,
        longrepr,
        when,
        start=at,
        stop=at + 1,
        duration=1.0,  # type: ignore[arg-type]
    )
    for name, value in more.items():
        setattr(made, name, value)
    return made


def add(records: Records, *reports: Any) -> dict[str, Any]:
    for one in reports:
        records.add(one)
    return records.all()[-1]


def test_the_three_phases_make_one_record() -> None:
    records = Records(frozenset)
    assert records.add(report("setup", at=10)) is None
    assert records.add(report("call", at=11)) is None
    use = {"name": "a", "launch": 1, "log_start": 0, "log_end": 5, "metrics": None}
    done = records.add(report("teardown", at=12, infserver=[use], worker_id="gw3"))
    # A worker says its name in all reports or in none.
    assert done is None
    record = add(
        Records(frozenset), *(report(when, at=at) for when, at in (("setup", 10), ("call", 11), ("teardown", 12)))
    )
    assert (record["started"], record["ended"], record["outcome"]) == (10, 13, "passed")


def test_a_test_whose_setup_was_not_recorded_has_what_it_has_used() -> None:
    """It has asked for the first server of its run itself."""
    records = Records(frozenset)
    use = {"name": "a", "launch": 1, "log_start": 0, "log_end": 5, "metrics": None}
    assert records.add(report("call", at=11)) is None
    done = records.add(report("teardown", at=12, infserver=[use]))
    assert done is not None
    assert (done["started"], done["ended"], done["outcome"]) == (11, 13, "passed")
    assert [one["name"] for one in done["servers"]] == ["a"]


@pytest.mark.parametrize("reported", [("setup",), ("setup", "call")])
def test_a_test_without_an_end_has_not_passed(reported: tuple[str, ...]) -> None:
    assert add(Records(frozenset), *map(report, reported))["outcome"] == "interrupted"


def test_a_test_that_is_over_is_returned_with_what_it_has_used() -> None:
    records = Records(frozenset)
    use = {"name": "a", "launch": 1, "log_start": 0, "log_end": 5, "metrics": None}
    for when in ("setup", "call"):
        records.add(report(when, worker_id="gw3"))
    done = records.add(
        report("teardown", at=12, infserver=[use], worker_id="gw3", user_properties=[("infserver_profile", "/x.svg")])
    )
    assert done is not None
    assert (done["worker"], done["servers"], done["artifacts"]) == ("gw3", [use], ["/x.svg"])
    assert (done["setup_seconds"], done["call_seconds"], done["teardown_seconds"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [
        ([("setup", "failed")], "error"),
        ([("setup", "skipped")], "skipped"),
        ([("setup", "passed"), ("call", "failed")], "failed"),
        ([("setup", "passed"), ("call", "skipped")], "skipped"),
        ([("setup", "passed"), ("call", "passed"), ("teardown", "failed")], "error"),
        ([("setup", "passed"), ("call", "failed"), ("teardown", "failed")], "failed"),
    ],
)
def test_the_outcome(steps: list[tuple[str, str]], outcome: str) -> None:
    reports = [report(when, how, longrepr=f"{when} went wrong\nmore") for when, how in steps]
    record = add(Records(frozenset), *reports)
    assert record["outcome"] == outcome
    first = next(when for when, how in steps if how != "passed")
    assert record["message"] == f"{first} went wrong"


def test_expected_failures() -> None:
    assert (
        add(Records(frozenset), report("setup"), report("call", "skipped", wasxfail="reason"))["outcome"] == "xfailed"
    )
    assert add(Records(frozenset), report("setup"), report("call", "passed", wasxfail="reason"))["outcome"] == "xpassed"


def test_a_rerun_is_a_record_of_its_own() -> None:
    records = Records(frozenset)
    for attempt in ("rerun", "passed"):
        records.add(report("setup"))
        records.add(report("call", attempt))
    records.add(report("teardown"))
    assert [record["outcome"] for record in records.all()] == ["rerun", "passed"]
    assert outcomes(records.all()) == {"rerun": 1, "passed": 1}


def test_an_error_that_turns_up_later_changes_the_outcome() -> None:
    records = Records(frozenset)
    add(records, report("setup"), report("call"), report("teardown"))
    record = add(records, report("teardown", "failed", longrepr="it left something behind"))
    assert len(records.all()) == 1
    assert (record["outcome"], record["message"]) == ("error", "it left something behind")


def test_what_pytest_shows_of_a_failure_is_kept_clean_and_once() -> None:
    records = Records(lambda: frozenset({"very-secret-1"}))
    out, state = ("Captured stdout call", "said \x1b[31mvery-secret-1\x1b[0m\n"), ("a: state", "ready")
    log = ("a: log during this test (vllm, http://x)", "the page has it anyway")
    failed = report("call", "failed", longrepr="line 1\nline 2", sections=[out, state, log])
    late = "a left behind 2 processes:\n  process 1\n  process 2\n  What to do: nothing"
    record = add(records, report("setup"), failed, report("teardown", "failed", longrepr="torn", sections=[out]))
    add(records, report("teardown", "failed", longrepr=late))
    assert record["message"] == "line 1"
    assert [(one["title"], one["text"]) for one in record["details"]] == [
        ("Failure", "line 1\nline 2"),
        ("Captured stdout call", "said ********\n"),
        ("a: state", "ready"),
        ("Error at teardown", "torn"),
        ("Error at teardown", late),
    ]


def test_nothing_is_kept_of_a_test_that_went_well() -> None:
    sections = [("Captured stdout call", "said")]
    for outcome, more in (("passed", {}), ("skipped", {}), ("skipped", {"wasxfail": "reason"})):
        record = add(Records(frozenset), report("setup"), report("call", outcome, sections=sections, **more))
        assert list(record["details"]) == []


def test_long_details_are_cut_and_a_late_error_stays_whole() -> None:
    sections = [(f"Captured {name} call", f"{name} " * 100_000) for name in ("stdout", "stderr")]
    late = "a left behind:\n" + "\n".join(f"  process {number}" for number in range(500))
    records = Records(frozenset)
    for when in ("call", "teardown"):
        trace = "begin\n" + "middle\n" * 10_000 + "E  the cause"
        record = add(records, report("setup"), report(when, "failed", longrepr=trace, sections=sections))
    assert all("characters left out" in one["text"] for one in record["details"])
    assert record["details"][0]["text"].endswith("E  the cause")
    record = add(records, report("teardown", "failed", longrepr=late))
    assert record["details"][-1]["text"] == late
    for _ in range(1000):
        add(records, report("teardown", "failed", longrepr=late))
    assert sum(len(one["text"]) for one in record["details"]) < 50_000
    assert record["details"][-1]["title"] == "More"


def test_the_wait_for_a_server_is_a_part_of_its_own() -> None:
    record = add(Records(frozenset), report("setup", infserver_wait=2.5), report("call"))
    assert (record["wait_seconds"], record["setup_seconds"]) == (2.5, 1.0)
    assert add(Records(frozenset), report("setup"))["wait_seconds"] == 0


def test_a_worker_that_crashes_fails_its_test() -> None:
    records = Records(frozenset)
    records.add(report("setup", worker_id="gw0"))
    record = add(records, report("???", "failed", longrepr="worker 'gw0' crashed"))
    assert len(records.all()) == 1
    assert (record["outcome"], record["message"]) == ("failed", "worker 'gw0' crashed")


def test_a_report_of_a_test_that_nobody_has_heard_of() -> None:
    record = add(Records(frozenset), report("???", "failed", longrepr="crashed"))
    assert (record["outcome"], record["started"]) == ("failed", None)


def test_each_worker_has_a_record_of_a_test_that_all_of_them_run() -> None:
    records = Records(frozenset)
    for when in ("setup", "call", "teardown"):
        for worker in ("gw0", "gw1"):
            records.add(report(when, worker_id=worker))
    assert [record["worker"] for record in records.all()] == ["gw0", "gw1"]


def test_a_long_message_is_cut() -> None:
    message = add(Records(frozenset), report("setup", "failed", longrepr="x" * 10_000))["message"]
    assert len(message) < 400


def use(name: str) -> dict[str, Any]:
    return {"name": name, "launch": 1, "log_start": 0, "log_end": 0, "metrics": None}


def test_servers_that_tests_have_used_at_the_same_time() -> None:
    records = Records(frozenset)
    times = {"a": (0, "x"), "b": (2, "x"), "c": (2.5, "x"), "d": (10, "x"), "e": (2, "y")}
    for nodeid, (at, server) in times.items():
        for when in ("setup", "call", "teardown"):
            records.add(report(when, at=at, nodeid=nodeid, infserver=[use(server)] if when == "teardown" else []))
    shared = {record["id"]: record["servers"][0]["shared"] for record in records.all()}
    assert shared == {"a": False, "b": True, "c": True, "d": False, "e": False}


def test_a_long_test_shares_with_all_that_run_within_it() -> None:
    records = Records(frozenset)
    for nodeid, start, end in (
        ("long", 0.0, 100.0),
        ("short", 1.0, 2.0),
        ("later", 50.0, 51.0),
        ("alone", 200.0, 201.0),
    ):
        made = report("setup", at=start, nodeid=nodeid)
        records.add(made)
        done = report("teardown", nodeid=nodeid, infserver=[use("x")])
        done.stop = end
        records.add(done)
    shared = {record["id"]: record["servers"][0]["shared"] for record in records.all()}
    assert shared == {"long": True, "short": True, "later": True, "alone": False}


def test_a_clock_that_is_set_back_makes_no_test_end_before_it_began() -> None:
    record = add(
        Records(frozenset), *(report(when, at=at) for when, at in (("setup", 5000), ("call", 10), ("teardown", 12)))
    )
    assert (record["started"], record["ended"]) == (5000, 5000)


def test_a_crash_is_that_of_the_test_in_its_own_worker() -> None:
    records = Records(frozenset)
    for worker in ("gw0", "gw1"):
        records.add(report("setup", worker_id=worker))
    node = SimpleNamespace(gateway=SimpleNamespace(id="gw0"), _workerinfocache="[gw0]")
    records.add(report("???", "failed", longrepr="worker 'gw0' crashed", node=node))
    for when in ("call", "teardown"):
        records.add(report(when, worker_id="gw1"))
    assert {record["worker"]: record["outcome"] for record in records.all()} == {"gw0": "failed", "gw1": "passed"}
