"""The fixtures ``inference_load`` and ``inference_score`` in a project: what they report, save and compare."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from pytest_infserver.reporting.record.run_schema import run_schema

pytest.importorskip("aiohttp")

INSTANT = Path(__file__).parent.parent / "load" / "instant_server.py"
LOAD = "requests=10, concurrency=2, prompt_tokens=5, output_tokens=4"


def block(*arguments: str, **settings):
    return {
        "backend": "command",
        "launch_command": [sys.executable, str(INSTANT), "--port", "{port}", *arguments],
        **settings,
    }


def write_test(project, *lines: str) -> None:
    body = "".join(f"    {line}\n" for line in lines)
    project.files(test_it=f"def test_it(inference_load, inference_score):\n{body}")


def baselines(project) -> list[Path]:
    return sorted((project.path / ".infserver" / "load").glob("*.json"))


def test_what_a_test_measures_stands_in_each_report(twin_project) -> None:
    project = twin_project
    project.servers(fast=block("--gap", "0.001"))
    write_test(
        project,
        f"result = inference_load({LOAD})",
        "assert result.failed == 0",
        "inference_score('gsm8k', 0.93, min=0.9)",
        f"inference_load({LOAD}, api='chat')",
    )
    result = project.run("-v", "--junitxml=junit.xml")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*= infserver load =*",
            "load *server *done *failed *TTFT p50/p99*tokens/s*baseline",
            "test_it?fast? *fast *10 *0 *",
            "test_it?fast? *fast *10 *0 *",
            "score *value *limit *baseline*",
            "gsm8k *0.93 *>= 0.9 *- *test_it?fast?",
        ]
    )
    record = json.loads((project.path / "server_logs" / "run.json").read_text())
    jsonschema.validate(record, run_schema())
    (test,) = record["tests"]
    assert [load["completed"] for load in test["loads"]] == [10, 10]
    assert test["loads"][0]["ttft"]["histogram"]
    assert test["scores"][0]["value"] == 0.93
    properties = {
        one.get("name"): one.get("value") for one in ElementTree.parse(project.path / "junit.xml").iter("property")
    }
    assert float(properties["infserver_load_ttft_p99"]) > 0
    assert float(properties["infserver_load2_output_tokens_per_second"]) > 0
    assert properties["infserver_load_failed"] == "0"
    assert properties["infserver_score_gsm8k"] == "0.93"
    assert not baselines(project)


def test_a_baseline_is_saved_and_a_slower_server_is_found(inline_project) -> None:
    project = inline_project
    # Its settings decide which baseline it is: what makes it slower comes from elsewhere.
    project.servers(fast=block("--gap-file", str(project.path / "gap")))
    write_test(project, f"inference_load({LOAD}).assert_not_slower(by=1.0)")
    gap = project.path / "gap"
    gap.write_text("0.02")
    missing = project.run("-W", "always")
    missing.assert_outcomes(passed=1, warnings=1)
    missing.stdout.fnmatch_lines(["*LoadWarning: fast: no baseline*", "*save one: pytest --infserver-load-save*"])
    project.run("--infserver-load-compare=require").assert_outcomes(failed=1)
    project.run("--infserver-load-save").assert_outcomes(passed=1)
    (file,) = baselines(project)
    stored = json.loads(file.read_text())
    assert len(stored["runs"]) == 8
    assert stored["machine"]["cores"]
    same = project.run("--infserver-load-compare=require")
    same.assert_outcomes(passed=1)
    same.stdout.fnmatch_lines(["test_it?fast? *not slower (*"])
    gap.write_text("0.08")
    slower = project.run()
    slower.assert_outcomes(failed=1)
    slower.stdout.fnmatch_lines(["*AssertionError: fast: slower (3 runs, 8 before)", "*tpot: +*"])
    project.run("--infserver-load-compare=off").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no baseline: "),
        ("[]", "is no baseline: "),
        ('{"version": 2}', "it has version 2, this package knows 1"),
        ('{"version": 1, "engine": "", "saved": "", "runs": []}', "it has no run"),
        ('{"version": 1, "engine": "", "saved": "", "runs": [{"ttft": NaN}]}', "nan is no figure"),
        ('{"version": 1, "saved": "", "runs": [{"ttft": 1}]}', "'engine' is missing"),
    ],
)
def test_a_corrupt_baseline_is_told_and_left_alone(tmp_path: Path, text: str, says: str) -> None:
    from pytest_infserver.load.baselines.files import BaselineError, Baselines

    store = Baselines(tmp_path / "load", "mine", {"model": "m"})
    store.save("key", "about", [{"ttft": 1.0}])
    store.path("key").write_text(text)
    with pytest.raises(BaselineError, match="remove it, or write it anew") as caught:
        store.load("key")
    assert says in str(caught.value)
    assert store.path("key").read_text() == text


def test_a_baseline_of_another_machine_is_told_and_not_compared(tmp_path: Path, monkeypatch) -> None:
    from pytest_infserver.load.baselines import files as module
    from pytest_infserver.load.baselines.reference import Reference

    store = module.Baselines(tmp_path, "mine", {"model": "m"}, "engine 1")
    with monkeypatch.context() as patch:
        patch.setattr(module, "machine_key", lambda: "elsewhere")
        patch.setattr(module, "machine", lambda: {"cpu": "Old CPU", "cores": 2, "memory_gb": 4, "gpus": ["GPU X"]})
        store.save("key", "about", [{"ttft": 1.0}] * 8)
    (tmp_path / "mine-key-broken.json").write_text("{")
    verdict = Reference(store).check("key", "about", {"ttft": 9.0}, lambda: pytest.fail("measured again"), 0.1, 12)
    assert verdict is not None
    assert verdict.verdict == "no baseline"
    assert "of another machine, which is not compared" in verdict.notes[1]
    assert "Old CPU, 2 cores, 4 GB, GPU X" in verdict.notes[1]


def test_another_engine_is_compared_and_told(tmp_path: Path) -> None:
    from pytest_infserver.load.baselines.files import Baselines
    from pytest_infserver.load.baselines.reference import Reference

    Baselines(tmp_path, "mine", {}, "engine 1").save("key", "about", [{"ttft": 1.0}] * 8)
    told = []
    reference = Reference(Baselines(tmp_path, "mine", {}, "engine 2"), told=told.append)
    verdict = reference.check("key", "about", {"ttft": 1.5}, lambda: {"ttft": 1.5}, 0.1, 12)
    assert told == [verdict]
    assert verdict.verdict == "slower"
    assert verdict.notes[0].startswith("baseline of engine 1, saved ")
    assert verdict.notes[0].endswith("this is engine 2")


def test_failed_requests_are_never_compared(inline_project) -> None:
    inline_project.servers(bad=block("--fault", "error", "--healthy", "5"))
    write_test(inline_project, f"inference_load({LOAD}).assert_not_slower()")
    result = inline_project.run("--infserver-load-save")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*bad: requests have failed, nothing is compared: 5 x status 500: out of pixie dust",
            "*5 x status 500: out of*",
        ]
    )
    assert not baselines(inline_project)


def test_scores_and_their_limits_without_any_server(inline_project) -> None:
    project = inline_project
    project.files(
        test_it="""
        import os
        import pytest

        VALUE = float(os.environ.get("VALUE", "0.93"))

        def test_fine(inference_score):
            inference_score("gsm8k", VALUE, min=0.5, max=1, tolerance=0.1)

        @pytest.mark.parametrize("value", [0.4, 1.1, float("nan"), "0.7x"])
        def test_not(inference_score, value):
            inference_score("other", value, min=0.5, max=1)
        """
    )
    first = project.run("--infserver-load-save", "-k", "fine")
    first.assert_outcomes(passed=1)
    assert [json.loads(file.read_text())["runs"] for file in baselines(project)] == [[{"value": 0.93}]]
    result = project.run()
    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(
        [
            "*other is 0.4: it must be at least 0.5*",
            "*other is 1.1: it must be at most 1*",
            "*other is nan: it is no finite number, it must be at least 0.5, it must be at most 1*",
        ]
    )
    result.stdout.fnmatch_lines(["gsm8k *0.93 (+0) *test_fine"])


def test_what_a_test_measures_while_it_runs_and_in_numbers_of_a_library_is_told(twin_project) -> None:
    """Workers of xdist send only Python's own numbers, and JSON knows no infinity."""
    project = twin_project
    project.servers(a=block())
    project.files(
        test_it="""
        class Number(float): pass

        def test_it(request, inference_server):
            score = request.getfixturevalue("inference_score")
            score("gsm8k", Number(0.9), min=Number(0.5), max=Number(1), tolerance=Number(1))
            score("loss", 3, min=-float("inf"), max=float("inf"))
        """
    )
    result = project.run("-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["gsm8k *0.9 *>= 0.5, <= 1 *", "loss *3 *- *- *"])
    (test,) = json.loads((project.path / "server_logs" / "run.json").read_text())["tests"]
    assert [(one["value"], one["min"], one["max"]) for one in test["scores"]] == [(0.9, 0.5, 1.0), (3.0, None, None)]


def test_a_score_far_from_its_baseline(inline_project, monkeypatch) -> None:
    project = inline_project
    project.files(
        test_it="""
        import os

        def test_it(inference_score):
            inference_score("gsm8k", float(os.environ["VALUE"]), tolerance=0.02)
        """
    )
    monkeypatch.setenv("VALUE", "0.9")
    project.run("--infserver-load-compare=require").assert_outcomes(failed=1)
    project.run("--infserver-load-save").assert_outcomes(passed=1)
    monkeypatch.setenv("VALUE", "0.87")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*gsm8k is 0.87: it must be 0.9 as in the baseline, to within 0.02"])


def test_ctrl_c_shows_the_load_so_far(project) -> None:
    project.servers(fast=block("--gap", "0.01"))
    project.files(
        test_it="""
        import os, signal, threading
        import requests

        def press(server):
            while len(requests.get(server.url_for("/seen"), timeout=20).json()) < 5:
                pass
            os.kill(os.getpid(), signal.SIGINT)

        def test_it(inference_load, inference_server):
            threading.Thread(target=press, args=(inference_server,)).start()
            inference_load(duration=100.0, concurrency=2, output_tokens=5)
        """
    )
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["test_it?fast? *fast *", "*ended early: interrupted*"])
