"""What a run on a real engine leaves behind: llama.cpp with a real, small model, alone and on two workers."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import jsonschema
import pytest
import yaml

from pytest_infserver.reporting.run_schema import run_schema

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


@pytest.fixture
def report(project, run):
    """Run the tests and return the result and the record."""
    engine = {"backend": "llamacpp", "model": "builtin:tiny", "heartbeat_interval": 0.2, "startup_timeout": 60}
    counting = {**engine, "config": {"server_args": {"metrics": True, "ctx-size": 512}}}
    servers = {"counting": counting, "plain": {**engine, "config": {"server_args": {"ctx-size": 512}}}}
    (project.path / "servers.yaml").write_text(yaml.safe_dump({"servers": servers}))
    project.files(test_1=TESTS)
    result = run("--junitxml=junit.xml", "-v")
    record = json.loads((project.path / "server_logs" / "run.json").read_text())
    jsonschema.Draft202012Validator(run_schema()).validate(record)
    return result, record


def test_a_run_on_a_real_engine_explains_itself(report, project) -> None:
    result, record = report
    text = result.stdout.str()
    tests = {test["id"].partition("::")[2]: test for test in record["tests"]}

    # What the engine has counted is what the requests have asked for.
    counted = {name: test["servers"][0] for name, test in tests.items() if "counting" in name}
    for name, use in counted.items():
        if use["shared"]:
            continue
        wanted = {"test_fails": 6, "test_two": 8, "test_none": 0, "test_too_long": 0, "test_fails_after_three": 3}
        found = re.search(r"test_tokens\[(?:counting-)?(\d+)", name)
        tokens = int(found[1]) if found else wanted[name.partition("[")[0]]
        assert use["metrics"]["generated_tokens"] == tokens, name
    servers = {server["name"]: server for server in record["servers"]}
    assert servers["counting"]["metrics"]["generated_tokens"] == 1 + 5 + 12 + 8 + 3 + 6
    assert servers["plain"]["metrics"] is None

    # The death of the other one, and its restart; on two workers it may have been its last test that killed it.
    first, *others = servers["plain"]["lives"]
    assert first["end"] == "died"
    assert [life["end"] for life in others] in (["stopped"], [])
    assert "SIGKILL" in first["how"]
    assert servers["plain"]["restarts"] == len(others)
    if record["workers"] == 0:
        assert others
    assert tests["test_dies[plain]"]["outcome"] == "failed"
    assert "was killed by SIGKILL" in text

    # The table, and the log of a test that went wrong.
    rows = {line.split()[0]: line for line in text.splitlines() if re.match(r"(counting|plain) +llamacpp", line)}
    assert rows.keys() == {"counting", "plain"}
    assert "exceeds the available context size" in text
    assert servers["counting"]["peak_rss_bytes"] > 10_000_000
    assert servers["counting"]["heartbeat"]["failed"] == 0

    # The files that are drawn from it.
    folder = project.path / "server_logs"
    page = (folder / "report.html").read_text()
    assert "test_too_long" in page
    assert len(page) < 300_000
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert any("test_too_long" in event["name"] for event in events if event["ph"] == "X")
    cases = list(ElementTree.parse(project.path / "junit.xml").iter("testcase"))
    assert all(case.find("properties") is not None for case in cases)
