"""Loads by guidellm: by a stand-in, and by the real one where GUIDELLM names it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from load.conftest import INSTANT

pytest.importorskip("aiohttp")

from pytest_infserver import ConfigError, InferenceServerError, create_server
from pytest_infserver.load.job import Job
from pytest_infserver.load.running import LoadInterrupted, Target
from pytest_infserver.load.table import result_lines
from pytest_infserver.load.tools import guidellm
from pytest_infserver.load.workload import make_workload
from pytest_infserver.system.http.address import Address

FAKE = Path(__file__).parent / "fake_guidellm.py"
REAL = os.environ.get("GUIDELLM") or shutil.which("guidellm")


class Seen:
    """What the stand-in was given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getattr__(self, name: str):
        return json.loads((self.folder / f"{name}.json").read_text())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch) -> Seen:
    """A stand-in as GUIDELLM."""
    command = tmp_path / "bin" / "guidellm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("GUIDELLM", str(command))
    monkeypatch.setenv("FAKE_GUIDELLM_SEEN", str(tmp_path / "seen"))
    return Seen(tmp_path / "seen")


def test_its_result_is_one_as_ours(instant, fake) -> None:
    found = instant(model="mine").load(
        tool="guidellm", concurrency=3, requests=10, warmup=2, output_tokens=11, prompt_tokens=20, seed=5
    )
    assert (found.completed, found.failed) == (10, 0)
    assert found.ttft.p50 == pytest.approx(0.02, abs=1e-5)
    assert found.tpot.p50 == pytest.approx(0.002, abs=1e-5)
    assert found.e2e.p50 == pytest.approx(0.041, abs=1e-5)
    assert found.itl.count == 0
    assert found.seconds == pytest.approx(0.09 + 0.041, abs=1e-5)
    assert found.output_tokens_per_second == pytest.approx(110 / 0.131, rel=1e-3)
    assert found.prompts == "the server's tokenizer"
    assert found.notes == ["sent by guidellm 0.8.1, which does not tell the times between parts (itl)"]
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["tool"] == "guidellm 0.8.1"
    assert told["workload"] == "10 requests, 3 at a time, 20 tokens in, 11 out, by guidellm"
    assert result_lines(told)


def test_it_gets_the_workload_as_our_generator_does(instant, fake, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    server = instant(model="mine", api_key="abcdefghij-secret")
    same = {"requests": 3, "warmup": 1, "prompt_tokens": 20, "output_tokens": 4, "extra_body": {"top_k": 3}}
    ours = server.load(**same, api="chat")
    assert ours.completed == 3
    server.load(tool="guidellm", **same, api="chat", concurrency=2, ramp=1.5, timeout=30.0)
    monkeypatch.delenv("HTTP_PROXY")
    import requests

    asked = requests.get(server.url_for("/seen"), timeout=20).json()
    spec = fake.spec
    assert [one["messages"] for one in fake.prompts] == [one["messages"] for one in asked]
    backend = spec["backend"]
    assert {**backend["extras"]["body"], **fake.prompts[0], "model": backend["model"], "stream": True} == {
        name: value for name, value in asked[0].items() if name != "stream_options"
    }
    assert backend["target"] == server.server_url
    assert (backend["request_format"], backend["timeout"]) == ("/v1/chat/completions", 30.0)
    assert backend["api_key"] == "abcdefghij-secret"
    assert spec["profile"] == {"kind": "concurrent", "streams": [2], "rampup_duration": 1.5}
    assert spec["constraints"] == [{"kind": "max_requests", "count": 4}]
    environment = fake.environment
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert not {"HTTP_PROXY", "PYTHONPATH"} & set(environment)


def test_an_open_loop(instant, fake) -> None:
    found = instant().load(tool="guidellm", rate=20.0, requests=6, stream=False, output_tokens=3)
    assert fake.spec["profile"] == {"kind": "poisson", "rate": [20.0]}
    assert fake.spec["backend"]["stream"] is False
    assert fake.environment["GUIDELLM__MAX_WORKER_PROCESSES"] == "1"
    assert found.ttft.count == 0
    # From when it was due on, 5 ms before it was sent.
    assert found.e2e.p50 == pytest.approx(0.005 + 0.02 + 0.004 + 0.001, abs=1e-5)
    assert any("coordinated omission is corrected" in note for note in found.notes)
    found = instant().load(tool="guidellm", rate=20.0, arrivals="constant", ramp=1.0, duration=3.0)
    assert fake.spec["profile"] == {"kind": "constant", "rate": [20.0], "rampup_duration": 1.0}
    assert fake.spec["constraints"] == [{"kind": "max_duration", "seconds": 3.0}]
    assert found.completed == 5


def test_failed_requests(instant, fake, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_GUIDELLM", "errors")
    found = instant().load(tool="guidellm", requests=9)
    assert (found.completed, found.failed) == (6, 3)
    assert found.failures["status 500"][0] == 3
    assert "500 Internal Server Error" in found.failures["status 500"][1]
    late = instant().load(tool="guidellm", requests=3, timeout=0.01)
    assert late.failures["timeout"] == (2, "not complete after 0.01 s")


@pytest.mark.parametrize(
    ("mode", "workload", "says"),
    [
        ("garbage", {}, "guidellm has written no result that is understood: Expecting value"),
        ("other-form", {}, "no result that is understood: 'requests' is missing"),
        ("exit", {}, r"ConnectError: All connection attempts failed \(exit status 1, .*/bin/guidellm\)"),
        ("early", {"rate": 5.0}, "guidellm 0.8.1 has not sent the requests at their times"),
    ],
)
def test_what_goes_wrong_is_one_line(instant, fake, monkeypatch, mode, workload, says) -> None:
    monkeypatch.setenv("FAKE_GUIDELLM", mode)
    with pytest.raises(InferenceServerError, match=says) as caught:
        instant().load(tool="guidellm", requests=3, **workload)
    assert len(str(caught.value).splitlines()) == 1


def test_one_that_never_ends_is_killed_with_its_processes(instant, fake, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_GUIDELLM", "hang")
    monkeypatch.setattr(guidellm, "STARTUP_LIMIT", 2.0)
    begun = time.monotonic()
    with pytest.raises(InferenceServerError, match="killed: it did not end within"):
        instant().load(tool="guidellm", requests=1, timeout=0.5)
    assert time.monotonic() - begun < 30
    # That nothing is left is what the fixture nothing_left looks at.


def test_ctrl_c(instant, fake, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_GUIDELLM", "hang")
    server = instant()

    def interrupt() -> None:
        while not (fake.folder / "hangs").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Thread(target=interrupt)
    timer.start()
    with pytest.raises(LoadInterrupted) as caught:
        server.load(tool="guidellm", requests=3)
    timer.join()
    found = caught.value.result
    assert found.notes[0] == "ended early: interrupted"
    json.dumps(found.as_dict(), allow_nan=False)


def test_it_is_not_installed(instant, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GUIDELLM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    server = instant()
    with pytest.raises(InferenceServerError, match="no command guidellm: pip install guidellm into an environment of"):
        server.load(tool="guidellm")
    monkeypatch.setenv("GUIDELLM", "/nowhere/guidellm")
    with pytest.raises(InferenceServerError, match="no command /nowhere/guidellm"):
        server.load(tool="guidellm")


@pytest.mark.parametrize(
    ("workload", "says"),
    [
        ({"tool": "ab"}, "tool is guidellm, not 'ab'"),
        ({"warmup": 3, "duration": 2.0}, "guidellm knows no warmup of a load that a duration alone ends"),
        ({"ramp": 3.0, "rate": 2.0}, "guidellm knows no ramp of poisson arrivals"),
    ],
)
def test_what_it_cannot_do_is_refused(workload, says) -> None:
    with pytest.raises(ConfigError, match=says):
        make_workload(**{"tool": "guidellm", **workload})


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ({"uds": "/nowhere"}, "a unix socket"),
        ({"scheme": "https", "ca": "/nowhere"}, "a certificate of its own"),
        ({"scheme": "https", "verify": False}, "a certificate of its own"),
    ],
)
def test_an_address_that_it_cannot_reach(fake, place, says) -> None:
    load = make_workload(tool="guidellm")
    target = Target("one", lambda load: Job(Address(**place), "mine", False, False, load), list, {}, "none")
    with pytest.raises(ConfigError, match=f"tool='guidellm': it cannot reach a server .* {says}"):
        guidellm.measure(target, load)


def test_its_loads_have_baselines_of_their_own(instant, fake) -> None:
    assert make_workload().key != make_workload(tool="guidellm").key
    # As before there were tools.
    assert make_workload().key == "5ded8626b1"
    server = instant()
    ours, its = server.load(requests=3), server.load(tool="guidellm", requests=3)
    assert its.reference is not None
    assert its.reference.baselines.engine.endswith(", guidellm 0.8.1")
    with pytest.raises(ValueError, match="loads of two tools are not compared"):
        its.assert_not_slower(than=ours)
    with pytest.raises(ValueError, match="loads of two tools are not compared"):
        ours.assert_not_slower(than=its)


@pytest.mark.run
def test_in_a_test_it_stands_in_the_same_reports(run_pytest, fake, pytester) -> None:
    pytester.makeini("[pytest]\ninfserver_config = servers.yaml\n")
    pytester.makefile(
        ".yaml",
        servers=json.dumps(
            {"backend": "command", "name": "one", "launch_command": [sys.executable, str(INSTANT), "--port", "{port}"]}
        ),
    )
    pytester.makepyfile(
        "def test_it(inference_load):\n    assert inference_load(tool='guidellm', requests=4).completed == 4\n"
    )
    result = run_pytest("-o", "junit_family=xunit2", "--junitxml=junit.xml")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*sent by guidellm 0.8.1*"])
    assert 'name="infserver_load_ttft_p50"' in (pytester.path / "junit.xml").read_text()


@pytest.mark.nightly
@pytest.mark.skipif(REAL is None, reason="needs guidellm in an environment of its own, named by GUIDELLM")
def test_the_real_one_on_llama_cpp(tmp_path: Path, nothing_left: None) -> None:
    arguments = {"server_args": {"parallel": 2, "ctx-size": 4096}}
    with create_server("llamacpp", model="builtin:tiny", config=arguments, output_dir=tmp_path / "logs") as server:
        same = {"requests": 20, "concurrency": 2, "warmup": 4, "prompt_tokens": 64, "output_tokens": 16}
        ours, its = server.load(**same), server.load(tool="guidellm", **same)
        assert (its.completed, its.failed) == (20, 0), its.failures
        for one in (ours, its):
            assert {sample.output_tokens for sample in one.samples} == {16}
        # The same prompts.
        assert sum(one.prompt_tokens for one in its.samples) == sum(one.prompt_tokens for one in ours.samples)
        assert 0 < its.ttft.p50 < its.e2e.p50 < 10
        assert its.tpot.count == 20
        chat = server.load(tool="guidellm", rate=10.0, duration=2.0, api="chat", prompt_tokens=64, output_tokens=8)
        assert chat.failed == 0
        assert 3 < chat.completed < 60
        assert {sample.output_tokens for sample in chat.samples} == {8}
