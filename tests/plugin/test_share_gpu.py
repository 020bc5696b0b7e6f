"""`--infserver-share-gpu`: an idle server sleeps while another one has its GPU, whatever goes wrong with that."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml
from isolation import HARD_LIMIT

SLEEPER = """
from pytest_infserver import CommandServer
from pytest_infserver.backends import SleepRequests

class Sleeper(CommandServer):
    sleep_requests = SleepRequests("/sleep?level={level}", "/wake_up", "say so")

    def get_backend_name(self):
        return "sleeper"
"""
IN_TURN = """
import pytest
from helpers import get, kill, note

a, b = pytest.mark.infserver("a"), pytest.mark.infserver("b")
handles = {}

def check(server):
    note("use", server.name, server.pid)
    handles[server.name] = server
    assert server.awake and server.check_health()
    for name, other in handles.items():
        if name != server.name:
            try:
                note("other", "asleep" if get(other, "/is_sleeping")["is_sleeping"] else "awake")
            except OSError:
                note("other", "gone")

@a
def test_1(inference_server):
    check(inference_server)

@b
def test_2(inference_server):
    check(inference_server)
    meanwhile()

@a
def test_3(inference_server):
    check(inference_server)

@b
def test_4(inference_server):
    check(inference_server)

def meanwhile():
    pass
"""
SHARE = ("--infserver-order=source", "--infserver-share-gpu")


@pytest.fixture
def share(monkeypatch):
    """Give a project two servers that can sleep, and one GPU; more settings of ``a`` are arguments."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")

    def prepare(project, fault="", meanwhile="", **settings):
        project.files(sleeper=SLEEPER, test_it=IN_TURN.replace("    pass\n", f"    {meanwhile or 'pass'}\n"))
        project.servers(a=["--sleep-fault", fault] if fault else [], b=[])
        file = project.path / "servers.yaml"
        content = yaml.safe_load(file.read_text().replace("backend: command", "backend: 'sleeper:Sleeper'"))
        for server in content["servers"].values():
            server["gpus"] = 1
        content["servers"]["a"].update(settings)
        file.write_text(yaml.safe_dump(content))
        return project

    return prepare


def launches(project):
    """Return how often each server was launched, as its tests have seen it."""
    uses = {tuple(line.split()[1:]) for line in project.events("use")}
    return {name: sum(one == name for one, _ in uses) for name in "ab"}


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "not shared"])
def test_who_waits_for_its_next_test_sleeps(inline_project, share, shared):
    project = share(inline_project)
    result = project.run(*SHARE[: 1 + shared])
    result.assert_outcomes(passed=4)
    words = "put to sleep 1 time" if shared else "stopped 1 time"
    assert launches(project) == ({"a": 1, "b": 1} if shared else {"a": 2, "b": 2})
    # The last one has nobody after it who wants the other.
    assert project.events("other")[:2] == (["other asleep"] * 2 if shared else ["other gone"] * 2)
    result.stdout.fnmatch_lines_random([f"*a was {words} to make room for b", f"*b was {words} to make room for a"])
    # The hooks of a start and a stop are called for these alone.
    assert len(project.events("started")) == len(project.events("stopped")) == (2 if shared else 4)
    (record,) = (project.path / "server_logs").rglob("run.json")
    lives = {server["name"]: server["lives"] for server in json.loads(record.read_text())["servers"]}
    asleep = {name: [span for life in lives[name] for span in life["asleep"]] for name in "ab"}
    assert [len(asleep[name]) for name in "ab"] == ([1, 1] if shared else [0, 0])
    assert all(begin <= end for spans in asleep.values() for begin, end in spans)


def test_workers_share_them_alike(project, share):
    pytest.importorskip("xdist")
    share(project)
    project.on_workers = True
    result = project.run("--infserver-share-gpu", "--dist=load")
    result.assert_outcomes(passed=4)
    assert launches(project) == {"a": 1, "b": 1}
    assert "other awake" not in project.events("other")


FAULTS = {
    # What goes wrong with "a": its launches, and what is said of it.
    "refuse": (2, ["a (sleeper): POST /sleep?level=1 answered 500*; say so; it is stopped to make room for b"]),
    "hang": (2, ["a (sleeper): POST /sleep?level=1 gave no answer within 1 s; it is stopped to make room for b"]),
    "freeze": (2, ["a (sleeper): POST /sleep?level=1 gave no answer within 1 s; it is stopped to make room for b"]),
    "refuse-wake": (2, ["a (sleeper): POST /wake_up answered 500*not today*; say so; it was asleep, and is *anew"]),
    "hang-wake": (2, ["a (sleeper): POST /wake_up gave no answer within 1 s; it was asleep, and is started anew"]),
    "die-at-wake": (2, ["a (sleeper) exited with code 7*", "*it was asleep, and is started anew*"]),
    "sick-awake": (2, ["a (sleeper): when it was woken, its health check answered 503*; it was asleep, and is *anew"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_costs_a_start_and_no_test(inline_project, share, fault):
    project = share(inline_project, fault, hang_timeout=1, stop_timeout=1)
    result = project.run(*SHARE)
    result.assert_outcomes(passed=4)
    count, words = FAULTS[fault]
    assert launches(project) == {"a": count, "b": 1}
    result.stdout.fnmatch_lines([f"*{word}" for word in words])
    assert all(line.endswith(" gone") for line in project.events("stopped"))


@pytest.mark.parametrize("policy", ["restart", "fail"])
def test_a_death_while_it_sleeps_is_a_death_between_two_tests(inline_project, share, policy):
    project = share(inline_project, meanwhile='kill(handles["a"])')
    result = project.run(*SHARE, f"--infserver-on-crash={policy}")
    if policy == "restart":
        result.assert_outcomes(passed=4)
        assert launches(project) == {"a": 2, "b": 1}
    else:
        result.assert_outcomes(passed=3, errors=1)
        result.stdout.fnmatch_lines(["*a (sleeper) has died and is not restarted (--infserver-on-crash=fail)*"])
    result.stdout.fnmatch_lines(["asleep: a (sleeper) exited with code 3*"])


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [({"port": True}, ()), ({"needs": ["c"]}, ()), ({}, ("--infserver-debug",))],
    ids=["same port", "a group", "debug mode"],
)
def test_who_cannot_share_is_stopped(inline_project, share, settings, arguments):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    project = share(inline_project, **(dict(settings, port=port) if "port" in settings else settings))
    file = project.path / "servers.yaml"
    content = yaml.safe_load(file.read_text())
    content["servers"]["c"] = {**content["servers"]["b"], "gpus": 0}
    if "port" in settings:
        content["servers"]["b"]["port"] = port
    file.write_text(yaml.safe_dump(content))
    result = project.run(*SHARE, *arguments)
    result.assert_outcomes(passed=4)
    assert launches(project)["a"] == 2
    assert "a was put to sleep" not in result.stdout.str()


def test_one_that_sleeps_is_not_kept(inline_project, share):
    project = share(inline_project, meanwhile="raise SystemError('enough')")
    result = project.run(*SHARE, "-x", "--infserver-keep=1h")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*a (sleeper) is not kept: it sleeps"])
    from pytest_infserver.launcher.keeping.kept import kept_servers

    for kept in kept_servers():
        assert kept.name == "b"
        assert kept.stop()


def started(project, *arguments):
    argv = [sys.executable, "-m", "pytest", "-p", "pytest_infserver.plugin", "-p", "no:cacheprovider"]
    return subprocess.Popen(
        [*argv, "--infserver-config", "servers.yaml", *SHARE, *arguments],
        cwd=project.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def await_event(project, line):
    deadline = time.monotonic() + HARD_LIMIT
    while line not in project.events(line.split()[0]):
        assert time.monotonic() < deadline, project.events()
        time.sleep(0.02)


def test_a_run_that_is_killed_leaves_nobody_asleep(project, share, nothing_left):
    share(project, meanwhile="note('now'), __import__('time').sleep(600)")
    run = started(project)
    await_event(project, "now")
    assert project.events("other") == ["other asleep"]
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=HARD_LIMIT)


def test_an_interrupt_does_not_wait_for_one_that_does_not_wake(project, share, nothing_left):
    share(project, "hang-wake", meanwhile="note('now')")
    run = started(project)
    await_event(project, "now")
    # That it hangs is certain once its request was sent, which the engine does not say; at any time before nothing
    # hangs, and the run ends likewise.
    time.sleep(0.5)
    os.kill(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=HARD_LIMIT)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "is started anew" not in output


def test_a_cluster_gives_its_gpus_out_by_itself(inline_project, share):
    result = share(inline_project).run("--infserver-share-gpu", "--infserver-cluster=auto")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--infserver-share-gpu and --infserver-cluster: on a cluster Ray gives the GPUs out"])
