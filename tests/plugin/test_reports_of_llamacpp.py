"""What a run on a real engine leaves behind: llama.cpp with a real, small model, alone and on two workers."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import jsonschema
import pytest
import yaml

from pytest_infserver.reporting.record.run_schema import run_schema

pytest.importorskip("xllamacpp")

TESTS = """
import pytest
import requests

def complete(server, tokens, **more):
    body = {"prompt": "Hello", "max_tokens": tokens, "ignore_eos": True, **more}
    return requests.post(server.url_for("/v1/completions"), json=body, timeout=60)

@pytest.mark.parametrize("tokens", [1, 5, 12])
def test_tokens(inference_server, tokens):
    assert complete(inference_server, tokens).json()["usage"]["completion_tokens"] == tokens

def test_two(inference_server):
    for _ in range(2):
        complete(inference_server, 4)

def test_none(inference_server):
    assert inference_server.check_health()

def test_fails_after_three(inference_server):
    complete(inference_server, 3)
    assert 0

def test_too_long(inference_server):
    answer = complete(inference_server, 1, prompt="word " * 3000)
    assert answer.status_code == 200, answer.text

@pytest.mark.infserver("counting")
def test_fails(inference_server):
    complete(inference_server, 6)
    assert 0

@pytest.mark.infserver("plain")
def test_dies(inference_server):
    import os, signal
    os.kill(inference_server.pid, signal.SIGKILL)
    # Until the connection breaks: whoever has gone by then leaves the news to the next test.
    for _ in range(1000):
        complete(inference_server, 1)

@pytest.mark.infserver("plain")
def test_lives_again(inference_server):
    complete(inference_server, 1)
"""


@pytest.fixture(
    scope="module",
    params=[pytest.param((), marks=pytest.mark.nightly), pytest.param(("-n2",), marks=pytest.mark.promise)],
    ids=["alone", "n2"],
)
def report(request, shared_project):
    """Run the tests; return the project, the result and the record."""
    if request.param:
        pytest.importorskip("xdist")
    project = shared_project()
    engine = {"backend": "llamacpp", "model": "builtin:tiny", "heartbeat_interval": 0.2, "startup_timeout": 60}
    counting = {**engine, "config": {"server_args": {"metrics": True, "ctx-size": 512}}}
    servers = {"counting": counting, "plain": {**engine, "config": {"server_args": {"ctx-size": 512}}}}
    (project.path / "servers.yaml").write_text(yaml.safe_dump({"servers": servers}))
    project.files(test_1=TESTS)
    result = project.run("--junitxml=junit.xml", "-v", *request.param, plugins=("xdist",) if request.param else ())
    record = json.loads((project.path / "server_logs" / "run.json").read_text())
    jsonschema.Draft202012Validator(run_schema()).validate(record)
    return project, result, record


def by_name(record):
    """Return the records of the servers and of the tests, each under its name."""
    servers = {server["name"]: server for server in record["servers"]}
    return servers, {test["id"].partition("::")[2]: test for test in record["tests"]}


def test_what_the_engine_has_counted_is_what_the_requests_have_asked_for(report) -> None:
    servers, tests = by_name(report[2])
    counted = {name: test["servers"][0] for name, test in tests.items() if "counting" in name}
    for name, use in counted.items():
        if use["shared"]:
            continue
        wanted = {"test_fails": 6, "test_two": 8, "test_none": 0, "test_too_long": 0, "test_fails_after_three": 3}
        found = re.search(r"test_tokens\[(?:counting-)?(\d+)", name)
        tokens = int(found[1]) if found else wanted[name.partition("[")[0]]
        assert use["metrics"]["generated_tokens"] == tokens, name
    assert servers["counting"]["metrics"]["generated_tokens"] == 1 + 5 + 12 + 8 + 3 + 6
    assert servers["plain"]["metrics"] is None


def test_the_death_of_a_server_and_its_restart_are_told(report) -> None:
    _, result, record = report
    servers, tests = by_name(record)
    first, *others = servers["plain"]["lives"]
    assert first["end"] == "died"
    # On two workers it may have been its last test that killed it.
    assert [life["end"] for life in others] in (["stopped"], [])
    assert "SIGKILL" in first["how"]
    assert servers["plain"]["restarts"] == len(others)
    if record["workers"] == 0:
        assert others
    assert tests["test_dies[plain]"]["outcome"] == "failed"
    assert "was killed by SIGKILL" in result.stdout.str()


def test_the_table_and_the_log_of_a_test_that_went_wrong_are_shown(report) -> None:
    _, result, record = report
    text = result.stdout.str()
    servers, _ = by_name(record)
    rows = {line.split()[0]: line for line in text.splitlines() if re.match(r"(counting|plain) +llamacpp", line)}
    assert rows.keys() == {"counting", "plain"}
    assert "exceeds the available context size" in text
    assert servers["counting"]["peak_rss_bytes"] > 10_000_000
    assert servers["counting"]["heartbeat"]["failed"] == 0


def test_the_files_that_are_drawn_from_the_record(report) -> None:
    project, _, _ = report
    folder = project.path / "server_logs"
    page = (folder / "report.html").read_text()
    assert "test_too_long" in page
    assert len(page) < 300_000
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert any("test_too_long" in event["name"] for event in events if event["ph"] == "X")
    cases = list(ElementTree.parse(project.path / "junit.xml").iter("testcase"))
    assert all(case.find("properties") is not None for case in cases)
