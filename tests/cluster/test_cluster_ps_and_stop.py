"""``infserver ps`` and ``infserver stop`` with ``--cluster``: servers of other runs, wherever they are."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from plugin.conftest import Project

from cluster.background import LIMIT, BackgroundRuns
from cluster.ray_nodes import RayNodes
from pytest_infserver.cli.main import main
from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.listing import PREFIX
from pytest_infserver.errors import InferenceServerError

pytestmark = pytest.mark.usefixtures("hard_limit")

TESTS = """
def test_uses(inference_server):
    note("uses", inference_server.name)
    await_go()
    get(inference_server, "/health")

def test_after(inference_server):
    note("after", inference_server.name)
    get(inference_server, "/health")
"""
Start = Callable[..., Path]


@pytest.fixture
def runs(project: Project, on_cluster: RayNodes, tmp_path: Path) -> Iterator[BackgroundRuns]:
    made = BackgroundRuns(tmp_path / "runs", project.path / "helpers.py")
    yield made
    made.kill()


@pytest.fixture
def start(runs: BackgroundRuns, servers_yaml: Callable[..., Path]) -> Start:
    """Start a run with these servers in the background; return its folder."""

    def start(name: str, *arguments: str, **servers: list[str]) -> Path:
        config = servers_yaml({"startup_timeout": 60, "model": "some/model"}, **servers)
        return runs.start(name, config.read_text(), TESTS, *arguments)

    return start


@pytest.fixture
def infserver(on_cluster: RayNodes, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command on the cluster; return its status, and what it has said."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main([*words, "--cluster", on_cluster.address])
        return status, *capsys.readouterr()

    return run


Infserver = Callable[..., tuple[int, str, str]]


def await_rows(infserver: Infserver, count: int, *words: str) -> list[str]:
    deadline = time.monotonic() + LIMIT
    while True:
        rows = infserver("ps")[1].splitlines()[1:]
        if len(rows) == count and all(any(word in row for row in rows) for word in words):
            return rows
        assert time.monotonic() < deadline, rows
        time.sleep(0.1)


def test_without_servers(infserver: Infserver) -> None:
    assert infserver("ps") == (0, "no server runs\n", "")
    assert infserver("stop", "--all") == (0, "no server runs\n", "")
    assert infserver("stop", "a") == (1, "", "infserver: no server is called 'a'; no server runs\n")


def test_who_finds_a_server_by_name_may_neither_read_its_files_nor_end_it(
    runs: BackgroundRuns, start: Start, infserver: Infserver, on_cluster: RayNodes
) -> None:
    folder = start("run", a=[])
    runs.await_lines(folder, "uses a")
    connection = ClusterConnection(on_cluster.address)
    try:
        [(name, _, _)] = connection.ask("named_actors", 30, prefix=PREFIX)
        for method, arguments, answer in (
            ("kill", (), "has no attribute 'kill'"),
            ("read", ("logs/a/environment.txt", 0, 100), "has no attribute 'read'"),
            ("ask", ("", "kill"), "belongs to another run"),
            ("ask", ("0" * 64, "read", "logs/a/environment.txt", 0, 100), "belongs to another run"),
        ):
            with pytest.raises(InferenceServerError, match=answer):
                connection.ask("call_named", 30, name=name, method=method, arguments=arguments, timeout=20)
    finally:
        connection.close()
    assert "2 passed" in runs.end(folder)


def test_servers_of_two_runs_are_listed_and_stopped(runs: BackgroundRuns, start: Start, infserver: Infserver) -> None:
    first = start("first", a=[], b=[])
    second = start("second", "-n1", c=[])
    runs.await_lines(first, "uses a")
    runs.await_lines(second, "uses c")
    status, text, _ = infserver("ps")
    assert status == 0
    head, *rows = text.splitlines()
    assert re.split(r"\s{2,}", head) == ["NAME", "STATE", "MODEL", "NODE", "URL", "AGE", "MEMORY", "USED BY"]
    # Whether b is there ahead of its tests does not matter here.
    cells = {row.split()[0]: re.split(r"\s{2,}", row) for row in rows}
    assert set(cells) >= {"a", "c"}
    for name, folder in (("a", first), ("c", second)):
        _, state, model, node, url, age, memory, user = cells[name]
        assert (state, model) == ("running", "some/model")
        place = re.fullmatch(r"(?:head|node-[34]) \((127\.0\.0\.[234])\)", node)
        assert place is not None
        assert re.fullmatch(rf"http://{re.escape(place[1])}:\d+", url)
        assert re.fullmatch(r"\d+ s", age)
        assert re.fullmatch(r"\d+ MB", memory)
        assert memory != "0 MB"
        assert user.startswith(f"pid {runs.process(folder).pid} on {socket.gethostname()} (pytest -p no:cacheprovider ")

    status, said, problem = infserver("stop", "a", "c", "nobody")
    assert (status, said) == (1, "")
    assert problem.startswith("infserver: no server is called 'nobody'; these run: a, ")
    status, said, _ = infserver("stop", "a", "c")
    assert status == 0
    lines = sorted(said.splitlines())
    assert len(lines) == 2
    for line, name in zip(lines, "ac", strict=True):
        assert line.startswith(f"{name} (on {cells[name][3]}, {cells[name][4]}): stopped in ")
    # Both are gone, and their runs do not know yet whether somebody wants them again.
    for name in "ac":
        host, port = cells[name][4].removeprefix("http://").split(":")
        with pytest.raises(OSError), socket.create_connection((host, int(port)), timeout=5):
            pass
    by = rf"was stopped by `infserver stop` \(pid {os.getpid()} on {re.escape(socket.gethostname())}\)"
    for folder, name, tests in ((first, "a", 2), (second, "c", 1)):
        output = runs.end(folder)
        assert re.search(rf"{name} \(command\) {by}", output), output
        assert f"1 failed, {2 * tests - 1} passed" in output, output
        assert f"after {name}" in (folder / "events.txt").read_text()


def test_stopping_one_that_starts_fails_its_start(runs: BackgroundRuns, start: Start, infserver: Infserver) -> None:
    folder = start("first", a=["--delay", "50"])
    rows = await_rows(infserver, 1, "starting")
    assert re.match(r"a\s+starting\s+some/model\s+(head|node-[34]) \(", rows[0])
    status, said, _ = infserver("stop", "a*")
    assert (status, said[:6]) == (0, "a (on ")
    output = runs.end(folder)
    assert re.search(r"a \(command\) was stopped by `infserver stop` \(pid \d+ on .*\), before it was ready", output)
    assert "2 errors" in output


def test_the_parts_of_a_server_on_several_nodes_are_listed_and_stopped_together(
    runs: BackgroundRuns, infserver: Infserver, tmp_path: Path
) -> None:
    ranks = Path(__file__).parent / "stand_ins" / "sglang_ranks.py"
    command = tmp_path / "sglang"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -S {ranks} "$@"\n')
    command.chmod(0o755)
    settings = f"backend: sglang, model: fake, binary_path: {command}, gpus: 0, nodes: 2, startup_timeout: 90"
    folder = runs.start("run", f"servers: {{large: {{{settings}}}}}", TESTS)
    runs.await_lines(folder, "uses large")
    rows = [re.split(r"\s{2,}", row) for row in infserver("ps")[1].splitlines()[1:]]
    assert [row[:3] for row in rows] == [["large", "running", "fake"]] * 2
    assert len({row[3] for row in rows}) == 2
    places = {row[4] for row in rows}
    assert "(node rank 1 of 2)" in places
    assert any(place.startswith("http://127.0.0.") for place in places)
    status, said, _ = infserver("stop", "large")
    assert status == 0, said
    assert said.count(": stopped in ") == 2
    output = runs.end(folder)
    assert re.search(r"large \(sglang\) .*was stopped by `infserver stop`", output), output
    assert "1 failed, 1 passed" in output, output


def test_one_that_does_not_answer_is_listed_and_can_be_stopped(
    runs: BackgroundRuns, start: Start, infserver: Infserver, on_cluster: RayNodes
) -> None:
    folder = start("first", a=[])
    runs.await_lines(folder, "uses a")
    (actor,) = [one for one in psutil.process_iter() if is_actor(one, on_cluster)]
    actor.send_signal(signal.SIGSTOP)
    status, text, _ = infserver("ps")
    assert status == 0
    row = text.splitlines()[1]
    assert re.fullmatch(r"a +no answer +- +(head|node-[34]) \(127\.0\.0\.[234]\) +- +- +- +-", row), row
    status, said, _ = infserver("stop", "a")
    assert status == 0, said
    assert said.startswith(f"a (pid {actor.pid} on ")
    assert said.endswith(": its actor did not answer and is killed by Ray; then its supervisor stops it\n")
    actor.wait(LIMIT)
    output = runs.end(folder)
    assert re.search(
        r"a \(command\) (the actor|was lost: the process) that held it on \S+ \(\S+\) has ended", output
    ), output
    assert "1 failed, 1 passed" in output


def is_actor(process: psutil.Process, nodes: RayNodes) -> bool:
    with contextlib.suppress(psutil.Error):
        # The nodes' own TMPDIR: others may have a cluster on this machine, too.
        ours = process.environ().get("TMPDIR", "").startswith(str(nodes.tmp))
        return ours and process.cmdline()[0].startswith("ray::NodeServer")
    return False


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "--cluster 127.0.0.1:9: "),
        ("ray://127.0.0.1:10001", "--cluster ray://127.0.0.1:10001: Ray Client is not enough"),
        ("local", "--cluster local: such a cluster belongs to one run"),
    ],
)
@pytest.mark.parametrize("words", [["ps"], ["stop", "--all"]], ids=["ps", "stop"])
def test_a_cluster_that_cannot_be_looked_at_is_told(
    words: list[str], address: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--cluster", address]) == 4
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"infserver: {message}")
    assert output.err.count("\n") == 1


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.usefixtures("nothing_left")
def test_without_the_option_no_cluster_is_looked_at() -> None:
    code = (
        "import sys; from pytest_infserver.cli.main import main; main(['ps']);"
        " assert not [name for name in sys.modules if name.startswith(('ray', 'pytest_infserver.cluster'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=LIMIT)
