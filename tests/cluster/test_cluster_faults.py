"""Whatever breaks on a cluster, or is not there: the user reads why, no test hangs, and nothing is left on any node."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from plugin.conftest import Project
from ray import exceptions

from cluster.conftest import ALONE, ON_TWO, await_nothing_left
from cluster.ray_nodes import RayNodes
from pytest_infserver import ConfigError, InferenceServer
from pytest_infserver.cluster.agent.agent import Agent
from pytest_infserver.cluster.agent.answers import answer, reason_of
from pytest_infserver.cluster.agent.protocol import AWAY, DEAD, FAILED, LATE
from pytest_infserver.cluster.cluster import Cluster
from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.connection.errors import ClusterLost, NoAnswer
from pytest_infserver.cluster.connection.nodes import Node
from pytest_infserver.cluster.placement.demand import Demand
from pytest_infserver.cluster.placement.room import ClusterRoom
from pytest_infserver.cluster.runtime.placements import Placements
from pytest_infserver.config.model import ServerConfig
from pytest_infserver.system.disk.locks import take_lock

pytestmark = pytest.mark.usefixtures("hard_limit")

LONG = 180.0
SMALL = {
    "head": {"num_cpus": 1, "node_ip_address": "127.0.0.2"},
    "node-3": {"num_cpus": 2, "node_ip_address": "127.0.0.3"},
    "node-4": {"num_cpus": 2, "node_ip_address": "127.0.0.4", "resources": {"big": 1}},
}
"""Clusters to be broken: a server with two CPUs is not on the head node."""
QUICK_TO_GIVE_UP = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
"""Seconds in which Ray's processes look for a head node that is gone; 60 by default."""
UNTIL_IT_BREAKS = """
import time
from helpers import get, note
def until_it_breaks(server):
    note("on", server.node.split()[0])
    end = time.monotonic() + 60
    while time.monotonic() < end:
        get(server, "/health")
        time.sleep(0.05)
"""


class Background:
    """A run of pytest that is not waited for."""

    def __init__(self, project: Project, *arguments: str, folder: Path | None = None) -> None:
        self.begin = time.monotonic()
        self._file = (project.path / f"output-{time.monotonic_ns()}.txt").open("w+b")
        argv = [sys.executable, "-m", "pytest", "-p", "pytest_infserver.plugin", "-p", "no:cacheprovider"]
        argv += ["--infserver-config", "servers.yaml", *arguments]
        self.process = subprocess.Popen(
            argv,
            cwd=folder or project.path,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def output(self) -> str:
        """Return what it has shown so far."""
        return Path(self._file.name).read_text(errors="replace")

    def result(self, limit: float = LONG) -> pytest.RunResult:
        """Wait for its end."""
        code = self.process.wait(limit)
        return pytest.RunResult(code, self.output().splitlines(), [], time.monotonic() - self.begin)

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._file.close()


@pytest.fixture
def begin(project: Project, nothing_left: None) -> Iterator[Callable[..., Background]]:
    """Begin a run of the project: ``begin("-n2", ...)``."""
    made: list[Background] = []

    def begin(*arguments: str, **settings: Any) -> Background:
        made.append(Background(project, *arguments, **settings))
        return made[-1]

    yield begin
    for run in made:
        run.close()


@pytest.fixture
def cluster(on_cluster: RayNodes) -> Iterator[RayNodes]:
    """A cluster of which everything is free again at the end."""
    yield on_cluster
    await_nothing_left(on_cluster)
    await_all_free(on_cluster)


@pytest.fixture
def broken(
    fragile_nodes: Callable[..., RayNodes], monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> Callable[..., RayNodes]:
    """Make a cluster that the test breaks, and have the runs use it."""

    def make(nodes: dict[str, dict[str, Any]] | None = None, **variables: str) -> RayNodes:
        made = fragile_nodes(nodes or SMALL, **variables)
        monkeypatch.setenv("INFSERVER_CLUSTER", made.address)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return made

    return make


def await_all_free(nodes: RayNodes, limit: float = LONG) -> None:
    """Wait until nobody has anything of the nodes: no place is reserved for a server that is gone."""
    connection = ClusterConnection(nodes.address)
    try:
        deadline = time.monotonic() + limit
        while True:
            taken = {
                f"{node.name} {what}": amount - node.free.get(what, 0.0)
                for node in connection.nodes()
                for what, amount in node.total.items()
                if node.alive and what in ("CPU", "GPU", "big") and amount != node.free.get(what)
            }
            if not taken or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        connection.close()
    assert not taken


@contextlib.contextmanager
def somebody_has(nodes: RayNodes, **amounts: float) -> Iterator[Callable[[], None]]:
    """Have somebody else hold a part of a node; yield what gives it back."""
    connection = ClusterConnection(nodes.address)
    try:
        connection.ask("reserve", 20, ticket="somebody", bundles=[amounts], strategy="STRICT_PACK")
        assert connection.ask("reserved", 30, ticket="somebody", timeout=20)
        yield lambda: connection.ask("give_back", 20, ticket="somebody")
    finally:
        connection.close()


def wait_until(condition: Callable[[], object], limit: float = LONG) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def node_processes(nodes: RayNodes, sign: str) -> list[psutil.Process]:
    """Return the processes on all nodes whose command line has a word in it."""
    found = []
    for process in nodes.processes():
        with contextlib.suppress(psutil.Error):
            if sign in " ".join(process.cmdline()):
                found.append(process)
    return found


def engines(nodes: RayNodes) -> list[psutil.Process]:
    return [one for one in node_processes(nodes, "fake_engine.py") if one.ppid() and "supervisor" not in one.name()]


def address_of(engine: psutil.Process) -> str:
    words = engine.cmdline()
    return words[words.index("--host") + 1]


def where(project: Project) -> list[str]:
    """Return the nodes of the servers that the tests have noted."""
    return [line.split()[1] for line in project.events("on")]


# pytest itself ends.

MOMENTS = {"start": ["--delay=100"], "test": [], "stop": ["--stop-delay=100"]}


def reach(moment: str, project: Project, nodes: RayNodes) -> None:
    """Wait until a run is where it is to be hit."""
    if moment == "start":
        wait_until(lambda: engines(nodes))
    else:
        wait_until(lambda: project.events({"test": "sleeping", "stop": "stopping"}[moment]))
    time.sleep(0.3)


def hold(project: Project, servers_yaml: Callable[..., Path], moment: str) -> None:
    """Write a project that stays at a moment for long."""
    servers_yaml({"stop_timeout": 2, "startup_timeout": 110, "debug_mode": True}, a=["--children=1", *MOMENTS[moment]])
    project.files(
        test_1=f"""
        import time
        from helpers import note
        def test_1(inference_server):
            note("sleeping")
            time.sleep({100 if moment == "test" else 0})
        """
    )


ENDS = ("SIGINT", "SIGTERM", "SIGKILL")


@pytest.mark.parametrize(
    ("how", "moment"),
    [
        # Each signal and each moment every day, all of them together nightly.
        pytest.param(how, moment, marks=[] if ENDS.index(how) == list(MOMENTS).index(moment) else pytest.mark.nightly)
        for how in ENDS
        for moment in MOMENTS
    ],
)
def test_the_end_of_pytest_leaves_nothing_on_any_node(project, servers_yaml, cluster, begin, how, moment) -> None:
    hold(project, servers_yaml, moment)
    run = begin()
    reach(moment, project, cluster)
    os.killpg(run.process.pid, signal.Signals[how])
    result = run.result()
    await_nothing_left(cluster)
    if how == "SIGINT":
        assert result.ret == pytest.ExitCode.INTERRUPTED
        assert "KeyboardInterrupt" in run.output()
        assert "INTERNALERROR" not in run.output()
    else:
        assert result.ret == -signal.Signals[how]


@pytest.mark.parametrize(
    "moment", ["test", *(pytest.param(moment, marks=pytest.mark.nightly) for moment in MOMENTS if moment != "test")]
)
def test_the_end_of_the_controller_of_xdist_leaves_nothing(project, servers_yaml, cluster, begin, moment) -> None:
    pytest.importorskip("xdist")
    hold(project, servers_yaml, moment)
    run = begin("-n2", "-p", "xdist.plugin")
    reach(moment, project, cluster)
    run.process.kill()
    run.result()
    await_nothing_left(cluster)


def test_the_end_of_a_worker_ends_its_own_servers_and_gives_back_the_shared_ones(
    project, servers_yaml, cluster, run_pytest
) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[])
    project.files(
        test_1="""
        import os
        from helpers import get, note
        def test_1(inference_server, inference_server_factory):
            note("own", inference_server_factory("a").node)
            os.kill(os.getpid(), 9)
        def test_2(inference_server): get(inference_server, "/health")
        """
    )
    result = project.run("-n1", "--max-worker-restart=1", plugins=("xdist.plugin",))
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running*test_1*"])
    assert len(project.events("own")) == 1
    assert project.events("started", "stopped") == ["started a", "stopped a gone"]


def test_a_process_that_pytest_has_forked_does_not_keep_servers_alive(project, servers_yaml, cluster, begin) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import os, time
        from helpers import note
        def test_1(inference_server):
            if os.fork() == 0:
                end = time.monotonic() + 40
                while not os.path.exists("over") and time.monotonic() < end: time.sleep(0.05)
                os._exit(0)
            note("sleeping")
            time.sleep(100)
        """
    )
    run = begin()
    reach("test", project, cluster)
    run.process.kill()
    run.result()
    await_nothing_left(cluster)
    (project.path / "over").touch()


# What holds a server breaks.


def test_the_end_of_the_connection_is_told_and_made_good(project, servers_yaml, cluster, begin, quiet) -> None:
    servers_yaml(a=[])
    project.files(
        test_1=UNTIL_IT_BREAKS
        + "def test_1(inference_server): until_it_breaks(inference_server)\n"
        + "def test_2(inference_server): get(inference_server, '/health')\n"
    )
    run = begin()
    wait_until(lambda: project.events("on"))
    below = psutil.Process(run.process.pid).children(recursive=True)
    agent = next(one for one in below if "pytest_infserver.cluster.agent" in one.cmdline())
    agent.kill()
    result = run.result()
    result.assert_outcomes(failed=1, passed=1)
    text = quiet(result)
    assert f"the process that holds the connection ({agent.pid}) was killed by SIGKILL, while it was in use" in text
    assert project.events("started", "stopped") == ["started a", "started a", "stopped a gone"]


BREAKAGES = {
    "actor": (
        "ray::NodeServer",
        r"a \(command\) was lost: the process that held it on {node} \(127.0.0.\d\) has ended: its worker process",
    ),
    "supervisor": ("infserver.launcher.supervision.supervisor", r"a \(command\) .*supervisor.*"),
    "engine": ("fake_engine.py", r"a \(command\) was killed by SIGKILL, while it was in use"),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_the_test_in_whose_midst_it_breaks_fails_with_the_reason_and_the_next_one_has_it_again(
    project, servers_yaml, cluster, begin, quiet, what
) -> None:
    sign, reason = BREAKAGES[what]
    # One that holds its port for long after its actor's end.
    servers_yaml({"stop_timeout": 4}, a=["--stop-delay=2"])
    project.files(
        test_1=UNTIL_IT_BREAKS
        + "def test_1(inference_server): until_it_breaks(inference_server)\n"
        + "def test_2(inference_server): get(inference_server, '/health'); note('on', inference_server.node)\n"
    )
    background = begin()
    wait_until(lambda: project.events("on"))
    for process in node_processes(cluster, sign):
        if what != "engine" or process in engines(cluster):
            process.kill()
    result = background.result()
    result.assert_outcomes(failed=1, passed=1)
    text = quiet(result)
    assert re.search(reason.format(node=where(project)[0]), text), text
    assert project.events("started", "stopped") == ["started a", "started a", "stopped a gone"]


def test_an_actor_that_is_killed_during_the_start_fails_it_with_the_reason(
    project, servers_yaml, cluster, begin, quiet
) -> None:
    servers_yaml({"startup_timeout": 100}, a=["--delay=90"])
    project.files(test_1="def test_1(inference_server): pass\ndef test_2(inference_server): pass\n")
    run = begin()
    reach("start", project, cluster)
    for process in node_processes(cluster, "ray::NodeServer"):
        process.kill()
    result = run.result()
    result.assert_outcomes(errors=2)
    text = quiet(result)
    assert re.search(r"a \(command\) was lost: the process that held it on [\w-]+ \(127.*\), while it started", text)
    # Once in full, once in short.
    assert text.count("has ended: its worker process has died") >= 2


SLOW_CLOCK = """
import time
from pytest_infserver.cluster.runtime.actor import Actor
measured_clock = Actor.measured_clock
made = []

def wait(self):
    made.append(self)
    note("made")
    deadline = time.monotonic() + 20
    while len(made) <= {} and time.monotonic() < deadline:
        self.ask("hello", 1.0)
        time.sleep(0.05)
    return measured_clock(self)

Actor.measured_clock = wait
"""


@pytest.mark.parametrize("times", [1, 3])
def test_a_server_whose_actor_ends_before_it_is_launched_gets_another_one(
    project, servers_yaml, cluster, begin, quiet, times
) -> None:
    servers_yaml(a=[])
    project.conftest(SLOW_CLOCK.format(times))
    project.files(test_1="def test_1(inference_server): pass\n")
    run = begin()
    for number in range(times):
        wait_until(lambda number=number: len(project.events("made")) > number)
        for process in node_processes(cluster, "ray::NodeServer"):
            process.kill()
    result = run.result()
    text = quiet(result)
    lost = r"a \(command\) cannot start on [\w-]+ \(127.*\): its worker process has died"
    if times == 1:
        result.assert_outcomes(passed=1)
        assert re.search(rf"{lost}.*; it is started again", text)
    else:
        result.assert_outcomes(errors=1)
        assert len(re.findall(lost, text)) >= 3


GUARDED = """
import os, sys, time
from pathlib import Path
from pytest_infserver.cluster.node.folder_guard import guard
from pytest_infserver.system.disk.locks import take_lock
folder = Path(sys.argv[1])
take_lock(folder / ".lock")
guard = guard(folder)
print(guard.pid, flush=True)
time.sleep(100)
"""


def guarded(folder: Path) -> tuple[Path, subprocess.Popen[str], psutil.Process]:
    """Start what stands for an actor; return its server's log folder, it, and the guard of its folder."""
    log = folder / "logs" / "a"
    log.mkdir(parents=True)
    actor = subprocess.Popen([sys.executable, "-c", GUARDED, folder], stdout=subprocess.PIPE, text=True)
    assert actor.stdout is not None
    with actor.stdout as output:
        return log, actor, psutil.Process(int(output.readline()))


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("used", [False, True], ids=["free", "used"])
def test_the_folder_of_an_actor_that_was_killed_without_a_supervisor_is_removed(tmp_path: Path, used: bool) -> None:
    log, actor, guard = guarded(tmp_path / "folder")
    lock = take_lock(log / ".lock") if used else None
    time.sleep(0.5)
    assert log.exists()
    actor.kill()
    actor.wait()
    if lock is not None:
        # A supervisor that is still there needs it; it may end before it hears of the actor's end.
        time.sleep(3)
        assert log.exists()
        os.close(lock)
    wait_until(lambda: not guard.is_running() or guard.status() == psutil.STATUS_ZOMBIE)
    assert not (tmp_path / "folder").exists()


@pytest.mark.usefixtures("nothing_left")
def test_the_folder_is_removed_also_when_somebody_uses_it_for_a_moment_longer(tmp_path: Path) -> None:
    log, actor, _ = guarded(tmp_path / "folder")
    # As a supervisor that has not yet been told to launch anything.
    lock = take_lock(log / ".lock")
    assert lock is not None
    actor.kill()
    actor.wait()
    time.sleep(0.5)
    os.close(lock)
    wait_until(lambda: not (tmp_path / "folder").exists())


@pytest.mark.usefixtures("nothing_left")
def test_the_folder_is_removed_also_when_somebody_still_writes_there(tmp_path: Path) -> None:
    log, actor, _ = guarded(tmp_path / "folder")
    actor.kill()
    end = time.monotonic() + 1.0
    with contextlib.suppress(FileNotFoundError):
        for number in itertools.count():
            (log / str(number)).touch()
            if time.monotonic() > end:
                break
    actor.wait()
    wait_until(lambda: not (tmp_path / "folder").exists())


# A node goes.


def test_a_node_that_is_lost_during_a_test_fails_it_and_the_next_one_has_its_server_elsewhere(
    project, servers_yaml, broken, begin, quiet
) -> None:
    nodes = broken()
    servers_yaml({"cpus": 2}, a=[])
    project.files(
        test_1=UNTIL_IT_BREAKS
        + "def test_1(inference_server): until_it_breaks(inference_server)\n"
        + "def test_2(inference_server): get(inference_server, '/health'); note('on', inference_server.node)\n"
    )
    run = begin()
    wait_until(lambda: project.events("on"))
    lost = where(project)[0]
    nodes.remove(lost)
    result = run.result()
    result.assert_outcomes(failed=1, passed=1)
    assert f"a (command) was lost with its node {lost} (127.0.0.{lost[-1]}), while it was in use" in quiet(result)
    assert where(project) == [lost, {"node-3": "node-4", "node-4": "node-3"}[lost]]
    await_nothing_left(nodes)
    await_all_free(nodes)


@pytest.mark.nightly
def test_a_node_that_stands_still_is_called_lost_and_the_next_test_has_its_server_elsewhere(
    project, servers_yaml, broken, begin, quiet
) -> None:
    # Ray itself notices it within 10 s, not in a minute.
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
    nodes = broken(**quick, RAY_health_check_initial_delay_ms="1000")
    servers_yaml({"cpus": 2}, a=[])
    project.files(
        conftest="import pytest_infserver.cluster.runtime.life as life\nlife._CONTACT_LIMIT = 25.0\n",
        test_1=UNTIL_IT_BREAKS
        + "def test_1(inference_server): until_it_breaks(inference_server)\n"
        + "def test_2(inference_server): get(inference_server, '/health'); note('on', inference_server.node)\n",
    )
    run = begin()
    wait_until(lambda: project.events("on"))
    lost = where(project)[0]
    address = f"127.0.0.{lost[-1]}"
    frozen = [one for one in node_processes(nodes, "raylet") if f"--node_ip_address={address}" in one.cmdline()]
    frozen += [child for one in frozen for child in one.children(recursive=True)]
    frozen += [one for one in node_processes(nodes, f"--host {address}") if one not in frozen]
    for process in frozen:
        process.suspend()
    try:
        result = run.result(LONG * 3)
    finally:
        for process in frozen:
            with contextlib.suppress(psutil.Error):
                process.resume()
    result.assert_outcomes(failed=1, passed=1)
    assert f"a (command) was lost with its node {lost} ({address}), while it was in use" in quiet(result)
    assert where(project) == [lost, {"node-3": "node-4", "node-4": "node-3"}[lost]]
    await_nothing_left(nodes)


@pytest.mark.nightly
def test_a_server_whose_node_is_lost_during_its_start_starts_elsewhere(
    project, servers_yaml, broken, begin, quiet
) -> None:
    nodes = broken()
    servers_yaml({"cpus": 2}, a=["--delay=3"])
    project.files(test_1="def test_1(inference_server): pass\n")
    run = begin()
    reach("start", project, nodes)
    number = address_of(engines(nodes)[0])[-1]
    nodes.remove(f"node-{number}")
    result = run.result()
    result.assert_outcomes(passed=1)
    text = quiet(result)
    lost = f"a (command) was lost with its node node-{number} (127.0.0.{number}), while it started"
    assert f"{lost}; it is started again elsewhere" in text
    (server,) = json.loads((project.path / "server_logs" / "run.json").read_text())["servers"]
    # Between them its port may have been taken by somebody else on this machine.
    first, *_, second = ((life["node"], life["end"], life["how"]) for life in server["lives"])
    assert first == (f"node-{number} (127.0.0.{number})", "failed", "its node was lost")
    assert second[0] != first[0]
    assert second[1] == "stopped"
    await_nothing_left(nodes)
    await_all_free(nodes)


@pytest.mark.nightly
def test_tests_fail_with_the_arithmetic_when_no_other_node_can_hold_a_server(
    project, servers_yaml, broken, begin, quiet
) -> None:
    nodes = broken()
    servers_yaml({"resources": {"big": 1}, "startup_timeout": 600}, a=[])
    project.files(
        test_1=UNTIL_IT_BREAKS
        + "def test_1(inference_server): until_it_breaks(inference_server)\n"
        + "def test_2(inference_server): pass\n"
        + "def test_3(inference_server): pass\n"
    )
    run = begin()
    wait_until(lambda: project.events("on"))
    nodes.remove("node-4")
    result = run.result(LONG * 2)
    result.assert_outcomes(failed=1, errors=2)
    text = quiet(result)
    assert "a (command) was lost with its node node-4 (127.0.0.4), while it was in use" in text
    small = "the cluster has head: 1 CPU; node-3: 2 CPUs now"
    assert f"a (command) cannot start: it needs 1 CPU and 1 big, and {small}" in text
    await_nothing_left(nodes)
    await_all_free(nodes)


# The head goes.


def test_pytest_survives_its_cluster_and_says_that_the_head_does_not_answer(
    project, servers_yaml, broken, begin, quiet
) -> None:
    nodes = broken(**QUICK_TO_GIVE_UP)
    servers_yaml(a=[], b=[])
    project.files(
        test_1=UNTIL_IT_BREAKS
        + "def test_1(inference_server): until_it_breaks(inference_server)\n"
        + "def test_2(inference_server): pass\n"
        + "def test_3(): pass\n"
    )
    run = begin("-p", "no:randomly")
    wait_until(lambda: project.events("on"))
    nodes.head_server().kill()
    result = run.result(LONG * 2)
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] >= 1
    assert outcomes["failed"] >= 1
    assert outcomes["errors"] >= 1
    text = quiet(result)
    assert "head node does not answer" in text
    await_nothing_left(nodes)


@pytest.mark.nightly
def test_what_holds_the_connection_is_at_rest_without_a_head(fragile_nodes: Callable[..., RayNodes]) -> None:
    nodes = fragile_nodes(SMALL)
    connection = ClusterConnection(nodes.address)
    try:
        agent = psutil.Process(connection._agent.pid)
        nodes.head_server().kill()
        time.sleep(1)
        before = sum(agent.cpu_times()[:2])
        time.sleep(4)
        # A thread of Ray's would take all of a core.
        assert sum(agent.cpu_times()[:2]) - before < 1.5
    finally:
        connection.close()


@pytest.mark.parametrize("when", [pytest.param("between runs", marks=pytest.mark.nightly), "during a run"])
def test_a_head_that_was_restarted_is_another_cluster_at_the_same_address(
    project, servers_yaml, broken, begin, quiet, when
) -> None:
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    one_node = {"head": {"num_cpus": 2, "node_ip_address": "127.0.0.2", "gcs_server_port": port}}
    first = broken(one_node)
    assert first.address == f"127.0.0.2:{port}"
    servers_yaml(a=[])
    if when == "between runs":
        project.files(test_1="def test_1(inference_server): assert inference_server.check_health()\n")
        project.run().assert_outcomes(passed=1)
        first.close()
        second = broken(one_node)
        project.run().assert_outcomes(passed=1)
    else:
        project.files(
            test_1=UNTIL_IT_BREAKS
            + "def test_1(inference_server):\n"
            + "    try: until_it_breaks(inference_server)\n"
            + "    finally:\n"
            + "        while 'again' not in open('events.txt').read(): time.sleep(0.05)\n"
            + "def test_2(inference_server): get(inference_server, '/health')\n"
        )
        run = begin("--no-infserver-prelaunch", "-p", "no:randomly")
        wait_until(lambda: project.events("on"))
        first.close()
        second = broken(one_node)
        with (project.path / "events.txt").open("a") as file:
            file.write("again\n")
        result = run.result()
        text = quiet(result)
        result.assert_outcomes(failed=1, passed=1)
        assert "a (command) was lost" in text
    await_nothing_left(second)
    await_all_free(second)


# There is not enough.


@pytest.mark.parametrize("workers", [pytest.param(*ALONE.values, id="alone", marks=pytest.mark.nightly), ON_TWO])
def test_a_demand_that_no_node_has_is_refused_before_anything_starts(
    project, servers_yaml, cluster, quiet, workers
) -> None:
    if workers:
        pytest.importorskip("xdist")
    servers_yaml({"cpus": 5}, a=[])
    project.files(test_1="def test_1(inference_server): pass\n")
    result = project.run(*workers, plugins=("xdist.plugin",) if workers else ())
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = quiet(result)
    has = "the cluster has head: 4 CPUs; node-3: 2 GPUs and 4 CPUs; node-4: 2 GPUs, 4 CPUs and 1 big"
    assert f"test_1.py::test_1[a]: a needs 5 CPUs, and {has}" in text
    assert not project.events()


def test_a_busy_cluster_is_waited_for_with_a_line_that_says_so(project, servers_yaml, cluster, begin, quiet) -> None:
    servers_yaml({"resources": {"big": 1}, "cpus": 2}, a=[])
    project.files(test_1="def test_1(inference_server): pass\n")
    with somebody_has(cluster, big=1) as give_back:
        run = begin()
        line = r"a \(command\): waiting for the cluster \(needs 2 CPUs and 1 big\), \d+ s"
        wait_until(lambda: re.search(line, run.output()))
        assert not engines(cluster)
        give_back()
        result = run.result()
    result.assert_outcomes(passed=1)
    assert re.search(r"a \(command\): ready after \d+ s", quiet(result))


@pytest.mark.parametrize("workers", [ALONE, pytest.param(("-n1",), id="n1", marks=pytest.mark.nightly)])
def test_an_idle_server_gives_way_to_one_of_the_factory(project, servers_yaml, broken, begin, quiet, workers) -> None:
    nodes = broken({"head": {"num_cpus": 2, "node_ip_address": "127.0.0.2"}})
    servers_yaml({"startup_timeout": 60}, a=[], b=[])
    project.files(
        test_1="""
        import time
        from helpers import get, note
        def test_1(inference_server, inference_server_factory):
            if inference_server.name == "a":
                # b is there for its own test by now.
                time.sleep(3)
                assert get(inference_server_factory("a", name="more"), "/argv")["pid"]
                note("more")
            assert get(inference_server, "/argv")["pid"]
            note("on", inference_server.name)
        """
    )
    result = begin(*workers, *(("-p", "xdist") if workers else ())).result()
    result.assert_outcomes(passed=2)
    assert "b was stopped 1 time to make room for more" in quiet(result)
    assert project.events("more", "on") == ["more", "on a", "on b"]
    await_nothing_left(nodes)
    await_all_free(nodes)


def test_a_cluster_that_stays_busy_fails_the_tests_and_says_what_is_free(project, servers_yaml, cluster, quiet) -> None:
    servers_yaml({"cpus": 3, "resources": {"big": 1}, "startup_timeout": 3}, a=[])
    project.files(test_1="def test_1(inference_server): pass\ndef test_2(inference_server): pass\n")
    with somebody_has(cluster, CPU=2, big=1):
        result = project.run()
        await_nothing_left(cluster)
    result.assert_outcomes(errors=2)
    text = quiet(result)
    assert "a (command) cannot start: the cluster had no room for it within startup_timeout 3 s" in text
    free = "head: 4 CPUs; node-3: 2 GPUs and 4 CPUs; node-4: 2 GPUs and 2 CPUs"
    assert f"it needs 3 CPUs and 1 big; free now: {free}" in text
    assert "or raise startup_timeout" in text


def test_an_interrupt_ends_the_wait_for_the_cluster(project, servers_yaml, cluster, begin) -> None:
    servers_yaml({"resources": {"big": 1}, "startup_timeout": 600}, a=[])
    project.files(test_1="def test_1(inference_server): pass\n")
    with somebody_has(cluster, big=1):
        run = begin()
        wait_until(lambda: "waiting for the cluster" in run.output())
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.result().ret == pytest.ExitCode.INTERRUPTED
        assert "INTERNALERROR" not in run.output()


def test_two_runs_at_the_same_time_share_the_cluster(project, servers_yaml, cluster, begin) -> None:
    # Three of these find room at the same time.
    servers_yaml({"cpus": 3}, a=[], b=[])
    project.files(
        test_1="""
        import time
        from helpers import get
        def test_1(inference_server):
            for _ in range(20):
                get(inference_server, "/health")
                time.sleep(0.05)
        """
    )
    runs = [begin("--infserver-output-dir", f"logs-{number}") for number in range(2)]
    for run in runs:
        run.result().assert_outcomes(passed=2)


# This machine breaks.


def test_an_output_folder_that_cannot_be_written_fails_the_test_with_the_reason(
    project, servers_yaml, cluster, quiet
) -> None:
    (project.path / "file").write_text("")
    servers_yaml({"output_dir": "./file/logs"}, a=[])
    project.files(test_1="def test_1(inference_server): pass\n")
    result = project.run()
    result.assert_outcomes(errors=1)
    assert "a (command) cannot start: its log cannot be written: [Errno 20] Not a directory" in quiet(result)


def test_what_a_test_has_its_server_say_first_is_in_its_log_section(project, servers_yaml, cluster, quiet) -> None:
    """The node is told where a test's part of the log begins; the test's first request takes the shorter way."""
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        from helpers import get
        @pytest.mark.parametrize("number", range(60))
        def test_1(inference_server, number):
            get(inference_server, f"/say?text=number-{number}-is-here")
            assert 0
        """
    )
    result = project.run("--no-infserver-prelaunch")
    result.assert_outcomes(failed=60)
    parts = re.split(r"^_+ test_1\[a-(\d+)\] _+$", quiet(result), flags=re.MULTILINE)
    said = [re.findall(r"^number-(\d+)-is-here$", text, re.MULTILINE) for text in parts[2::2]]
    assert said == [[number] for number in parts[1::2]]


def test_what_the_test_before_has_said_is_not_shown_with_a_death(project, servers_yaml, cluster, quiet) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        from helpers import get, kill
        @pytest.mark.parametrize("number", range(3))
        class Test:
            def test_before(self, inference_server, number):
                get(inference_server, "/say?text=before")
            def test_death(self, inference_server, number):
                kill(inference_server, f"/exit?code=3&say=last-{number}")
        """
    )
    result = project.run("--no-infserver-prelaunch")
    result.assert_outcomes(passed=3, failed=3)
    text = quiet(result)
    assert sorted(re.findall(r"^(before|last-\d)$", text, re.MULTILINE)) == ["last-0", "last-1", "last-2"]


def test_a_full_disk_costs_the_rest_of_the_log_only(project, servers_yaml, cluster, quiet) -> None:
    servers_yaml(a=["--flood-log"])
    project.conftest("\nimport resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n")
    project.files(
        test_1="""
        import time
        from helpers import get
        def test_1(inference_server):
            end = time.monotonic() + 20
            while inference_server.log_path.stat().st_size < 1 << 20 and time.monotonic() < end: time.sleep(0.05)
            get(inference_server, "/health")
        def test_2(inference_server): get(inference_server, "/health")
        """
    )
    result = project.run()
    result.assert_outcomes(passed=2)
    text = quiet(result)
    assert text.count("a (command): its log is not complete: ") == 1
    assert "server.log cannot be written: File too large" in text
    assert (project.path / "server_logs" / "a" / "server.log").stat().st_size == 1 << 20


def test_a_flood_of_log_neither_hangs_a_run_nor_eats_its_memory(project, servers_yaml, cluster, quiet) -> None:
    servers_yaml(a=["--flood-log"])
    project.files(
        test_1="""
        import resource, time
        from helpers import get
        def test_1(inference_server):
            begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            end = time.monotonic() + 60
            while inference_server.log_size < 100_000_000 and time.monotonic() < end:
                get(inference_server, "/health")
                time.sleep(0.1)
            assert inference_server.log_size >= 100_000_000
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin
            assert grown < 80_000, grown
        def test_2(inference_server): assert 0, "on purpose"
        """
    )
    result = project.run()
    (project.path / "server_logs" / "a" / "server.log").unlink()
    result.assert_outcomes(passed=1, failed=1)
    assert "on purpose" in quiet(result)


# There is no cluster.


@pytest.fixture
def at(project: Project, servers_yaml: Callable[..., Path], nothing_left: None) -> Callable[..., pytest.RunResult]:
    """Run a project with an address at which there is no cluster."""
    servers_yaml(a=[], b=[])
    project.files(
        test_1="def test_1(inference_server): pass\ndef test_2(request): request.getfixturevalue('inference_server')\n"
    )

    def run(address: str, *arguments: str, **settings: Any) -> pytest.RunResult:
        return project.run("--infserver-cluster", address, *arguments, **settings)

    return run


@contextlib.contextmanager
def listener(words: bytes) -> Iterator[str]:
    """Have somebody listen who is no Ray; yield the address."""
    server = socket.create_server(("127.0.0.5", 0))
    kept = []

    def talk() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                kept.append(connection)
                if words:
                    connection.sendall(words)
                    connection.close()

    threading.Thread(target=talk, daemon=True).start()
    host, port = server.getsockname()
    yield f"{host}:{port}"
    server.close()
    for connection in kept:
        connection.close()


NO_ADDRESS = "write auto, local, or HOST:PORT of the cluster's head node"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.5:1", "nothing listens there; it is to be the address of the cluster's head node"),
        ("no-such-host.invalid:6379", "nobody knows a host no-such-host.invalid"),
        ("somewhere", NO_ADDRESS),
        pytest.param("127.0.0.5:99999", NO_ADDRESS, marks=pytest.mark.nightly),
        pytest.param("http://127.0.0.5:8265", NO_ADDRESS, marks=pytest.mark.nightly),
        ("ray://127.0.0.5:10001", "Ray Client is not enough"),
    ],
)
def test_an_address_at_which_there_is_nothing_is_refused_at_once(at, quiet, address, why) -> None:
    result = at(address)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--infserver-cluster {address}: {why}" in quiet(result)


@pytest.mark.parametrize("words", [b"", b"SSH-2.0-OpenSSH_9.6\r\n" * 10], ids=["mute", "garbage"])
def test_who_listens_and_is_no_ray_is_refused(at, quiet, words) -> None:
    with listener(words) as address:
        result = at(address)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--infserver-cluster {address}: what listens there does not answer as the head node" in quiet(result)


def test_no_cluster_under_xdist_is_one_text_too(at, quiet) -> None:
    pytest.importorskip("xdist")
    result = at("127.0.0.5:1", "-n2", plugins=("xdist.plugin",))
    assert result.ret != pytest.ExitCode.OK
    assert quiet(result).count("--infserver-cluster 127.0.0.5:1: nothing listens there") == 1


def test_a_test_that_nobody_knew_to_want_a_server_says_so_too(at, quiet) -> None:
    result = at("127.0.0.5:1", "-k", "test_2", "--infserver-server", "a")
    result.assert_outcomes(failed=1, deselected=1)
    assert "--infserver-cluster 127.0.0.5:1: nothing listens there" in quiet(result)


def test_auto_is_what_the_environment_says(at, quiet, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.5:1")
    result = at("auto")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--infserver-cluster 127.0.0.5:1: nothing listens there" in quiet(result)


def test_ray_that_is_not_installed_is_named_with_the_command_that_installs_it(at, project, quiet) -> None:
    project.files(noray="import sys\nsys.modules['ray'] = None\n")
    result = at("auto", plugins=("noray",))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--infserver-cluster needs Ray: pip install 'pytest-infserver[ray]'" in quiet(result)


def test_a_cluster_of_another_version_is_named_with_both(at, project, ray_nodes, quiet) -> None:
    # Read by the process that connects, and by no other.
    project.files(sitecustomize="import ray\nray.__version__ = '1.2.3'\n")
    result = at(ray_nodes.address)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    here = ".".join(map(str, sys.version_info[:3]))
    assert re.search(
        r"the cluster has another version than this environment: Ray \d+\.\d+\.\d+ for Python"
        rf" {re.escape(here)} there, Ray 1\.2\.3 for Python {re.escape(here)} here; both must be the same",
        quiet(result),
    )


class SilentCluster:
    """A cluster that has answered once, and from then on takes long."""

    def __init__(self) -> None:
        self.address = "127.0.0.5:1"
        self.over = threading.Event()
        self.asked = 0

    @property
    def connection(self) -> SilentCluster:
        return self

    def nodes(self, limit: float) -> list[Node]:
        self.asked += 1
        if self.asked > 1 and not self.over.wait(limit):
            raise NoAnswer("no answer")
        return [Node("1", "one", "127.0.0.5", True, {"CPU": 4.0}, {"CPU": 4.0})]

    def demand(self, server: InferenceServer) -> Demand:
        return Demand(0, 3.0)


def test_a_head_that_does_not_answer_is_waited_for_once_by_who_holds_the_lock_of_the_pool() -> None:
    silent = SilentCluster()
    names = [f"s{number}" for number in range(20)]
    configs = {name: ServerConfig(name=name, backend="command", launch_command=("x", "{port}")) for name in names}
    room = ClusterRoom(silent, configs, None)  # type: ignore[arg-type]
    assert room.shortage(["s0"]) is None
    begin = time.monotonic()
    # What is only to be started ahead of time is not, while nobody knows whether there is room.
    assert not any(room.claim(name, ahead=True) for name in names)
    # What somebody asks for is: its start says what is wrong.
    assert room.claim("s0")
    # Of the rest it is known that they do not fit beside it.
    assert not room.claim("s1")
    assert not room.fits("s1", ())
    # A second for all of them together, not for each.
    assert time.monotonic() - begin < 15
    assert silent.asked == 2
    silent.over.set()
    room.release("s0")
    wait_until(lambda: room.claim("s1", ahead=True))


def test_the_pool_does_not_wait_for_a_connection_that_is_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """It wants the placements under their lock."""
    asked, over = threading.Event(), threading.Event()

    def connect(address: str) -> Any:
        asked.set()
        assert over.wait(LONG)
        raise ConfigError("nobody is there")

    monkeypatch.setattr("pytest_infserver.cluster.connection.connection.ClusterConnection", connect)
    cluster = Cluster("127.0.0.1:6379")

    def use() -> None:
        with contextlib.suppress(ConfigError):
            assert cluster.connection

    user = threading.Thread(target=use)
    user.start()
    assert asked.wait(LONG)
    found: list[Placements] = []
    threading.Thread(target=lambda: found.append(cluster.placements), daemon=True).start()
    try:
        wait_until(lambda: found)
    finally:
        over.set()
        user.join()


def test_a_process_that_a_test_has_forked_does_not_end_the_connection(ray_nodes: RayNodes) -> None:
    connection = ClusterConnection(ray_nodes.address)
    try:
        with connection._lock:
            # As if another thread asked just now: nobody gives that lock back there.
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                with contextlib.suppress(ClusterLost):
                    connection.ask("nodes", 1)
                    os._exit(1)
                connection.tell("mark")
                connection.close()
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert connection.nodes()
    finally:
        connection.close()


@pytest.mark.nightly
def test_a_question_that_nobody_takes_off_the_line_is_not_waited_for_without_end(ray_nodes: RayNodes) -> None:
    connection = ClusterConnection(ray_nodes.address)
    try:
        os.kill(connection._agent.pid, signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(NoAnswer, match=r"the cluster has not answered within 0\.2 s"):
            connection.ask("nodes", 0.2)
        with pytest.raises(ClusterLost, match="cannot be reached any more"):
            connection.ask("nodes", 0.2, much="x" * 10_000_000)
        assert connection.is_lost
        with pytest.raises(ClusterLost):
            connection.ask("nodes", 30)
        connection.tell("mark")
        assert time.monotonic() - begin < 30
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on ..."), DEAD),
        (exceptions.ObjectFetchTimedOutError("ff" * 14, "", ""), AWAY),
        (exceptions.GetTimeoutError("late"), LATE),
        (ValueError("no"), FAILED),
    ],
)
def test_what_ray_raises_is_told_by_what_it_means(error: Exception, kind: str) -> None:
    class Asked(Agent):
        def nodes(self) -> Any:
            raise error

    assert answer(Asked(), "nodes", {})[0] == kind


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The actor died because of an error raised in its creation task, x\nValueError: no\n", "ValueError: no"),
        ("The actor died unexpectedly before this.", "The actor died unexpectedly before this"),
        ("The actor is dead because its node has died. Node Id: abc", "its node has died. Node Id: abc"),
        ("The actor is dead because it was killed by `ray.kill`.", "was killed by `ray.kill`"),
        ("x" * 1000, "x" * 300 + " ..."),
    ],
)
def test_the_reason_of_ray_is_told_without_its_guesses(text: str, reason: str) -> None:
    assert reason_of(text) == reason
