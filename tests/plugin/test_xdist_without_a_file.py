"""One pool for all workers of xdist where no file names servers: marks and the factory alone describe them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xdist")

ENGINE = str(Path(__file__).parents[1] / "fake_engine.py")

BOTH = """
import pathlib, time
import pytest
from helpers import note
HERE = pathlib.Path(__file__).parent
def meet(name, number):
    (HERE / f"{name}-{number}").touch()
    deadline = time.monotonic() + 60
    while not all((HERE / f"{name}-{one}").exists() for one in (1, 2)):
        assert time.monotonic() < deadline, "the other worker has no server"
        time.sleep(0.05)
COMMAND = %r
@pytest.mark.infserver(backend="command", launch_command=COMMAND, env_vars={"X": "1"})
def test_mark(inference_server):
    note("pid", "mark", inference_server.pid)
    meet("mark", %d)
def test_factory(inference_server_factory):
    server = inference_server_factory(backend="command", launch_command=COMMAND, env_vars={"X": "2"})
    note("pid", "factory", server.pid)
    meet("factory", %d)
def test_together(inference_server_factory):
    settings = {"backend": "command", "launch_command": COMMAND, "gpus": 1}
    server = inference_server_factory(settings, fresh=True)
    note("alone", server.name)
    time.sleep(0.2)
    note("leaves", server.name)
"""


def test_servers_that_no_file_names_are_those_of_one_pool_too(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks and the factory alone describe them: equal settings start once, and two workers take turns on one GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    command = [sys.executable, "-S", ENGINE, "--port", "{port}"]
    project.files(test_1=BOTH % (command, 1, 1), test_2=BOTH % (command, 2, 2))
    project.bare("-n2", "--dist=loadfile", plugins=("xdist",)).assert_outcomes(passed=6)
    pids = {name: {line.split()[2] for line in project.events("pid", of=[name])} for name in ("mark", "factory")}
    assert {name: len(found) for name, found in pids.items()} == {"mark": 1, "factory": 1}
    turns = [line.split()[0] for line in project.events("alone", "leaves")]
    assert turns == ["alone", "leaves"] * 2
    # The controller has started them, and tells of them.
    assert len(project.events("started")) == 4
    assert (project.path / "server_logs" / "report.html").is_file()


def test_a_run_whose_tests_want_no_server_has_no_pool(project: Any) -> None:
    project.files(test_1="def test_1(): pass")
    project.conftest(
        """
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        import sys
        note("loaded", "pytest_infserver.setup" in sys.modules, "requests" in sys.modules)
"""
    )
    project.bare("-n2", plugins=("xdist",)).assert_outcomes(passed=1)
    assert project.events("loaded") == ["loaded False False"]
