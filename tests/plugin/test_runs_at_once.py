"""Several runs of pytest on one machine.

At once, each with a TMPDIR and a HOME of its own, as wrappers give them; and in a row, on one named port.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from isolation import port_of_nobody
from plugin.conftest import SHARED_LIMIT, Project

pytestmark = pytest.mark.run
BEGIN_TOGETHER = """
import os, pathlib, time
def pytest_configure(config):
    here = pathlib.Path(__file__).parent
    (here / "there").touch()
    deadline = time.monotonic() + 60
    while len(list(here.parent.glob("*/there"))) < int(os.environ["RUNS"]) and time.monotonic() < deadline:
        time.sleep(0.01)
"""
TEST = """
import pytest
from helpers import get
@pytest.mark.parametrize("n", range(3))
def test_it(inference_server, n):
    answer = get(inference_server, "/argv")
    # Not that of another run.
    assert answer["pid"] == inference_server.pid
    assert answer["env"]["HOME"] == __file__.rpartition("/")[0] + "/home"
"""


def run_at_once(folder: Path, count: int, port: int | None, *words: str) -> None:
    """Run pytest this many times at once; each run must be green, and start each server once."""
    projects, runs = [], []
    for number in range(count):
        path = folder / f"run{number}"
        for name in ("tmp", "home"):
            (path / name).mkdir(parents=True)
        (path / "pytest.ini").write_text("[pytest]\n")
        project = Project(path, lambda *_: pytest.RunResult(0, [], [], 0))
        fixed = {} if port is None else {"port": port}
        project.servers(fixed, a=[], b=[])
        project.conftest(BEGIN_TOGETHER)
        project.files(test_1=TEST)
        places = {"TMPDIR": str(path / "tmp"), "HOME": str(path / "home"), "RUNS": str(count)}
        environment = {**os.environ, **places, "PYTHONPATH": str(path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        environment.pop("XDG_RUNTIME_DIR", None)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_infserver.plugin"]
        command += ["--infserver-config=servers.yaml", f"--basetemp={path}/tmp/base", *words]
        output = (path / "output").open("w")
        runs.append(subprocess.Popen(command, cwd=path, env=environment, stdout=output, stderr=output))
        output.close()
        projects.append(project)
    try:
        for project, run in zip(projects, runs, strict=True):
            code = run.wait(SHARED_LIMIT)
            text = (project.path / "output").read_text()
            assert code == 0, text
            assert "6 passed" in text
            assert sorted(project.events("started")) == ["started a", "started b"], text
            assert sorted(project.events("stopped")) == ["stopped a gone", "stopped b gone"], text
    finally:
        for run in runs:
            run.kill()
            run.wait()


@pytest.mark.promise
def test_two_runs_with_one_fixed_port_take_turns(tmp_path: Path, nothing_left: None) -> None:
    run_at_once(tmp_path, 2, port_of_nobody())


@pytest.mark.nightly
@pytest.mark.parametrize("words", [(), ("-pxdist", "-n2")], ids=["alone", "n2"])
@pytest.mark.parametrize("is_fixed", [False, True])
def test_five_runs_start_each_server_once(
    tmp_path: Path, nothing_left: None, is_fixed: bool, words: tuple[str, ...]
) -> None:
    if words:
        pytest.importorskip("xdist")
    run_at_once(tmp_path, 5, port_of_nobody() if is_fixed else None, *words)


IN_A_ROW = """
from helpers import get
def test_it(inference_server):
    # The server closes first: the connection stays on its port, in TIME_WAIT.
    assert get(inference_server, "/argv")["pid"] == inference_server.pid
    assert inference_server.port == PORT
"""


def test_five_runs_in_a_row_have_one_named_port(inline_project: Project) -> None:
    port = port_of_nobody()
    inline_project.servers({"port": port}, a=[], b=[])
    inline_project.files(test_1=f"PORT = {port}{IN_A_ROW}")
    for _ in range(5):
        inline_project.run().assert_outcomes(passed=2)
        with socket.socket() as probe, pytest.raises(OSError, match="in use"):
            probe.bind(("127.0.0.1", port))
    assert sorted(inline_project.events("started")) == ["started a"] * 5 + ["started b"] * 5


@pytest.mark.nightly
def test_runs_in_a_row_of_a_server_without_reuseaddr(inline_project: Project) -> None:
    """The next one waits until the system has forgotten the connections."""
    port = port_of_nobody()
    inline_project.servers({"port": port}, a=["--no-reuseaddr"])
    inline_project.files(test_1=f"PORT = {port}{IN_A_ROW}")
    for _ in range(2):
        inline_project.run().assert_outcomes(passed=1)
