"""What a run leaves behind: the table at its end, run.json, JUnit's properties, links for pytest-html."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pytest_infserver.reporting.run_schema import run_schema

FAKE_ENGINE = Path(__file__).parent.parent / "fake_engine.py"
SECRET = "very-secret-value-1"
TESTS = """
import pytest
from helpers import get

@pytest.mark.parametrize("number", range(3))
def test_pass(inference_server, number): get(inference_server, f"/say?text=passing-{number}")
def test_fail(inference_server): get(inference_server, "/say?text=failing") or 1 / 0
def test_skip(inference_server): pytest.skip("not today")
@pytest.mark.xfail
def test_xfail(inference_server): assert 0
def test_plain(): pass
"""


def record_of(project: Any, name: str = "server_logs/run.json") -> dict[str, Any]:
    """Return run.json, which has to be what its schema says."""
    record: dict[str, Any] = json.loads((project.path / name).read_text())
    jsonschema.Draft202012Validator(run_schema()).validate(record)
    return record


def server_of(record: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [server for server in record["servers"] if server["name"] == name]
    return dict(found)


def table(result: pytest.RunResult) -> list[list[str]]:
    """Return the cells of the table at the end."""
    lines = result.stdout.str().splitlines()
    heads = [index for index, line in enumerate(lines) if line.startswith("server ") and "backend" in line]
    if not heads:
        return []
    rows = []
    for line in lines[heads[0] :]:
        cells = re.split(r"  +", line.strip())
        if len(cells) < 4:
            break
        rows.append(cells)
    return rows


def test_the_record_of_a_run(project, servers_yaml, run) -> None:
    servers_yaml({"heartbeat_interval": 0.05}, a=[], b=[])
    project.files(test_1=TESTS)
    run()
    record = record_of(project)
    assert record["exit_status"] == 1
    assert record["outcomes"] == {"passed": 7, "failed": 2, "skipped": 2, "xfailed": 2}
    assert record["started"] < record["ended"]
    tests = {test["id"]: test for test in record["tests"]}
    assert len(tests) == 13
    plain, failed = tests["test_1.py::test_plain"], tests["test_1.py::test_fail[b]"]
    assert plain["servers"] == []
    assert (failed["outcome"], failed["message"]) == ("failed", "ZeroDivisionError: division by zero")
    [use] = failed["servers"]
    assert (use["name"], use["launch"]) == ("b", 1)
    log = (project.path / "server_logs" / server_of(record, "b")["log"]).read_bytes()
    assert b"failing" in log[use["log_start"] : use["log_end"]]
    for name in ("a", "b"):
        server = server_of(record, name)
        assert (server["backend"], server["tests"], server["failed"], server["restarts"]) == ("command", 6, 1, 0)
        [life] = server["lives"]
        moments = [life[moment] for moment in ("launched", "ready", "stopping", "ended")]
        assert moments == sorted(moments)
        assert record["started"] <= moments[0] + 0.01
        assert life["end"] == "stopped"
        assert server["peak_rss_bytes"] > 1_000_000
        assert server["memory"]
        assert server["heartbeat"]["failed"] == 0
    workers = {test["worker"] for test in record["tests"]}
    assert workers == ({None} if record["workers"] == 0 else {"gw0", "gw1"})


def test_what_lies_beside_a_servers_log(project, servers_yaml, run, monkeypatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    servers_yaml(a=["--api-key", SECRET])
    project.files(test_1=TESTS)
    run("-v")
    folder = project.path / "server_logs" / "a"
    assert {"server.log", "command.txt", "environment.txt", "events.jsonl"} <= set(os.listdir(folder))
    assert stat.S_IMODE((folder / "environment.txt").stat().st_mode) == 0o600
    assert "MY_TOKEN=********" in (folder / "environment.txt").read_text()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "phase"]
    assert [kind for kind in kinds if kind != "test"] == ["starting", "launched", "ready", "stopping", "stopped"]
    assert kinds.count("test") == 6
    # The news of each worker's last test may come after the end of its use.
    assert kinds[:7] == ["starting", "launched", "ready", *["test"] * 4]
    assert {event["outcome"] for event in events if event["event"] == "test"} == {
        "passed",
        "failed",
        "skipped",
        "xfailed",
    }
    times = [event["time"] for event in events]
    assert times[0] < times[-1]
    for path in (project.path / "server_logs").rglob("*"):
        if path.is_file() and path.name != "server.log":
            assert SECRET not in path.read_text(), path


def test_the_table_is_there_with_v_on_failures_and_when_asked_for(project, servers_yaml, monkeypatch) -> None:
    servers_yaml(a=[], b=[])
    project.files(test_1="def test_1(inference_server): pass\ndef test_2(): pass")
    assert not table(project.run())
    assert [row[0] for row in table(project.run("-v"))] == ["server", "a", "b"]
    assert table(project.run("--infserver-summary", "always"))
    monkeypatch.setenv("INFSERVER_SUMMARY", "always")
    assert table(project.run())
    assert not table(project.run("-v", "--infserver-summary=never"))
    monkeypatch.delenv("INFSERVER_SUMMARY")
    (project.path / "pytest.ini").write_text("[pytest]\ninfserver_summary = always\n")
    assert table(project.run("-q"))
    result = project.run("--infserver-summary=sometimes")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "expected auto or always or never, not 'sometimes'" in result.stderr.str()


def test_the_table_tells_of_each_server(project, servers_yaml, run, quiet) -> None:
    servers_yaml({"heartbeat_interval": 0.05, "debug_mode": True}, a=[], b=[])
    project.files(
        test_1="""
        import time
        from helpers import kill
        def test_1(inference_server): time.sleep(0.4)
        def test_2(inference_server): inference_server.name == "a" and kill(inference_server)
        def test_3(inference_server): pass
        """
    )
    result = run()
    quiet(result)
    head, *rows = table(result)
    assert head[:2] == ["server", "backend"]
    assert {"tests", "failed", "restarts", "peak RSS", "heartbeat p50/p99", "stop", "leaks"} <= set(head)
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    lives = server_of(record_of(project), "a")["lives"]
    # On two workers another test may have been running on it, or it was the last one.
    assert by_name["a"]["failed"] in ("1", "2")
    assert by_name["a"]["restarts"] == str(len(lives) - 1)
    assert (by_name["b"]["restarts"], by_name["b"]["failed"]) == ("0", "-")
    assert by_name["b"]["leaks"] == "none"
    assert re.fullmatch(r"\d+/\d+ ms", by_name["b"]["heartbeat p50/p99"])
    result.stdout.fnmatch_lines(["a  server_logs/a/server.log", "b  server_logs/b/server.log"])
    assert [life["end"] for life in lives] in (["died", "stopped"], ["died"])
    assert lives[0]["how"] == "exited with code 3"
    if record_of(project)["workers"] == 0:
        assert lives[0]["ended"] <= lives[1]["launched"]


def test_junit_says_on_which_server_a_test_ran(project, servers_yaml, run) -> None:
    servers_yaml(a=[], b=[])
    project.files(test_1=TESTS)
    run("--junitxml=junit.xml")
    cases = ElementTree.parse(project.path / "junit.xml").iter("testcase")
    found = {case.get("name"): [(one.get("name"), one.get("value")) for one in case.iter("property")] for case in cases}
    assert found["test_plain"] == []
    # As pytest orders the ids of two parameters.
    first = "test_pass[0-a]" if "test_pass[0-a]" in found else "test_pass[a-0]"
    for name in (first, "test_fail[a]", "test_skip[a]", "test_xfail[a]"):
        properties = dict(found[name])
        assert len(found[name]) == 4
        assert (properties["infserver_server"], properties["infserver_backend"]) == ("a", "command")
        assert properties["infserver_url"].startswith("http://127.0.0.1:")
        assert properties["infserver_log"] == str(project.path / "server_logs" / "a" / "server.log")


def test_junit_names_all_servers_of_a_test_and_each_once_for_reruns(project, servers_yaml, run) -> None:
    servers_yaml(a=[], b=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.flaky(reruns=2)
        @pytest.mark.infserver_needs("a", "b")
        def test_both(inference_servers, request):
            request.config.tries = getattr(request.config, "tries", 0) + 1
            assert request.config.tries == 3
        """
    )
    pytest.importorskip("pytest_rerunfailures")
    result = run("--junitxml=junit.xml", "-p", "pytest_rerunfailures")
    result.assert_outcomes(passed=1)
    cases = list(ElementTree.parse(project.path / "junit.xml").iter("testcase"))
    assert cases
    for case in cases:
        names = [one.get("value") for one in case.iter("property") if one.get("name") == "infserver_server"]
        assert names in (["a", "b"], [])
    assert names == ["a", "b"]
    record = record_of(project)
    assert record["outcomes"] == {"rerun": 2, "passed": 1}
    assert [[use["name"] for use in test["servers"]] for test in record["tests"]] == [["a", "b"]] * 3


def test_pytest_html_links_to_the_logs(project, servers_yaml, run) -> None:
    pytest.importorskip("pytest_html")
    servers_yaml(a=[])
    project.files(test_1="def test_1(inference_server): pass\ndef test_2(): pass")
    run("-p", "pytest_html.plugin", "-p", "pytest_metadata.plugin", "--html", "out/of/report.html")
    text = (project.path / "out" / "of" / "report.html").read_text()
    links = re.findall(r"&#34;content&#34;: &#34;([^&]*server\.log)&#34;", text)
    assert links
    assert set(links) == {"../../server_logs/a/server.log"}
    assert (project.path / "out" / "of" / links[0]).exists()


def test_servers_of_the_factory_are_recorded_under_one_name(project, servers_yaml, run) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.parametrize("number", range(3))
        def test_own(inference_server_factory, number):
            inference_server_factory("a", port=None)
        def test_shared(inference_server): pass
        """
    )
    run().assert_outcomes(passed=4)
    record = record_of(project)
    factory = server_of(record, "a (factory)")
    assert (factory["tests"], len(factory["lives"])) == (3, 3)
    assert [life["end"] for life in factory["lives"]] == ["stopped"] * 3
    assert server_of(record, "a")["tests"] == 1


def test_a_server_that_does_not_start_is_recorded(project, servers_yaml, run) -> None:
    servers_yaml(a=["--say", "ValueError: no such thing", "--exit", "7"], b=[])
    project.files(test_1="def test_1(inference_server): pass")
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    record = record_of(project)
    server = server_of(record, "a")
    [life] = server["lives"]
    assert (life["end"], life["ready"], server["ready_seconds"]) == ("failed", None, None)
    assert "7" in life["how"]
    assert [row[3] for row in table(result) if row[0] == "a"] == ["never"]


def test_a_run_without_servers_writes_nothing(project, servers_yaml, run) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="def test_1(): pass\nimport pytest\n@pytest.mark.backend('vllm')\ndef test_2(inference_server): 0"
    )
    result = run("-v")
    result.assert_outcomes(passed=1, skipped=1)
    assert not (project.path / "server_logs").exists()
    assert not table(result)


def test_a_run_that_does_not_use_the_plugin_is_left_alone(project) -> None:
    project.files(test_1="def test_1(): assert 0")
    result = project.bare("-v", "--junitxml=junit.xml")
    result.assert_outcomes(failed=1)
    assert "infserver" not in (project.path / "junit.xml").read_text()
    assert not (project.path / "server_logs").exists()


def test_a_folder_that_cannot_be_written_is_said_and_fails_nothing(project, servers_yaml, run) -> None:
    servers_yaml({"heartbeat_interval": 0.05}, a=[])
    (project.path / "server_logs" / "run.json").mkdir(parents=True)
    (project.path / "server_logs" / "run.json" / "in-the-way").write_text("")
    project.files(test_1="def test_1(inference_server): pass")
    result = run()
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["the report of this run cannot be written: *run.json*"])


def test_an_attached_server_is_in_the_record(project, servers_yaml, run, fake_server) -> None:
    with fake_server() as server:
        project.files(test_1="def test_1(inference_server): pass\ndef test_2(inference_server): assert 0")
        (project.path / "servers.yaml").write_text(f"backend: remote\nname: there\nurl: {server.server_url}\n")
        result = run()
    result.assert_outcomes(passed=1, failed=1)
    found = server_of(record_of(project), "there")
    assert (found["attached"], found["log"], found["tests"]) == (True, None, 2)
    assert [row[0] for row in table(result)] == ["server", "there"]


def test_a_kept_server_has_neither_start_nor_stop_in_the_second_run(project, servers_yaml, run, monkeypatch) -> None:
    state = tempfile.mkdtemp(prefix="infs-")
    monkeypatch.setenv("INFSERVER_STATE_DIR", state)
    servers_yaml(a=[])
    project.files(test_1="def test_1(inference_server): pass")
    try:
        for taken_over in (False, True):
            run("--infserver-keep=60s").assert_outcomes(passed=1)
            [life] = server_of(record_of(project), "a")["lives"]
            assert (life["taken_over"], life["end"]) == (taken_over, "kept")
        events = [json.loads(line)["event"] for line in (project.path / "server_logs/a/events.jsonl").open()]
        assert [event for event in events if event != "phase"] == [
            "starting",
            "launched",
            "ready",
            "test",
            "kept",
            "taken_over",
            "test",
            "kept",
        ]
    finally:
        stop = "import sys; from pytest_infserver.cli import main; sys.exit(main(['stop', '--all']))"
        subprocess.run([sys.executable, "-c", stop], timeout=60, check=True)
        shutil.rmtree(state)


def test_the_crash_of_a_worker_is_in_the_record(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[])
    project.files(
        test_1="""
        import os
        def test_crash(inference_server): os._exit(1)
        def test_other(inference_server): pass
        """
    )
    project.run("-n2", plugins=("xdist",))
    record = record_of(project)
    tests = {test["id"].partition("::")[2]: test for test in record["tests"]}
    assert tests["test_crash[a]"]["outcome"] == "failed"
    assert "crashed" in tests["test_crash[a]"]["message"]
    assert tests["test_crash[a]"]["servers"][0]["name"] == "a"
    assert tests["test_other[a]"]["outcome"] == "passed"


def test_two_runs_at_once_have_a_report_each(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pathlib, time
        def test_1(inference_server):
            here = pathlib.Path(__file__).parent
            (here / f"here-{inference_server.port}").touch()
            deadline = time.monotonic() + 60
            while len(list(here.glob("here-*"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
        """
    )
    command = [sys.executable, "-m", "pytest", "-p", "pytest_infserver.plugin", "-p", "no:cacheprovider"]
    runs = [
        subprocess.Popen([*command, "--infserver-config", "servers.yaml"], cwd=project.path, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for one in runs:
        output, _ = one.communicate(timeout=110)
        assert one.returncode == 0, output
    urls = {record_of(project, f"server_logs/{name}")["servers"][0]["url"] for name in ("run.json", "run-2.json")}
    assert len(urls) == 2
    logs = {record_of(project, f"server_logs/{name}")["servers"][0]["log"] for name in ("run.json", "run-2.json")}
    assert logs == {"a/server.log", "a-2/server.log"}


def test_an_interrupted_run_has_a_record(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pathlib, time
        def test_1(inference_server): pass
        def test_2(inference_server):
            (pathlib.Path(__file__).parent / "there").touch()
            time.sleep(60)
        """
    )
    command = [sys.executable, "-m", "pytest", "-p", "pytest_infserver.plugin", "-p", "no:cacheprovider"]
    with subprocess.Popen(
        [*command, "--infserver-config", "servers.yaml"], cwd=project.path, stdout=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not (project.path / "there").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    record = record_of(project)
    assert record["exit_status"] == 2
    assert [test["outcome"] for test in record["tests"]] == ["passed", "interrupted"]
    assert [test["servers"][0]["name"] for test in record["tests"]] == ["a", "a"]
    assert server_of(record, "a")["lives"][0]["end"] == "stopped"


def test_a_run_that_was_killed_leaves_the_events_so_far(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import os
        def test_1(inference_server): pass
        def test_2(inference_server): os.kill(os.getpid(), 9)
        """
    )
    project.run()
    events = [json.loads(line) for line in Path(project.path, "server_logs/a/events.jsonl").open()]
    assert [event["event"] for event in events if event["event"] != "phase"] == [
        "starting",
        "launched",
        "ready",
        "test",
    ]
    assert events[-1]["id"] == "test_1.py::test_1[a]"


def test_secrets_in_messages_ids_and_urls_are_masked(project, servers_yaml, run, monkeypatch, fake_server) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    servers_yaml({"model": "https://bob:url-pass-1@host/m"}, a=["--upstream", "https://bob:url-pass-2@host/x"])
    with fake_server() as server:
        url = server.server_url.replace("://", "://bob:url-pass-3@")
        with (project.path / "servers.yaml").open("a") as file:
            file.write(f"  b: {{backend: remote, url: '{url}'}}\n")
        own = [sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}"]
        project.files(
            test_1=f"""
            import pytest
            @pytest.mark.parametrize("secret", ["{SECRET}"])
            def test_1(inference_server, secret): raise ValueError("the token is {SECRET}")
            def test_2(inference_server_factory):
                env = {{"OWN_TOKEN": "only-this-worker-knows"}}
                inference_server_factory(backend="command", name="f", env_vars=env, launch_command={own})
                raise ValueError("the token is only-this-" + "worker-knows")
            """
        )
        run()
    record = record_of(project)
    assert {test["message"] for test in record["tests"]} == {"ValueError: the token is ********"}
    assert sorted(test["id"] for test in record["tests"]) == [
        "test_1.py::test_1[********-a]",
        "test_1.py::test_1[********-b]",
        "test_1.py::test_2",
    ]
    assert server_of(record, "a")["model"] == "https://bob:********@host/m"
    for path in (project.path / "server_logs").rglob("*"):
        if path.is_file():
            for secret in (SECRET, "only-this-worker-knows", "url-pass-"):
                assert secret not in path.read_text(), (path, secret)


def test_each_worker_of_dist_each_has_its_own_records(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[])
    project.files(test_1="def test_1(inference_server): pass")
    project.run("-n2", "--dist=each", plugins=("xdist",)).assert_outcomes(passed=2)
    record = record_of(project)
    assert sorted(test["worker"] for test in record["tests"]) == ["gw0", "gw1"]
    assert server_of(record, "a")["tests"] == 2


def test_a_test_is_more_than_its_subtests(project, servers_yaml, run) -> None:
    if not hasattr(pytest, "SubtestReport"):
        pytest.skip("pytest 8 has no subtests")
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        def test_1(inference_server, subtests):
            with subtests.test("one"): pytest.skip("not this one")
            with subtests.test("two"): pytest.xfail("nor this one")
            with subtests.test("three"): pass
        def test_2(inference_server, subtests):
            with subtests.test("one"): assert 0, "this one"
        """
    )
    run()
    tests = {test["id"].partition("::")[2]: (test["outcome"], test["message"]) for test in record_of(project)["tests"]}
    assert tests == {"test_1[a]": ("passed", None), "test_2[a]": ("failed", "AssertionError: this one")}


def test_a_backend_without_a_command_is_recorded_and_not_an_error_of_pytest(project, run, monkeypatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    project.files(
        mine=f"""
        from pytest_infserver import InferenceServer
        class Mine(InferenceServer):
            def get_backend_name(self): return "mine"
            def get_binary_path(self): return "/bin/true"
            def get_launch_command(self): raise ValueError("no command for {SECRET}")
            def get_health_endpoint(self): return self.url_for("/health")
            def list_endpoints(self): return {{}}
        """,
        test_1="def test_1(inference_server): pass",
    )
    (project.path / "servers.yaml").write_text("servers: {a: {backend: 'mine:Mine', model: m}}")
    result = run()
    result.assert_outcomes(errors=1)
    text = result.stdout.str() + result.stderr.str()
    assert "no command for ********" in text
    assert SECRET not in text
    assert "INTERNALERROR" not in text
    server = server_of(record_of(project), "a")
    assert server["command"] is None
    assert server["lives"][0]["how"] == "Mine.get_launch_command() raised ValueError: no command for ********"


def test_a_test_may_leave_the_working_directory_and_remove_it(project, servers_yaml, run, quiet) -> None:
    pytest.importorskip("pytest_html")
    servers_yaml(a=[])
    project.files(
        test_1="""
        import os, pathlib
        def test_1(inference_server, tmp_path):
            os.chdir(tmp_path)
        def test_2(inference_server, tmp_path):
            folder = tmp_path / "gone"
            folder.mkdir()
            os.chdir(folder)
            folder.rmdir()
        """
    )
    result = run("-p", "pytest_metadata.plugin", "-p", "pytest_html.plugin", "--html=reports/all.html")
    result.assert_outcomes(passed=2)
    quiet(result)
    record_of(project)
    assert "../server_logs/a/server.log" in (project.path / "reports" / "all.html").read_text()


def test_a_report_that_cannot_be_made_fails_nothing(project, servers_yaml, run, quiet) -> None:
    servers_yaml(a=[])
    project.conftest(
        """
from pytest_infserver.reporting.timeline import html

def fail(*_):
    raise KeyError("not there")

html.render_html = fail
"""
    )
    project.files(test_1="def test_1(inference_server): pass")
    result = run("-v")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert "the report of this run cannot be made: KeyError: 'not there'" in quiet(result)
    assert table(result)[1][0] == "a"
    record_of(project)


def test_servers_that_cannot_be_described_fail_nothing(project, servers_yaml, run, quiet) -> None:
    servers_yaml(a=[])
    project.conftest(
        """
from pytest_infserver.reporting import recorder

def fail(*_):
    raise KeyError("not there")

recorder.server_record = fail
"""
    )
    project.files(test_1="def test_1(inference_server): pass")
    result = run()
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert "what became of the servers cannot be told: KeyError: 'not there'" in quiet(result)
