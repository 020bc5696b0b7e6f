"""``--infserver-cluster local`` and ``auto`` with real llama.cpp: what a user types, on a machine of his own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest
from plugin.conftest import Project, quiet

from cluster.background import LIMIT, BackgroundRuns
from cluster.conftest import ALONE, ON_TWO, every_day
from cluster.ray_nodes import RayNodes
from pytest_infserver.cli.main import main
from pytest_infserver.reporting.record.run_schema import run_schema

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("openai")
pytestmark = [
    pytest.mark.usefixtures("hard_limit"),
    pytest.mark.skipif(sys.platform != "linux", reason="a cluster that only this machine reaches needs Linux"),
]

YAML = """
defaults: {backend: llamacpp, model: "builtin:tiny", cpus: 0.5}
servers:
  small: {config: {server_args: {ctx-size: 256}}}
  large: {config: {server_args: {ctx-size: 512}}}
"""
TESTS = """
import os
import openai, psutil, pytest, requests

def ask(server, key):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"prompt": "Hello", "max_tokens": 4}
    return requests.post(server.url_for("/v1/completions"), json=body, headers=headers, timeout=60)

def test_key(inference_server):
    key = inference_server.api_key
    note("key", inference_server.name, key)
    if not KEYED:
        assert key is None
        assert ask(inference_server, None).status_code == 200
        return
    assert len(key) >= 32
    assert [ask(inference_server, one).status_code for one in (key, None, key[:-1], "x" * 40)] == [200, 401, 401, 401]
    shown = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    assert not [words for words in shown if key in words]
    assert any(f"--port {inference_server.port}" in words for words in shown)

def test_client(inference_server, inference_client):
    answer = inference_client.completions.create(model=inference_server.model, prompt="Hello", max_tokens=4)
    assert answer.usage.completion_tokens == 4

def test_where(inference_server):
    note("where", inference_server.name, inference_server.host, inference_server.node)
    assert inference_server.check_health()
    # The same machine: its process is here.
    assert psutil.pid_exists(inference_server.pid)

def test_one_more(inference_server, inference_server_factory):
    more = inference_server_factory(inference_server.name, name=f"more-{inference_server.name}")
    assert more.server_url != inference_server.server_url
    assert ask(more, more.api_key).status_code == 200
    assert ask(more, None).status_code == (401 if KEYED else 200)
"""
TEST_THAT_WAITS = """
def test_it(inference_server):
    note("uses", inference_server.name)
    await_go()
    assert inference_server.check_health()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="l-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_ray(folder: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have all files of runs in a folder of their own; fail if some are left there."""
    made = folder / "t"
    made.mkdir()
    (folder / "state").mkdir(mode=0o700)
    monkeypatch.setenv("TMPDIR", str(made))
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(folder / "state"))
    monkeypatch.setenv("HOME", str(folder))
    yield made
    deadline = time.monotonic() + LIMIT
    while (left := ours(made)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    # Ray would make a key there that clusters of later days obey.
    assert not (folder / ".ray").exists()


@pytest.fixture
def runs(project: Project, own_ray: Path, tmp_path: Path) -> Iterator[BackgroundRuns]:
    made = BackgroundRuns(tmp_path / "runs", project.path / "helpers.py")
    yield made
    made.kill()


def ours(tmp: Path) -> list[str]:
    """Return what there is of runs: files, and processes, those of Ray too."""
    # Not the folder of the controller's socket, which nobody can remove after a SIGKILL.
    left = [str(path) for path in tmp.iterdir() if path.name.startswith(("infserver-node-", "infserver-ray-", "infs-"))]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(tmp) and process.pid != os.getpid():
                left.append(f"{process.pid} {' '.join(process.cmdline())}")
    return left


def check(project: Project, run: Callable[..., pytest.RunResult], cluster: str, address: str) -> None:
    result = run(f"--infserver-cluster={cluster}", "--infserver-summary=always", "--junitxml=junit.xml")
    text = quiet(result)
    assert result.ret == 0, text
    result.assert_outcomes(passed=8)
    keys = {line.split()[1]: line.split()[2] for line in project.events("key")}
    assert set(keys) == {"small", "large"}
    if cluster != "local":
        assert len(set(keys.values())) == 2
    else:
        # As on one machine: nobody else reaches it.
        assert set(keys.values()) == {"None"}
        keys = {}
    where = {line.split()[1]: line.split(maxsplit=3)[2:] for line in project.events("where")}
    for host, node in where.values():
        assert re.fullmatch(address, host)
        assert node.endswith(f"({host})")
    for key in keys.values():
        assert key not in text
    files = [path for path in (project.path / "server_logs").rglob("*") if path.is_file()]
    assert {"run.json", "report.html", "server.log", "environment.txt", "events.jsonl"} <= {one.name for one in files}
    for path in files:
        assert not [name for name, key in keys.items() if key.encode() in path.read_bytes()], path
    check_nodes(project, text, cluster, {name: node for name, (_, node) in where.items()})


def check_nodes(project: Project, text: str, cluster: str, nodes: dict[str, str]) -> None:
    logs = project.path / "server_logs"
    record = json.loads((logs / "run.json").read_text())
    jsonschema.Draft202012Validator(run_schema()).validate(record)
    assert record["cluster"] == cluster
    page = (logs / "report.html").read_text()
    assert f"Ray cluster {cluster}" in page
    lives = {server["name"]: server["lives"] for server in record["servers"]}
    assert {*nodes, *(f"more-{name}" for name in nodes)} == set(lives)
    assert all(life["node"] for known in lives.values() for life in known)
    for name, node in nodes.items():
        assert {life["node"] for life in lives[name]} == {node}
        assert re.search(rf"^{name} +server_logs/{name}/server\.log  on {re.escape(node)}$", text, re.MULTILINE)
        assert re.search(rf">{name}<span[^>]*>llamacpp · [^<]* · on {re.escape(node)}</span>", page)
        assert f'"node":"{node}"' in page
    cases = {case.get("name"): case for case in ElementTree.parse(project.path / "junit.xml").iter("testcase")}
    for name, node in nodes.items():
        found = [(one.get("name"), one.get("value")) for one in cases[f"test_key[{name}]"].iter("property")]
        assert ("infserver_server", name) in found
        assert [value for key, value in found if key == "infserver_node"] == [node]


def prepare(project: Project, *, keyed: bool = True) -> None:
    (project.path / "servers.yaml").write_text(YAML)
    project.files(test_1=f"from helpers import note\nKEYED = {keyed}\n{TESTS}")


@every_day(ALONE)
def test_local(project: Project, own_ray: Path, run: Callable[..., pytest.RunResult]) -> None:
    prepare(project, keyed=False)
    check(project, run, "local", re.escape("127.0.0.2"))


@every_day(ON_TWO)
@pytest.mark.parametrize("address", [pytest.param("auto", marks=pytest.mark.nightly), "ADDRESS"])
def test_a_cluster_of_others(
    project: Project,
    run: Callable[..., pytest.RunResult],
    ray_nodes: RayNodes,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    prepare(project)
    if address == "auto":
        monkeypatch.setenv("RAY_ADDRESS", ray_nodes.address)
    else:
        address = ray_nodes.address
    check(project, run, address, r"127\.0\.0\.[234]")


@every_day(ALONE)
def test_a_failed_test_says_that_there_is_a_key_and_a_failed_start_on_which_node(
    project: Project, run: Callable[..., pytest.RunResult], ray_nodes: RayNodes
) -> None:
    broken = "  broken: {config: {server_args: {no-such-option: 1}}}\n"
    (project.path / "servers.yaml").write_text(YAML + broken)
    project.files(test_1="def test_1(inference_server): assert inference_server.name != 'small'")
    result = run(f"--infserver-cluster={ray_nodes.address}")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    # Not `quiet`: the command of a failed start names the model, which lies in the package.
    text = result.stdout.str()
    assert text.count("with inference_server.api_key") == 1
    assert re.search(r"^  node:    [\w-]+ \(127\.0\.0\.[234]\)$", text, re.MULTILINE)


@every_day(ALONE)
def test_auto_finds_the_cluster_of_this_machine(
    project: Project,
    own_ray: Path,
    folder: Path,
    run: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(project)
    # Where `ray start` notes what it has started: others may have clusters here, too.
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with (folder / "output").open("w") as output:
        words = ["start", "--head", "--block", "--port=0", "--node-ip-address=127.0.0.6", "--include-dashboard=false"]
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words, "--num-cpus=4"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_TMPDIR": str(folder)},
        )
    try:
        deadline = time.monotonic() + LIMIT
        while not (folder / "ray" / "ray_current_cluster").exists():
            assert head.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < deadline, (folder / "output").read_text()
            time.sleep(0.1)
        check(project, run, "auto", re.escape("127.0.0.6"))
        assert head.poll() is None
    finally:
        head.terminate()
        head.wait(LIMIT)


@pytest.mark.parametrize("workers", [pytest.param(*ALONE.values, id="alone", marks=pytest.mark.nightly), ON_TWO])
def test_nothing_is_left_of_a_run_that_was_killed(
    runs: BackgroundRuns, own_ray: Path, workers: tuple[str, ...]
) -> None:
    folder = runs.start("run", YAML, TEST_THAT_WAITS, "--infserver-cluster=local", *workers)
    runs.await_lines(folder, "uses small")
    there = " ".join(ours(own_ray))
    for sign in (
        "gcs_server",
        "raylet",
        "ray::NodeServer",
        "infserver.launcher.supervision.supervisor",
        "cluster.agent",
        "llama",
    ):
        assert sign in there, sign
    # What Ray lets everybody into lies in what only this user may enter.
    assert {stat.S_IMODE(path.stat().st_mode) for path in own_ray.glob("infserver-ray-*")} == {0o700}
    runs.process(folder).kill()
    # The fixtures look at what is left.


def test_ps_and_stop_on_the_same_machine_need_no_address(
    runs: BackgroundRuns, own_ray: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs.start("run", YAML, TEST_THAT_WAITS, "--infserver-cluster=local", "--infserver-server=small")
    runs.await_lines(folder, "uses small")
    assert main(["ps"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert "NODE" not in head
    assert re.match(r"small\s+running\s+\S+\s+http://127\.0\.0\.2:\d+\s", row)
    assert main(["stop", "small"]) == 0
    assert re.match(r"small \(pid \d+, http://127\.0\.0\.2:\d+\): stopped in ", capsys.readouterr().out)
    output = runs.end(folder)
    assert f"small (llamacpp) was stopped by `infserver stop` (pid {os.getpid()})" in output
    assert "1 failed" in output
