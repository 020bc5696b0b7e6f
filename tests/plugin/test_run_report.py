"""What a run leaves behind: the table at its end, run.json, JUnit's properties, links for pytest-html."""

from __future__ import annotations

import importlib
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
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_servers import FAKE_ENGINE, fake_block, fake_command
from installed import installed
from isolation import port_of_nobody

from pytest_infserver import CommandServer
from pytest_infserver.reporting.record.run_schema import run_schema

SECRET = "very-secret-value-1"
QUICK = {"heartbeat_interval": 0.05}
HTML = installed("pytest_html.plugin", "pytest_metadata.plugin")


@pytest.fixture(
    scope="module",
    params=[pytest.param((), marks=pytest.mark.nightly), pytest.param(("-n2",), marks=pytest.mark.promise)],
    ids=["alone", "n2"],
)
def shared(request, shared_project, tmp_path_factory):
    """A project with a file of tests for each matter, each with servers of its own; and what its run showed."""
    if request.param:
        pytest.importorskip("xdist")
    project = shared_project(MY_TOKEN=SECRET)
    with CommandServer(launch_command=fake_command(), name="far", output_dir=tmp_path_factory.mktemp("far")) as far:
        url = far.server_url.replace("://", "://bob:url-pass-3@")
        project.servers(
            a=fake_block("--api-key", SECRET, **QUICK),
            b=fake_block(**QUICK),
            shaky=fake_block(**QUICK, debug_mode=True),
            steady=fake_block(**QUICK, debug_mode=True),
            left=[],
            right=[],
            made=[],
            bad=["--say", "ValueError: no such thing", "--exit", "7"],
            good=[],
            there={"backend": "remote", "url": url},
            secretive=fake_block("--upstream", "https://bob:url-pass-2@host/x", model="https://bob:url-pass-1@host/m"),
            sub=[],
        )
        project.files(
            test_record=RECORD,
            test_table=TABLE,
            test_rerun=RERUN,
            test_factory=FACTORY,
            test_bad=BAD,
            test_there=THERE,
            test_secrets=SECRETS,
            test_details=FAILS_LOUDLY,
            test_sub=SUBTESTS,
        )
        arguments = ["--junitxml=junit.xml", "--infserver-max-servers=30", *request.param]
        if HTML:
            arguments += ["--html", "out/of/report.html"]
        plugins = ("xdist",) if request.param else ()
        return project, project.run(*arguments, plugins=(*plugins, *installed("pytest_rerunfailures"), *HTML))


@pytest.fixture
def everything(shared):
    """Return the shared project."""
    return shared[0]


@pytest.fixture
def result(shared):
    """Return what the shared project's run showed."""
    return shared[1]


@pytest.fixture
def record(everything) -> dict[str, Any]:
    """Return run.json of the shared project's run."""
    return record_of(everything)


def record_of(project: Any, name: str = "server_logs/run.json") -> dict[str, Any]:
    """Return run.json, which has to be what its schema says."""
    record: dict[str, Any] = json.loads((project.path / name).read_text())
    jsonschema.Draft202012Validator(run_schema()).validate(record)
    return record


def server_of(record: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [server for server in record["servers"] if server["name"] == name]
    return dict(found)


def of_file(record: dict[str, Any], file: str) -> list[dict[str, Any]]:
    return [test for test in record["tests"] if test["id"].startswith(f"{file}.py::")]


def cases_of(project: Any, file: str) -> list[ElementTree.Element]:
    """Return JUnit's elements of the tests of a file."""
    cases = ElementTree.parse(project.path / "junit.xml").iter("testcase")
    return [case for case in cases if case.get("classname") == file]


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


RECORD = """
import pytest
from helpers import get
pytestmark = pytest.mark.infserver("a", "b")
@pytest.mark.parametrize("number", range(3))
def test_pass(inference_server, number): get(inference_server, f"/say?text=passing-{number}")
def test_fail(inference_server): get(inference_server, "/say?text=failing") or 1 / 0
def test_skip(inference_server): pytest.skip("not today")
@pytest.mark.xfail
def test_xfail(inference_server): assert 0
def test_plain(): pass
"""


def test_the_record_of_a_run(everything, record) -> None:
    assert record["exit_status"] == 1
    assert record["outcomes"] == Counter(test["outcome"] for test in record["tests"])
    assert record["started"] < record["ended"]
    tests = {test["id"]: test for test in of_file(record, "test_record")}
    outcomes = Counter(test["outcome"] for test in tests.values())
    assert outcomes == {"passed": 7, "failed": 2, "skipped": 2, "xfailed": 2}
    assert len(tests) == 13
    plain, failed = tests["test_record.py::test_plain"], tests["test_record.py::test_fail[b]"]
    assert plain["servers"] == []
    assert (failed["outcome"], failed["message"]) == ("failed", "ZeroDivisionError: division by zero")
    [use] = failed["servers"]
    assert (use["name"], use["launch"]) == ("b", 1)
    log = (everything.path / "server_logs" / server_of(record, "b")["log"]).read_bytes()
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


def test_what_lies_beside_a_servers_log(everything) -> None:
    folder = everything.path / "server_logs" / "a"
    assert {"server.log", "command.txt", "environment.txt", "events.jsonl"} <= set(os.listdir(folder))
    assert stat.S_IMODE((folder / "environment.txt").stat().st_mode) == 0o600
    assert "MY_TOKEN=********" in (folder / "environment.txt").read_text()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "phase"]
    assert [kind for kind in kinds if kind != "test"] == ["starting", "launched", "ready", "stopping", "stopped"]
    assert kinds.count("test") == 6
    # The news of each worker's last test may come after the end of its use.
    assert kinds[:7] == ["starting", "launched", "ready", *["test"] * 4]
    outcomes = {event["outcome"] for event in events if event["event"] == "test"}
    assert outcomes == {"passed", "failed", "skipped", "xfailed"}
    times = [event["time"] for event in events]
    assert times[0] < times[-1]
    for path in (everything.path / "server_logs").rglob("*"):
        if path.is_file() and path.name != "server.log":
            assert SECRET not in path.read_text(), path


def test_junit_says_on_which_server_a_test_ran(everything) -> None:
    found = {
        case.get("name"): [(one.get("name"), one.get("value")) for one in case.iter("property")]
        for case in cases_of(everything, "test_record")
    }
    assert found["test_plain"] == []
    # As pytest orders the ids of two parameters.
    first = "test_pass[0-a]" if "test_pass[0-a]" in found else "test_pass[a-0]"
    for name in (first, "test_fail[a]", "test_skip[a]", "test_xfail[a]"):
        properties = dict(found[name])
        assert len(found[name]) == 4
        assert (properties["infserver_server"], properties["infserver_backend"]) == ("a", "command")
        assert properties["infserver_url"].startswith("http://127.0.0.1:")
        assert properties["infserver_log"] == str(everything.path / "server_logs" / "a" / "server.log")


def test_pytest_html_links_to_the_logs(everything) -> None:
    pytest.importorskip("pytest_html")
    text = (everything.path / "out" / "of" / "report.html").read_text()
    links = set(re.findall(r"&#34;content&#34;: &#34;([^&]*server\.log)&#34;", text))
    assert {f"../../server_logs/{name}/server.log" for name in ("a", "b", "shaky", "steady")} <= links
    for link in links:
        assert re.fullmatch(r"\.\./\.\./server_logs/[\w.%-]+/server\.log", link)
        assert (everything.path / "out" / "of" / urllib.parse.unquote(link)).exists()


TABLE = """
import pytest, time
from helpers import kill
pytestmark = pytest.mark.infserver("shaky", "steady")
def test_table_1(inference_server): time.sleep(0.4)
def test_table_2(inference_server): inference_server.name == "shaky" and kill(inference_server)
def test_table_3(inference_server): pass
"""


def test_the_table_tells_of_each_server(record, result, quiet) -> None:
    quiet(result)
    head, *rows = table(result)
    assert head[:2] == ["server", "backend"]
    assert {"tests", "failed", "restarts", "peak RSS", "heartbeat p50/p99", "stop", "leaks"} <= set(head)
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    # A start on a port that somebody else has taken meanwhile is no restart.
    lives = [life for life in server_of(record, "shaky")["lives"] if life["ready"] is not None]
    # On two workers another test may have been running on it, or it was the last one.
    assert by_name["shaky"]["failed"] in ("1", "2")
    assert by_name["shaky"]["restarts"] == str(len(lives) - 1)
    assert (by_name["steady"]["restarts"], by_name["steady"]["failed"]) == ("0", "-")
    assert by_name["steady"]["leaks"] == "none"
    assert re.fullmatch(r"\d+/\d+ ms", by_name["steady"]["heartbeat p50/p99"])
    for name in ("shaky", "steady"):
        result.stdout.re_match_lines([rf"{name} +server_logs/{name}/server\.log"])
    assert [life["end"] for life in lives] in (["died", "stopped"], ["died"])
    assert lives[0]["how"] == "exited with code 3"
    if record["workers"] == 0:
        assert lives[0]["ended"] <= lives[1]["launched"]


RERUN = """
import pytest
@pytest.mark.flaky(reruns=2)
@pytest.mark.infserver_needs("left", "right")
def test_both(inference_servers, request):
    request.config.tries = getattr(request.config, "tries", 0) + 1
    assert request.config.tries == 3
"""


def test_junit_names_all_servers_of_a_test_and_each_once_for_reruns(everything, record) -> None:
    pytest.importorskip("pytest_rerunfailures")
    assert everything.outcomes("test_rerun") == {"passed": 1, "rerun": 2}
    cases = cases_of(everything, "test_rerun")
    assert cases
    for case in cases:
        names = [one.get("value") for one in case.iter("property") if one.get("name") == "infserver_server"]
        assert names in (["left", "right"], [])
    assert names == ["left", "right"]
    tests = of_file(record, "test_rerun")
    assert Counter(test["outcome"] for test in tests) == {"rerun": 2, "passed": 1}
    assert [[use["name"] for use in test["servers"]] for test in tests] == [["left", "right"]] * 3


FACTORY = """
import pytest
@pytest.mark.parametrize("number", range(3))
def test_own(inference_server_factory, number):
    inference_server_factory("made", env_vars={"X": "1"})
@pytest.mark.infserver("made")
def test_shared(inference_server): pass
"""


def test_servers_of_the_factory_are_recorded_under_one_name(everything, record) -> None:
    assert everything.outcomes("test_factory") == {"passed": 4}
    factory = server_of(record, "made+X=1")
    # Two workers may have it at the same time.
    assert factory["tests"] == 3
    assert 1 <= len(factory["lives"]) <= 3
    assert {life["end"] for life in factory["lives"]} == {"stopped"}
    assert server_of(record, "made")["tests"] == 1


BAD = """
import pytest
@pytest.mark.infserver("bad", "good")
def test_start(inference_server): pass
"""


def test_a_server_that_does_not_start_is_recorded(everything, record, result) -> None:
    assert everything.outcomes("test_bad") == {"passed": 1, "errors": 1}
    server = server_of(record, "bad")
    # One more for each time that somebody else has taken its port.
    life = server["lives"][-1]
    assert (life["end"], life["ready"], server["ready_seconds"]) == ("failed", None, None)
    assert "7" in life["how"]
    assert [row[3] for row in table(result) if row[0] == "bad"] == ["never"]


THERE = """
import pytest
pytestmark = pytest.mark.infserver("there")
def test_there_1(inference_server): pass
def test_there_2(inference_server): assert 0
"""


def test_an_attached_server_is_in_the_record(everything, record, result) -> None:
    assert everything.outcomes("test_there") == {"passed": 1, "failed": 1}
    found = server_of(record, "there")
    # Two of them are those of the secrets.
    assert (found["attached"], found["log"], found["tests"]) == (True, None, 2 + 1)
    assert [row[0] for row in table(result)].count("there") == 1


FAILS_LOUDLY = f"""
import logging, pytest, sys
@pytest.fixture
def loud(inference_server): print("in the setup")
@pytest.mark.infserver("good")
def test_details(loud):
    print("\\x1b[31mred\\x1b[0m {SECRET}")
    print("much\\n" * 20_000 + "the end")
    print("on stderr", file=sys.stderr)
    logging.getLogger().warning("a warning")
    1 / 0
"""
OWN = [sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}"]
SECRETS = f"""
import pytest
@pytest.mark.infserver("secretive", "there")
@pytest.mark.parametrize("secret", ["{SECRET}"])
def test_1(inference_server, secret): raise ValueError("the token is {SECRET}")
def test_2(inference_server_factory):
    env = {{"OWN_TOKEN": "only-this-worker-knows"}}
    inference_server_factory(backend="command", name="f", env_vars=env, launch_command={OWN})
    raise ValueError("the token is only-this-" + "worker-knows")
"""


def test_a_failed_test_has_its_traceback_and_output_in_the_record_and_others_nothing(record) -> None:
    tests = of_file(record, "test_record") + of_file(record, "test_details")
    assert {test["outcome"] for test in tests if test["details"]} == {"failed"}
    [test] = of_file(record, "test_details")
    texts = {one["title"]: one["text"] for one in test["details"]}
    assert "E       ZeroDivisionError: division by zero" in texts["Failure"]
    assert texts["Captured stdout setup"] == "in the setup\n"
    assert texts["Captured stdout call"].startswith("red ********\n")
    assert re.search(r"\n\[\.\.\. \d+ characters left out \.\.\.\]\n", texts["Captured stdout call"])
    assert texts["Captured stdout call"].endswith("the end\n")
    assert texts["Captured stderr call"] == "on stderr\n"
    assert "a warning" in texts["Captured log call"]
    assert not [title for title in texts if "log during" in title]
    assert sum(map(len, texts.values())) < 13_000


def test_the_parts_of_a_tests_time_are_its_whole_time(record) -> None:
    timed = [test for test in record["tests"] if test["call_seconds"] is not None and test["outcome"] != "rerun"]
    for test in timed:
        parts = sum(test[f"{part}_seconds"] or 0 for part in ("wait", "setup", "call", "teardown"))
        # Times of day are rounded.
        assert parts <= test["ended"] - test["started"] + 0.003
    # Somebody waited for a server's start, which is no part of the setup.
    longest = max(timed, key=lambda test: test["wait_seconds"])
    assert longest["wait_seconds"] > longest["setup_seconds"]


def test_secrets_in_messages_ids_and_urls_are_masked(everything, record) -> None:
    tests = of_file(record, "test_secrets")
    assert {test["message"] for test in tests} == {"ValueError: the token is ********"}
    assert sorted(test["id"] for test in tests) == [
        "test_secrets.py::test_1[********-secretive]",
        "test_secrets.py::test_1[********-there]",
        "test_secrets.py::test_2",
    ]
    assert server_of(record, "secretive")["model"] == "https://bob:********@host/m"
    for path in (everything.path / "server_logs").rglob("*"):
        if path.is_file():
            for secret in (SECRET, "only-this-worker-knows", "url-pass-"):
                assert secret not in path.read_text(), (path, secret)


SUBTESTS = """
import pytest
if not hasattr(pytest, "SubtestReport"):
    pytest.skip("pytest 8 has no subtests", allow_module_level=True)
pytestmark = pytest.mark.infserver("sub")
def test_sub_1(inference_server, subtests):
    with subtests.test("one"): pytest.skip("not this one")
    with subtests.test("two"): pytest.xfail("nor this one")
    with subtests.test("three"): pass
def test_sub_2(inference_server, subtests):
    with subtests.test("one"): assert 0, "this one"
"""


def test_a_test_is_more_than_its_subtests(record) -> None:
    if not hasattr(pytest, "SubtestReport"):
        pytest.skip("pytest 8 has no subtests")
    tests = {test["id"].partition("::")[2]: test for test in of_file(record, "test_sub")}
    found = {name: (test["outcome"], test["message"]) for name, test in tests.items()}
    assert found == {"test_sub_1[sub]": ("passed", None), "test_sub_2[sub]": ("failed", "AssertionError: this one")}


def test_the_table_is_there_with_v_on_failures_and_when_asked_for(inline_project, monkeypatch) -> None:
    project = inline_project
    project.servers(a=[], b=[])
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


def check_a_run_without_servers(project, *workers: str, **more: Any) -> None:
    project.servers(a=[])
    project.files(
        test_1="def test_1(): pass\nimport pytest\n@pytest.mark.backend('vllm')\ndef test_2(inference_server): 0"
    )
    result = project.run("-v", *workers, **more)
    result.assert_outcomes(passed=1, skipped=1)
    assert not (project.path / "server_logs").exists()
    assert not table(result)


def test_a_run_without_servers_writes_nothing(inline_project) -> None:
    check_a_run_without_servers(inline_project)


def test_workers_without_servers_write_nothing(project) -> None:
    pytest.importorskip("xdist")
    check_a_run_without_servers(project, "-n2", plugins=("xdist",))


def test_a_run_that_does_not_use_the_plugin_is_left_alone(inline_project) -> None:
    inline_project.files(test_1="def test_1(): assert 0")
    result = inline_project.bare("-v", "--junitxml=junit.xml")
    result.assert_outcomes(failed=1)
    assert "infserver" not in (inline_project.path / "junit.xml").read_text()
    assert not (inline_project.path / "server_logs").exists()


def test_a_kept_server_has_neither_start_nor_stop_in_the_second_run(project, run, monkeypatch) -> None:
    state = tempfile.mkdtemp(prefix="infs-")
    monkeypatch.setenv("INFSERVER_STATE_DIR", state)
    # Its runs do not see others' locks on ports.
    project.servers(a=fake_block(port=port_of_nobody()))
    project.files(test_1="def test_1(inference_server): pass")
    try:
        for taken_over in (False, True):
            run("--infserver-keep=60s").assert_outcomes(passed=1)
            [life] = server_of(record_of(project), "a")["lives"]
            assert (life["taken_over"], life["end"]) == (taken_over, "kept")
        events = [json.loads(line)["event"] for line in (project.path / "server_logs/a/events.jsonl").open()]
        # A test is noted when its teardown is over: a server that nobody needs any more may have been left by then.
        assert events.count("test") == 2
        told = [event for event in events if event not in ("phase", "test")]
        assert told == ["starting", "launched", "ready", "kept", "taken_over", "kept"]
    finally:
        stop = "import sys; from pytest_infserver.cli.main import main; sys.exit(main(['stop', '--all']))"
        subprocess.run([sys.executable, "-c", stop], timeout=60, check=True)
        shutil.rmtree(state)


ASKS_FOR_THE_FIRST = f"""
def test_1(request):
    make = request.getfixturevalue("inference_server_factory")
    assert make(name="first", backend="command", launch_command={fake_command()}).check_health()
def test_2(): pass
"""


def test_a_test_that_asks_for_the_first_server_of_a_run_is_in_its_record(project, run) -> None:
    project.files(test_1=ASKS_FOR_THE_FIRST)
    run().assert_outcomes(passed=2)
    record = record_of(project)
    [use] = {test["id"]: test for test in record["tests"]}["test_1.py::test_1"]["servers"]
    assert use["name"] == "first"
    assert [(server["name"], server["tests"]) for server in record["servers"]] == [("first", 1)]


DRAWS_ITS_KEY = """
import secrets
from pytest_infserver import CommandServer
class Mine(CommandServer):
    def get_launch_command(self):
        key = secrets.token_hex(16)
        return [*super().get_launch_command(), "--need-key", key, "--api-key", key]
"""
ASKS_WITH_THE_KEY = """
def test_1(inference_server, inference_session):
    assert inference_session.get("/argv").status_code == 200
    argv = inference_session.get("/argv").json()["argv"]
    assert inference_server.api_key == argv[argv.index("--api-key") + 1]
"""


def test_a_key_that_a_backend_draws_is_that_of_the_server(project, run) -> None:
    project.servers(a={"backend": "mine:Mine", "launch_command": fake_command()})
    project.files(mine=DRAWS_ITS_KEY, test_1=ASKS_WITH_THE_KEY)
    run().assert_outcomes(passed=1)


@pytest.fixture(scope="module")
def two_workers(shared_project):
    """A project with tests that are hard on workers, each file with a server of its own; and what its run showed."""
    pytest.importorskip("xdist")
    project = shared_project(MY_TOKEN=SECRET)
    project.servers(crash=[], move=[], mine={"backend": "mine:Mine", "model": "m"})
    project.files(test_crash=CRASH, test_move=MOVE, mine=MINE, test_mine=TEST_OF_MINE)
    arguments = (
        (
            "--infserver-max-servers=30",
            "--html=reports/all.html",
        )
        if HTML
        else ()
    )
    return project, project.run("-n2", *arguments, plugins=("xdist", *HTML))


CRASH = """
import os, pytest
pytestmark = pytest.mark.infserver("crash")
def test_crash(inference_server): os._exit(1)
def test_other(inference_server): pass
"""


def test_the_crash_of_a_worker_is_in_the_record(two_workers) -> None:
    tests = {test["id"].partition("::")[2]: test for test in of_file(record_of(two_workers[0]), "test_crash")}
    assert tests["test_crash[crash]"]["outcome"] == "failed"
    assert "crashed" in tests["test_crash[crash]"]["message"]
    assert tests["test_crash[crash]"]["servers"][0]["name"] == "crash"
    assert tests["test_other[crash]"]["outcome"] == "passed"


MOVE = """
import os, pytest
pytestmark = pytest.mark.infserver("move")
def test_move(inference_server, tmp_path):
    os.chdir(tmp_path)
def test_remove(inference_server, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
"""


def test_a_workers_test_may_leave_the_working_directory_and_remove_it(two_workers) -> None:
    pytest.importorskip("pytest_html")
    project, result = two_workers
    assert project.outcomes("test_move") == {"passed": 2}
    assert "INTERNALERROR" not in result.stdout.str()
    record_of(project)
    assert "../server_logs/move/server.log" in (project.path / "reports" / "all.html").read_text()


def test_a_test_may_leave_the_working_directory_and_remove_it(inline_project, quiet) -> None:
    pytest.importorskip("pytest_html")
    inline_project.servers(move=[])
    inline_project.files(test_move=MOVE)
    result = inline_project.run("--html=reports/all.html", plugins=HTML)
    os.chdir(inline_project.path)
    result.assert_outcomes(passed=2)
    quiet(result)
    record_of(inline_project)
    assert "../server_logs/move/server.log" in (inline_project.path / "reports" / "all.html").read_text()


MINE = f"""
from pytest_infserver import InferenceServer
class Mine(InferenceServer):
    def get_backend_name(self): return "mine"
    def get_binary_path(self): return "/bin/true"
    def get_launch_command(self): raise ValueError("no command for {SECRET}")
    def get_health_endpoint(self): return self.url_for("/health")
    def list_endpoints(self): return {{}}
"""
TEST_OF_MINE = """
import pytest
@pytest.mark.infserver("mine")
def test_mine(inference_server): pass
"""


def check_a_backend_without_a_command(project, result: pytest.RunResult) -> None:
    assert project.outcomes("test_mine") == {"errors": 1}
    text = result.stdout.str() + result.stderr.str()
    assert "no command for ********" in text
    assert SECRET not in text
    assert "INTERNALERROR" not in text
    server = server_of(record_of(project), "mine")
    assert server["command"] is None
    assert server["lives"][0]["how"] == "Mine.get_launch_command() raised ValueError: no command for ********"


def test_a_backend_without_a_command_is_recorded_and_not_an_error_of_pytest(inline_project, monkeypatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    inline_project.servers(mine={"backend": "mine:Mine", "model": "m"})
    inline_project.files(mine=MINE, test_mine=TEST_OF_MINE)
    check_a_backend_without_a_command(inline_project, inline_project.run())


def test_a_backend_without_a_command_is_recorded_with_workers(two_workers) -> None:
    check_a_backend_without_a_command(*two_workers)


def test_two_runs_at_once_have_a_report_each(project) -> None:
    project.servers(a=[])
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


def test_an_interrupted_run_has_a_record(project) -> None:
    project.servers(a=[])
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


def test_a_run_that_was_killed_leaves_the_events_so_far(project) -> None:
    project.servers(a=[])
    project.files(
        test_1="""
        import os, time
        def test_1(inference_server): pass
        def test_2(inference_server):
            # What is noted goes to another process.
            time.sleep(0.5)
            os.kill(os.getpid(), 9)
        """
    )
    project.run()
    events = [json.loads(line) for line in Path(project.path, "server_logs/a/events.jsonl").open()]
    # What stops it in order, now that pytest is gone, may have come further.
    assert [event["event"] for event in events if event["event"] != "phase"][:5] == [
        "starting",
        "launched",
        "ready",
        "test",
        "stopping",
    ]
    (test,) = (event for event in events if event["event"] == "test")
    assert test["id"] == "test_1.py::test_1[a]"


def test_each_worker_of_dist_each_has_its_own_records(project) -> None:
    pytest.importorskip("xdist")
    project.servers(a=[])
    project.files(test_1="def test_1(inference_server): pass")
    project.run("-n2", "--dist=each", plugins=("xdist",)).assert_outcomes(passed=2)
    record = record_of(project)
    assert sorted(test["worker"] for test in record["tests"]) == ["gw0", "gw1"]
    assert server_of(record, "a")["tests"] == 2


TEST = "def test_1(inference_server): pass"
BROKEN = """
import pytest_infserver.{module} as module

def fail(*_):
    raise KeyError("not there")

module.{name} = fail
"""
PAGE = {"module": "reporting.timeline.html", "name": "render_html"}


def break_here(monkeypatch: pytest.MonkeyPatch, function: dict[str, str]) -> None:
    """Let a function of the package fail in this process."""

    def fail(*_: object) -> None:
        raise KeyError("not there")

    # Not by its path: a package may still name a module that an earlier run in this process has imported.
    module = importlib.import_module(f"pytest_infserver.{function['module']}")
    monkeypatch.setattr(module, function["name"], fail)


def check_a_folder_that_cannot_be_written(project, *workers: str, **more: Any) -> None:
    project.servers(QUICK, a=[])
    (project.path / "server_logs" / "run.json").mkdir(parents=True)
    (project.path / "server_logs" / "run.json" / "in-the-way").write_text("")
    project.files(test_1=TEST)
    result = project.run(*workers, **more)
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["the report of this run cannot be written: *run.json*"])


def test_a_folder_that_cannot_be_written_is_said_and_fails_nothing(inline_project) -> None:
    check_a_folder_that_cannot_be_written(inline_project)


def test_a_folder_that_cannot_be_written_is_said_and_fails_no_worker(project) -> None:
    pytest.importorskip("xdist")
    check_a_folder_that_cannot_be_written(project, "-n2", plugins=("xdist",))


def check_a_report_that_cannot_be_made(project, quiet, *workers: str, **more: Any) -> None:
    project.servers(a=[])
    project.files(test_1=TEST)
    result = project.run("-v", *workers, **more)
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert "the report of this run cannot be made: KeyError: 'not there'" in quiet(result)
    assert table(result)[1][0] == "a"
    record_of(project)


def test_a_report_that_cannot_be_made_fails_nothing(inline_project, quiet, monkeypatch) -> None:
    break_here(monkeypatch, PAGE)
    check_a_report_that_cannot_be_made(inline_project, quiet)


def test_a_report_that_cannot_be_made_fails_no_worker(project, quiet) -> None:
    pytest.importorskip("xdist")
    project.conftest(BROKEN.format(**PAGE))
    check_a_report_that_cannot_be_made(project, quiet, "-n2", plugins=("xdist",))
