"""Servers that outlive a run: the next one takes them over, or they give way.

The runs are processes that end; only one that keeps nothing may be in this process.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from fake_servers import fake_block

from pytest_infserver.cli.main import main
from pytest_infserver.launcher.keeping.kept import all_servers

KEEP = "--infserver-keep=10m"
TEST = """
import pytest
from helpers import get, note
@pytest.mark.parametrize("n", range(2))
def test_it(inference_server, n):
    answer = get(inference_server, "/argv")
    assert answer["pid"] == inference_server.pid
    note("pid", inference_server.name, answer["pid"])
"""


@pytest.fixture(autouse=True)
def state(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test a place of its own for kept servers, and leave none of them."""
    # Short: sockets lie there.
    folder = tempfile.mkdtemp(prefix="infserver-")
    monkeypatch.setenv("INFSERVER_STATE_DIR", folder)
    monkeypatch.delenv("INFSERVER_DEVICE_LOCKS")
    yield
    main(["stop", "--all"])
    shutil.rmtree(folder)


def runs_of(project: Any) -> Callable[..., Any]:
    """Run the project with these arguments; return the pids that each server had, and the run's output."""

    def run(*arguments: str, plugins: tuple[str, ...] = ()) -> tuple[dict[str, str], str]:
        (project.path / "events.txt").unlink(missing_ok=True)
        result = project.run(*arguments, plugins=("xdist",) if "-n2" in arguments else ())
        text = result.stdout.str() + result.stderr.str()
        assert result.ret == 0, text
        pids = {tuple(line.split()[1:]) for line in project.events("pid")}
        assert len(pids) == len(dict(pids)), pids
        return dict(pids), text

    return run


@pytest.fixture
def run(project: Any) -> Callable[..., Any]:
    return runs_of(project)


def alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except OSError:
        return False
    return True


@pytest.mark.promise
def test_the_next_run_takes_over(project, servers_yaml, run) -> None:
    servers_yaml(a=[])
    project.files(test_1=TEST)
    first, _ = run(KEEP)
    assert project.events("stopping", "stopped") == []
    assert all(map(alive, first.values()))
    assert run(KEEP)[0] == first
    assert project.events("stopping", "stopped") == []
    assert all(map(alive, first.values()))


def test_the_next_run_takes_over_and_the_last_one_stops(project, servers_yaml, run) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[], b=[])
    project.files(test_1=TEST)
    first, _ = run(KEEP)
    assert sorted(project.events("started")) == ["started a", "started b"]
    assert project.events("stopping", "stopped") == []
    assert all(map(alive, first.values()))
    assert {server.name: server.state for server in all_servers()} == {"a": "kept", "b": "kept"}
    for arguments in (("-n2", KEEP), ("-n2", "--dist=each", KEEP)):
        pids, text = run(*arguments)
        assert pids == first, arguments
        assert "had kept it" not in text
        assert all(map(alive, first.values()))
    # One that a filter leaves out goes on; one that is used and not to be kept ends with its run.
    assert run("--infserver-server=a", "-n2")[0] == {"a": first["a"]}
    assert project.events("stopped") == ["stopped a gone"]
    assert [alive(first[name]) for name in "ab"] == [False, True]
    pids, text = run("--infserver-server=b")
    assert pids == {"b": first["b"]}
    assert text.count("b (command): an earlier run had kept it; this one took it over and stops it at its end") == 1
    assert not alive(first["b"])
    assert all_servers() == []


def test_what_was_changed_starts_fresh_and_the_old_one_is_gone(project, servers_yaml, run) -> None:
    pytest.importorskip("xdist")
    path = servers_yaml(a=[])
    script = project.path / "engine.py"
    content = yaml.safe_load(path.read_text())
    command = content["servers"]["a"]["launch_command"]
    shutil.copy(command[2], script)
    command[2] = str(script)
    path.write_text(yaml.safe_dump(content))
    project.files(test_1=TEST)
    before = run(KEEP)[0]["a"]

    def change_the_script() -> None:
        script.write_text(script.read_text() + "\n# another version\n")

    def change_an_option() -> None:
        command.append("--more")
        path.write_text(yaml.safe_dump(content))

    changes: list[tuple[Callable[[], None], tuple[str, ...]]] = [
        (change_the_script, ()),
        (change_an_option, ("-n2",)),
        (lambda: None, ("--infserver-env=ANOTHER=value",)),
    ]
    for change, arguments in changes:
        change()
        after = run(KEEP, *arguments)[0]["a"]
        assert after != before
        assert alive(after)
        assert not alive(before)
        before = after
    assert [server.pid for server in all_servers()] == [int(before)]


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_kept_server_gives_way(project, servers_yaml, run, monkeypatch, workers) -> None:
    if workers:
        pytest.importorskip("xdist")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    path = servers_yaml(small=[], big=[], named=[], same=[])
    content = yaml.safe_load(path.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    content["servers"]["small"]["gpus"] = 1
    content["servers"]["big"]["gpus"] = 2
    content["servers"]["named"]["port"] = port
    content["servers"]["same"]["port"] = port
    path.write_text(yaml.safe_dump(content))
    project.files(test_1=TEST)
    kept, _ = run(KEEP, "--infserver-server=small", "--infserver-server=named", *workers)
    assert all(map(alive, kept.values()))
    new, text = run(KEEP, "--infserver-server=big", *workers)
    assert [alive(kept["small"]), alive(kept["named"]), alive(new["big"])] == [False, True, True]
    assert "small, kept by an earlier run, was stopped: big needs its GPUs" in text
    newer, text = run(KEEP, "--infserver-server=same", *workers)
    assert [alive(kept["named"]), alive(new["big"]), alive(newer["same"])] == [False, True, True]
    assert "named, kept by an earlier run, was stopped to make room for same" in text


def test_debug_mode_is_not_kept(twin_project, servers_yaml) -> None:
    check_that_it_is_not_kept(twin_project, servers_yaml, KEEP, "--infserver-debug")


def test_nothing_is_kept_without_the_option(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    check_that_it_is_not_kept(project, servers_yaml, "-n2")


def check_that_it_is_not_kept(project: Any, servers_yaml: Callable[..., Any], *arguments: str) -> None:
    servers_yaml(a=[])
    project.files(test_1=TEST)
    pids, text = runs_of(project)(*arguments)
    assert not alive(pids["a"])
    assert all_servers() == []
    assert ("is not kept: in debug mode" in text) == ("--infserver-debug" in arguments)


def test_its_time_is_counted_from_its_last_use_and_its_death_is_none_of_ours(project, servers_yaml, run) -> None:
    servers_yaml(a=[])
    project.files(test_1=TEST)
    first, _ = run("--infserver-keep=20s")
    (kept,) = all_servers()
    assert kept.seconds_left is not None
    assert kept.seconds_left <= 20
    deadline = time.monotonic() + kept.seconds_left + 60
    while alive(first["a"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(first["a"])
    second, _ = run(KEEP)
    assert second != first
    os.kill(int(second["a"]), 9)
    third, text = run(KEEP)
    assert third != second
    assert "died" not in text


def test_a_kept_server_that_dies_in_the_next_run_is_started_again(project, servers_yaml, run) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[])
    project.files(test_1=TEST)
    before = run(KEEP)[0]["a"]
    project.files(
        test_1="""
        import pytest
        from helpers import get, kill, note
        @pytest.mark.infserver(exclusive=True)
        def test_kills(inference_server): kill(inference_server)
        @pytest.mark.parametrize("n", range(2))
        def test_later(inference_server, n): note("pid", "a", get(inference_server, "/argv")["pid"])
        """
    )
    after, _ = run("-n2", "--dist=loadfile", KEEP)
    assert after["a"] != before
    assert alive(after["a"])
    assert not alive(before)


def test_a_run_says_why_it_does_not_take_over_what_is_kept(project, servers_yaml, run) -> None:
    servers_yaml(a=["--said", "one"])
    project.files(test_1=TEST)
    first, _ = run(KEEP)
    servers_yaml(a=["--said", "two"])
    second, text = run(KEEP)
    assert first != second
    [line] = [line for line in text.splitlines() if "is not taken over" in line]
    assert line.startswith(f"a (command): the one that is kept (pid {first['a']}, ")
    assert line.endswith("of the command ('two')")


def test_what_the_server_writes_and_closes_does_not_count_and_its_configuration_does(project, run) -> None:
    state, configuration = project.path / "state.json", project.path / "engine.cfg"
    script = 'state="$1"; shift; echo started >> "$state"; exec "$@"'
    for path in (state, configuration):
        # Both are older than the server.
        path.write_text("old")
        os.utime(path, (1e9, 1e9))
    fake = fake_block("--config", str(configuration))["launch_command"]
    project.servers(a={"backend": "command", "launch_command": ["sh", "-c", script, "sh", str(state), *fake]})
    project.files(test_1=TEST)
    first, _ = run(KEEP)
    assert "started" in state.read_text()
    second, text = run(KEEP)
    assert (second, "is not taken over" in text) == (first, False)
    configuration.write_text("new")
    third, text = run(KEEP)
    assert third != first
    [line] = [line for line in text.splitlines() if "is not taken over" in line]
    assert line.endswith(f"the file {configuration}")
