"""The profiles of one server: one at a time, whoever asks, and that of its whole life around them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from stand_ins import FakeNsys, follower, names, wait_for, warnings, work

from pytest_infserver import (
    CommandServer,
    InferenceServer,
    ProfileError,
    RemoteServer,
    ServerDiedError,
    ServerStartupError,
    ServerState,
)
from pytest_infserver.launcher.profiling.chosen import check_profiler, use_profiler
from pytest_infserver.launcher.profiling.ledger import Entry, Ledger, Stretch
from pytest_infserver.launcher.profiling.profiler import Place
from pytest_infserver.launcher.profiling.profilers.py_spy import PySpy

pytestmark = pytest.mark.usefixtures("nothing_left")

FAKE_ENGINE = Path(__file__).parents[2] / "fake_engine.py"
Profiled = Callable[..., InferenceServer]


def ledger(server: InferenceServer) -> Entry:
    return Ledger(server.log_path.parent).read()


# One at a time.


def test_nested_profile_is_refused_and_harms_nobody(profiled: Profiled) -> None:
    with profiled(None) as server:
        with server.profiling("outer") as files:
            work(server)
            with pytest.raises(
                ProfileError, match=r"the profile 'outer' \(py-spy\) is being made: end it first, there is one at a"
            ):
                server.start_profile("inner")
        assert [path.name for path in files] == ["outer.svg"]
        assert names(server.profile_dir) == ["outer.svg"]


def test_stop_without_start(profiled: Profiled) -> None:
    with profiled(None) as server:
        with pytest.raises(ProfileError, match=r"no profile is running: begin one with start_profile\(\)"):
            server.stop_profile()


def test_second_stop(profiled: Profiled, nsys: FakeNsys) -> None:
    with profiled("nsys", on_demand=True) as server:
        server.start_profile("a")
        server.stop_profile()
        with pytest.raises(ProfileError, match="no profile is running"):
            server.stop_profile()
        assert nsys.verbs() == ["launch", "start", "stop"]


def test_whole_life_cannot_be_stopped_by_hand(profiled: Profiled, nsys: FakeNsys) -> None:
    with profiled("nsys") as server:
        with pytest.raises(ProfileError, match="no profile is running"):
            server.stop_profile()
    assert len(server.profiles) == 1


def test_stop_while_another_thread_stops(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("slow")
    made: list[Path] = []
    with profiled("nsys", on_demand=True) as server:
        server.start_profile("a")
        thread = threading.Thread(target=lambda: made.extend(server.stop_profile()))
        thread.start()
        wait_for(lambda: "stop" in nsys.verbs())
        with pytest.raises(ProfileError, match="the profile 'a' is being ended already"):
            server.stop_profile()
        with pytest.raises(ProfileError, match="one at a time"):
            server.start_profile("b")
        thread.join(30)
    assert [path.name for path in made] == ["a.nsys-rep"]


def test_server_that_is_stopped_in_a_flush_waits_for_it(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("slow")
    made: list[Path] = []
    server = profiled("nsys", on_demand=True).start()
    server.start_profile("a")
    thread = threading.Thread(target=lambda: made.extend(server.stop_profile()))
    thread.start()
    wait_for(lambda: "stop" in nsys.verbs())
    server.stop()
    thread.join(30)
    assert made == server.profiles
    assert [path.name for path in made] == ["a.nsys-rep"]
    # An engine may crash when it is told twice.
    assert nsys.verbs() == ["launch", "start", "stop"]


def test_server_that_does_not_run(profiled: Profiled) -> None:
    server = profiled(None)
    with pytest.raises(ProfileError, match="the server does not run: its state is new"):
        server.start_profile("a")
    server.start()
    server.stop()
    with pytest.raises(ProfileError, match="the server does not run: its state is stopped"):
        server.start_profile("a")
    server.start()
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    with pytest.raises(ProfileError, match="the server does not run: its state is died"):
        server.start_profile("a")
    with pytest.raises(ServerDiedError):
        server.raise_if_dead()
    assert not server.profile_dir.exists()


def test_server_that_was_not_started_by_us(profiled: Profiled) -> None:
    with profiled(None) as server:
        remote = RemoteServer(url=server.server_url).start()
        with pytest.raises(ProfileError, match="was not started by us: profile it where it was started"):
            remote.start_profile("a")
        configured = RemoteServer(url=server.server_url, profile={"tool": "py-spy"})
        with pytest.raises(ProfileError, match="was not started by us"):
            configured.start()
        assert server.check_health()


def test_unknown_tool(profiled: Profiled) -> None:
    with profiled(None) as server:
        with pytest.raises(ProfileError, match="no profiler is called 'perf'; there are nsys, pytorch, amd, py-spy"):
            server.start_profile("a", tool="perf")


def test_tool_that_the_server_was_not_started_for(profiled: Profiled) -> None:
    with profiled(None) as server:
        with pytest.raises(ProfileError, match=r"write 'profile: \{tool: nsys, on_demand: true\}', or use the marker"):
            server.start_profile("a", tool="nsys")


def test_disabled_profile_is_none(profiled: Profiled, bin_folder: Path) -> None:
    # The tool need not even be there.
    with profiled("nsys", enabled=False) as server:
        assert server.profiler is None
        assert "nsys" not in server.command().argv
    assert server.profiles == []
    assert not server.profile_dir.exists()


def test_a_server_is_started_for_one_profiler(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled(None)
    use_profiler(server, "nsys")
    use_profiler(server, "nsys")
    with pytest.raises(ProfileError, match="a server is started for one profiler, and pytorch is asked for as well"):
        use_profiler(server, "pytorch")
    with server:
        # On demand: nobody has asked for the whole life.
        with server.profiling("a") as files:
            pass
    assert server.profiles == files
    assert len(files) == 1


def test_check_profiler_says_what_a_start_would(profiled: Profiled, bin_folder: Path) -> None:
    with pytest.raises(ProfileError, match="nsys is not on PATH"):
        check_profiler(profiled(None), "nsys")
    with pytest.raises(ProfileError, match="a server is started for one profiler"):
        check_profiler(profiled("nsys"), "pytorch")
    check_profiler(profiled("nsys"), "py-spy")


# The whole life gives way.


def test_whole_life_gives_way_and_goes_on(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys")
    with server:
        with server.profiling("test_a") as files:
            pass
        assert [path.name for path in files] == ["test_a.nsys-rep"]
        with server.profiling("test_b"):
            pass
    assert [path.name for path in server.profiles] == [
        "server.nsys-rep",
        "test_a.nsys-rep",
        "server-2.nsys-rep",
        "test_b.nsys-rep",
        "server-3.nsys-rep",
    ]
    assert nsys.verbs() == ["launch", *["start", "stop"] * 5]
    assert warnings(server) == []


def test_whole_life_goes_on_after_a_profile_that_could_not_begin(
    profiled: Profiled, nsys: FakeNsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: PySpy, *_: object, **__: object) -> None:
        raise self.error("not today")

    monkeypatch.setattr(PySpy, "begin", fail)
    server = profiled("nsys")
    with server:
        with pytest.raises(ProfileError, match="has to be started for it"):
            server.start_profile("a", tool="pytorch")
        # That was refused before anything had to give way.
        assert nsys.verbs() == ["launch", "start"]
        with pytest.raises(ProfileError, match="not today"):
            server.start_profile("a", tool="py-spy")
        stretch = ledger(server).stretch
        assert stretch is not None
        assert (stretch.automatic, stretch.phase) == (True, "running")
    assert [path.name for path in server.profiles] == ["server.nsys-rep", "server-2.nsys-rep"]
    assert warnings(server) == []


def test_whole_life_goes_on_after_a_profile_that_was_lost(profiled: Profiled, nsys: FakeNsys) -> None:
    with profiled("nsys") as server:
        server.start_profile("a")
        nsys.fail("nothing")
        with pytest.raises(ProfileError, match="no report"):
            server.stop_profile()
        nsys.fail()
    assert [path.name for path in server.profiles] == ["server.nsys-rep", "server-2.nsys-rep"]


def test_whole_life_that_cannot_go_on_is_a_warning(profiled: Profiled, tmp_path: Path) -> None:
    server = profiled("py-spy").start()
    work(server)
    server.start_profile("a")
    work(server)
    (tmp_path / "py-spy").write_text("#!/bin/sh\ncase $* in *--help) echo '  --idle';; *) echo broken; exit 1;; esac\n")
    (tmp_path / "py-spy").chmod(0o755)
    assert server.profiler is not None
    server.profiler.__dict__["binary"] = str(tmp_path / "py-spy")
    # The profile that was asked for is complete.
    assert [path.name for path in server.stop_profile()] == ["a.svg"]
    (text,) = warnings(server)
    assert "py-spy has ended:\n  broken" in text
    server.stop()


def test_lost_part_of_a_whole_life_is_a_warning_when_it_gives_way(profiled: Profiled, nsys: FakeNsys) -> None:
    with profiled("nsys") as server:
        nsys.fail("nothing")
        server.start_profile("a")
        nsys.fail()
        server.stop_profile()
        (text,) = warnings(server)
        assert "no report" in text


def test_error_in_the_block_comes_before_a_lost_profile(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("nothing")
    with profiled("nsys", on_demand=True) as server:
        with pytest.raises(ZeroDivisionError), server.profiling("a"):
            raise ZeroDivisionError
        (text,) = warnings(server)
        assert "no report" in text


def test_profile_of_a_failed_block_is_made(profiled: Profiled, nsys: FakeNsys) -> None:
    with profiled("nsys", on_demand=True) as server:
        with pytest.raises(ZeroDivisionError), server.profiling("a") as files:
            raise ZeroDivisionError
        assert [path.name for path in files] == ["a.nsys-rep"]


# The server's end.


def test_stop_ends_a_profile_that_nobody_has_ended(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys", on_demand=True).start()
    server.start_profile("a")
    server.stop()
    assert [path.name for path in server.profiles] == ["a.nsys-rep"]
    # Before the engine was asked to end.
    assert [event.split()[0] for event in nsys.events()] == ["launch", "start", "stop", "SIGTERM"]
    assert ledger(server) == Entry()


@pytest.mark.parametrize("tool", ["nsys", "py-spy"])
@pytest.mark.parametrize("how", ["stop", "restart", "kill"])
def test_block_whose_server_ends_in_it_has_its_trace(profiled: Profiled, nsys: FakeNsys, tool: str, how: str) -> None:
    server = profiled(tool, on_demand=True, args=["--idle"] if tool == "py-spy" else []).start()
    with server.profiling("block") as files:
        work(server)
        if how == "kill":
            os.kill(server.pid or 0, signal.SIGKILL)
            assert server.wait_death(30)
        else:
            server.stop()
        if how == "restart":
            server.start()
    [file] = files
    assert file.name.startswith("block.")
    assert file.stat().st_size
    assert server.profiles == server.runtime.profiling.asked_for == files
    if how == "restart":
        with server.profiling("next") as files:
            work(server)
        assert len(files) == 1
    if how != "kill":
        assert warnings(server) == []


def test_server_that_dies_while_nsys_still_writes(profiled: Profiled, nsys: FakeNsys) -> None:
    """Its engine is gone, nsys is not: to stop nsys then loses the report."""
    nsys.fail("slow")
    with profiled("nsys", on_demand=True) as server:
        with server.profiling("block") as files:
            os.kill(server.pid or 0, signal.SIGKILL)
            time.sleep(0.5)
            assert server.running
        assert [path.name for path in files] == ["block.nsys-rep"]
        assert server.wait_death(30)
        assert "stop" not in nsys.verbs()


def test_interrupted_flush_is_found_at_the_servers_end(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("hang")
    server = profiled("nsys", on_demand=True, flush_timeout=0.5).start()
    with pytest.raises(ProfileError, match="did not end within"):
        with server.profiling("block"):
            work(server, 0.1)
    assert server.profiles == []
    server.stop()
    # nsys has written it all the same, when the engine ended.
    assert [path.name for path in server.profiles] == ["block.nsys-rep"]


def test_stop_by_another_thread_waits_for_a_long_flush(
    profiled: Profiled, nsys: FakeNsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.profiling.profiling._HANDOVER_LIMIT", 0.2)
    nsys.fail("slow")
    server = profiled("nsys", on_demand=True).start()
    server.start_profile("long")
    files: list[Path] = []
    ending = threading.Thread(target=lambda: files.extend(server.stop_profile()))
    ending.start()
    wait_for(lambda: "stop" in nsys.verbs())
    server.stop()
    ending.join(30)
    assert [path.name for path in files] == ["long.nsys-rep"]
    assert nsys.verbs().count("stop") == 1
    assert warnings(server) == []


def test_kill_does_not_wait_for_a_flush(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("hang")
    server = profiled("nsys").start()
    problems: list[ProfileError] = []

    def stop() -> None:
        try:
            server.stop()
        except ProfileError as problem:
            problems.append(problem)

    thread = threading.Thread(target=stop)
    thread.start()
    wait_for(lambda: "stop" in nsys.verbs())
    server.kill()
    thread.join(60)
    assert not thread.is_alive()
    assert server.state is ServerState.STOPPED
    # Either the report came in time, or it is missed.
    assert len(server.profiles) + len(problems) == 1


def test_ledger_with_an_unknown_tool_keeps_no_server_from_its_stop(profiled: Profiled) -> None:
    server = profiled(None).start()
    pid = server.pid or 0
    with Ledger(server.log_path.parent).changed() as entry:
        entry.stretch = Stretch("perf", "a", "/nowhere", False, "running", 1, "1")
    with pytest.raises(ProfileError, match="no profiler is called 'perf'"):
        server.stop()
    assert server.state is ServerState.STOPPED
    assert not psutil.pid_exists(pid)
    assert ledger(server) == Entry()


def test_lost_whole_life_fails_the_stop_when_the_server_is_gone(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("nothing")
    server = profiled("nsys").start()
    pid = server.pid or 0
    with pytest.raises(ProfileError, match="no report"):
        server.stop()
    assert server.state is ServerState.STOPPED
    assert not psutil.pid_exists(pid)
    nsys.fail()
    with server:
        pass
    assert [path.name for path in server.profiles] == ["server.nsys-rep"]


def test_lost_profile_is_a_warning_after_an_error_in_the_block(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("nothing")
    server = profiled("nsys")
    with pytest.raises(ZeroDivisionError), server:
        raise ZeroDivisionError
    (text,) = warnings(server)
    assert "no report" in text


def test_hang_of_a_server_that_is_profiled_its_whole_life_is_found(profiled: Profiled) -> None:
    settings = {"heartbeat_interval": 0.1, "heartbeat_timeout": 0.5, "hang_timeout": 1.5}
    server = profiled("py-spy", settings=settings).start()
    os.kill(server.pid or 0, signal.SIGSTOP)
    assert server.wait_death(60)
    with pytest.raises(ServerDiedError, match="hung and was killed"):
        server.raise_if_dead()
    server.stop()


def test_flush_is_not_taken_for_a_hang(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("slow")
    settings = {"heartbeat_interval": 0.1, "heartbeat_timeout": 0.5, "hang_timeout": 1.5}
    server = profiled("nsys", on_demand=True, settings=settings).start()
    server.start_profile("a")
    pid = server.pid or 0
    os.kill(pid, signal.SIGSTOP)
    server.stop_profile()
    os.kill(pid, signal.SIGCONT)
    assert server.running
    server.stop()


# The start.


def test_failed_start_leaves_another_server_of_its_name_alone(
    profiled: Profiled, nsys: FakeNsys, tmp_path: Path
) -> None:
    with profiled("nsys", on_demand=True) as server:
        other = CommandServer(
            name="fake",
            launch_command=["no-such-engine", "{port}"],
            output_dir=server.output_dir,
            profile={"tool": "nsys"},
        )
        with pytest.raises(ServerStartupError, match="no-such-engine"):
            other.start()
        with server.profiling("a") as files:
            pass
        assert len(files) == 1


def test_two_of_one_name_at_once(profiled: Profiled, nsys: FakeNsys) -> None:
    first, second = profiled("nsys"), profiled("nsys")
    with first, second:
        assert first.log_path != second.log_path
        with first.profiling("a"), second.profiling("a"):
            pass
    made = [path.name for path in (*first.profiles, *second.profiles)]
    # Both write to one folder.
    assert first.profile_dir == second.profile_dir
    assert len(set(made)) == len(made) == 6
    assert sorted(made) == names(first.profile_dir)


def test_two_runs_in_one_folder_at_once(nsys: FakeNsys, tmp_path: Path, nothing_left: None) -> None:
    code = f"""
import sys
from pytest_infserver import CommandServer
server = CommandServer(
    launch_command=[sys.executable, "-S", {str(FAKE_ENGINE)!r}, "--port", "{{port}}"], name="fake",
    output_dir={str(tmp_path / "server_logs")!r}, profile={{"tool": "nsys"}})
with server:
    print("runs", flush=True)
    sys.stdin.readline()
    with server.profiling("test_a"):
        pass
print(*(path.name for path in server.profiles))
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "runs\n"
    made = [set(run.communicate("go on\n", timeout=60)[0].split()) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert [len(one) for one in made] == [3, 3]
    assert sorted(made[0] | made[1]) == names(tmp_path / "profiles" / "fake")
    assert len(made[0] | made[1]) == 6
    assert {path.read_text() for path in (tmp_path / "profiles" / "fake").iterdir()} == {"half a report"}


def test_start_that_is_cancelled_does_not_wait_for_a_profiler(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("start-hangs")
    server = profiled("nsys")
    threading.Timer(1, server.cancel_start).start()
    begin = time.monotonic()
    with pytest.raises(ServerStartupError, match="its start was cancelled"):
        server.start()
    assert time.monotonic() - begin < 15
    assert names(server.profile_dir) == []


def test_profile_of_a_whole_life_that_cannot_begin_fails_the_start(profiled: Profiled, tmp_path: Path) -> None:
    (tmp_path / "py-spy").write_text("#!/bin/sh\ncase $* in *--help) echo '  --idle';; *) echo broken; exit 1;; esac\n")
    (tmp_path / "py-spy").chmod(0o755)
    server = profiled("py-spy", binary_path=str(tmp_path / "py-spy"))
    with pytest.raises(ProfileError, match="py-spy has ended:\n  broken"):
        server.start()
    assert server.state is ServerState.FAILED
    assert server.pid is None
    assert names(server.profile_dir) == []


@pytest.mark.parametrize(
    ("env_vars", "problem"),
    [
        ({"LD_PRELOAD": "/opt/rocm/lib/librocprofiler-sdk-tool.so"}, "LD_PRELOAD loads /opt/rocm/lib/librocprofiler"),
        ({"CUDA_INJECTION64_PATH": "/x/libToolsInjection64.so"}, "CUDA_INJECTION64_PATH is set to /x/libToolsInj"),
    ],
)
def test_clash_is_found_before_the_start(
    profiled: Profiled, nsys: FakeNsys, env_vars: dict[str, str], problem: str
) -> None:
    server = profiled("nsys", settings={"env_vars": env_vars})
    with pytest.raises(ProfileError, match=problem):
        server.start()
    assert server.launches == 0
    # One that loads nothing into the server does not mind.
    check_profiler(profiled("py-spy", settings={"env_vars": env_vars}), "py-spy")


def test_clash_with_pytests_own_profiler(profiled: Profiled, nsys: FakeNsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_INJECTION64_PATH", "/x.so")
    with pytest.raises(ProfileError, match="as if pytest itself ran under it"):
        profiled("nsys").start()
    # Who takes it away from the server may profile that.
    with profiled("nsys", settings={"env_vars": {"CUDA_INJECTION64_PATH": None}}) as server:
        assert server.running


def test_command_that_starts_a_profiler_already(nsys: FakeNsys, tmp_path: Path) -> None:
    server = CommandServer(
        launch_command=["/usr/bin/env", "nsys", "profile", "x", "{port}"],
        output_dir=tmp_path / "logs",
        profile={"tool": "nsys"},
    )
    with pytest.raises(ProfileError, match="the server's command starts 'nsys' already"):
        server.start()


def test_profiled_server_is_not_kept(profiled: Profiled, nsys: FakeNsys) -> None:
    with profiled("nsys", on_demand=True) as server:
        assert not server.keep(60)
        assert server.why_not_kept == "it is profiled with nsys"
        assert server.running


# Several processes.


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a second instead of 30 while another process makes a profile."""
    monkeypatch.setattr("pytest_infserver.launcher.profiling.profiling._HANDOVER_LIMIT", 1.0)


def profile_once(server: InferenceServer, pipe: Any) -> None:
    with server.profiling("theirs") as files:
        pipe.send(server.pid)
        pipe.recv()
    pipe.send([path.name for path in files])


def profile_for_ever(server: InferenceServer, pipe: Any) -> None:
    server.start_profile("theirs")
    pipe.send(server.pid)
    time.sleep(600)


def test_other_process_makes_its_own_profile(profiled: Profiled, nsys: FakeNsys, short_turns: None) -> None:
    with profiled("nsys") as server:
        with follower(server, profile_once) as other:
            assert other.hear() == server.pid
            with pytest.raises(ProfileError, match="there is one at a time"):
                server.start_profile("ours")
            with pytest.raises(ProfileError, match=f"the profile 'theirs' belongs to process {other.pid}"):
                server.stop_profile()
            other.say("go on")
            assert other.hear() == ["theirs.nsys-rep"]
        # Their process has gone on with the whole life before it ended.
        stretch = ledger(server).stretch
        assert stretch is not None
        assert stretch.automatic
    assert names(server.profile_dir) == ["server-2.nsys-rep", "server.nsys-rep", "theirs.nsys-rep"]
    assert nsys.verbs() == ["launch", *["start", "stop"] * 3]


def test_profile_of_a_killed_process_gives_way(profiled: Profiled, nsys: FakeNsys) -> None:
    with profiled("nsys") as server:
        with follower(server, profile_for_ever) as other:
            other.hear()
            other.kill()
        with server.profiling("ours"):
            pass
    # The whole life goes on although the other one could not see to that.
    assert [path.name for path in server.profiles] == ["theirs.nsys-rep", "ours.nsys-rep", "server-2.nsys-rep"]
    assert warnings(server) == []


def test_process_that_is_killed_while_it_ends_its_profile(profiled: Profiled, nsys: FakeNsys) -> None:
    def end(server: InferenceServer, pipe: Any) -> None:
        server.start_profile("theirs")
        nsys.fail("hang")
        pipe.send("ending")
        server.stop_profile()

    with profiled("nsys", on_demand=True) as server:
        with follower(server, end) as other:
            other.hear()
            wait_for(lambda: "stop" in nsys.verbs())
            other.kill()
        stretch = ledger(server).stretch
        assert stretch is not None
        assert (stretch.phase, stretch.is_abandoned) == ("ending", True)
        with server.profiling("ours") as files:
            pass
        assert len(files) == 1
        # nsys knew of its end, and was told again.
        assert [path.name for path in server.profiles] == ["theirs.nsys-rep", "ours.nsys-rep"]
        kill_clients("stop")


def test_process_that_is_killed_while_it_begins_its_profile(profiled: Profiled, nsys: FakeNsys) -> None:
    def begin(server: InferenceServer, pipe: Any) -> None:
        nsys.fail("start-hangs")
        server.start_profile("theirs")

    here = Path.cwd()
    with profiled("nsys", on_demand=True) as server:
        with follower(server, begin) as other:
            wait_for(lambda: "start" in nsys.verbs())
            other.kill()
        with server.profiling("ours") as files:
            pass
        assert [path.name for path in files] == ["ours.nsys-rep"]
        assert server.profiles == files
        (text,) = warnings(server)
        assert "not applicable in this state" in text
        kill_clients("start")
    assert here == Path.cwd()
    assert names(server.profile_dir) == ["ours.nsys-rep"]


def test_stop_after_a_process_was_killed_while_it_began(
    profiled: Profiled, nsys: FakeNsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(server: InferenceServer, pipe: Any) -> None:
        nsys.fail("start-hangs")
        server.start_profile("theirs")

    # Nothing of the working directory may be taken for a trace, or removed.
    (tmp_path / "cwd" / "empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    server = profiled("nsys", on_demand=True).start()
    with follower(server, begin) as other:
        wait_for(lambda: "start" in nsys.verbs())
        other.kill()
    kill_clients("start")
    with pytest.raises(ProfileError, match="not applicable in this state"):
        server.stop()
    assert server.profiles == []
    assert names(tmp_path / "cwd") == ["empty"]


def kill_clients(verb: str) -> None:
    """End the nsys commands that a killed process has left: in life they end by themselves."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            ours = process.environ().get("INFSERVER_TEST_TOKEN") == os.environ["INFSERVER_TEST_TOKEN"]
        except psutil.Error:
            continue
        if ours and verb in words and any(word.endswith("fake_nsys.py") for word in words):
            process.kill()


def test_block_waits_for_that_of_another_process(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys", on_demand=True).start()

    def profile(server: InferenceServer, pipe: Any) -> None:
        with server.profiling("theirs"):
            pipe.send("begun")
            time.sleep(1)
        pipe.send("done")

    with follower(server, profile) as other:
        assert other.hear() == "begun"
        with server.profiling("ours") as files:
            assert other.hear() == "done"
    assert [path.name for path in files] == ["ours.nsys-rep"]


def test_race_for_a_profile_has_one_winner(profiled: Profiled, nsys: FakeNsys, short_turns: None) -> None:
    def race(server: InferenceServer, pipe: Any) -> None:
        pipe.recv()
        try:
            server.start_profile("theirs")
            pipe.send("won")
        except ProfileError as error:
            pipe.send(str(error))
        pipe.recv()
        server.stop_profile()

    with profiled("nsys") as server:
        with follower(server, race) as first, follower(server, race) as second:
            first.say("go")
            second.say("go")
            answers = sorted([first.hear(), second.hear()])
            assert answers[1] == "won"
            assert "there is one at a time" in answers[0]


# What others have left.


def test_stale_place_of_a_killed_run_is_tidied(profiled: Profiled, nsys: FakeNsys, tmp_path: Path) -> None:
    server = profiled("nsys")
    server.log_path.parent.mkdir(parents=True)
    stale = Place.make(None)
    try:
        text = json.dumps({"place": stale.as_dict(), "stretch": None})
        (server.log_path.parent / "profile.json").write_text(text)
        with server:
            assert not Path(stale.scratch).exists()
    finally:
        stale.remove()


def test_place_that_somebody_has_written_is_not_removed(profiled: Profiled, nsys: FakeNsys, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    server = profiled("nsys")
    server.log_path.parent.mkdir(parents=True)
    place = {"scratch": str(precious), "session": "s", "tmpdir": "/tmp", "target": ""}
    (server.log_path.parent / "profile.json").write_text(json.dumps({"place": place, "stretch": None}))
    with server:
        pass
    assert precious.exists()
    assert len(server.profiles) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"place": {"x": 1}, "stretch": null}', '{"place": 3, "stretch": 4}'])
def test_broken_ledger_is_none(profiled: Profiled, nsys: FakeNsys, text: str) -> None:
    server = profiled("nsys")
    server.log_path.parent.mkdir(parents=True)
    (server.log_path.parent / "profile.json").write_text(text)
    with server, server.profiling("a") as files:
        pass
    assert len(files) == 1


def test_ledger_that_cannot_be_written_is_an_error_of_the_profile(profiled: Profiled) -> None:
    with profiled(None) as server:
        (server.log_path.parent / ".profile.lock").mkdir()
        with pytest.raises(ProfileError, match="its profiles cannot be noted: "):
            server.start_profile("a")
        assert names(server.profile_dir) == []
        assert server.running


def test_profile_that_cannot_be_noted_is_ended(profiled: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    with profiled(None) as server:
        write = Ledger._write

        def fail(ledger: Ledger, entry: Entry) -> None:
            if entry.stretch is not None and entry.stretch.phase == "running":
                raise OSError(28, "No space left on device")
            write(ledger, entry)

        monkeypatch.setattr(Ledger, "_write", fail)
        with pytest.raises(ProfileError, match="No space left on device"):
            server.start_profile("a")
        assert not [one for one in psutil.Process().children() if one.name() == "py-spy"]
        assert not server.runtime.profiling.is_running()


def test_place_that_cannot_be_made_fails_the_start(
    profiled: Profiled, nsys: FakeNsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_infserver.launcher.profiling.profiler.tempfile.mkdtemp", fail)
    server = profiled("nsys")
    with pytest.raises(ProfileError, match="No space left on device"):
        server.start()
    assert server.state is ServerState.FAILED


def test_place_has_a_short_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    place = Place.make(None)
    try:
        # A socket's path may have 108 bytes.
        assert len(place.scratch) < 40
        assert place.tmpdir == str(long)
        assert os.stat(place.scratch).st_mode & 0o777 == 0o700
    finally:
        place.remove()
    assert not Path(place.scratch).exists()


def test_profiles_lie_beside_the_logs(profiled: Profiled, tmp_path: Path) -> None:
    server = profiled("py-spy")
    assert server.profile_dir == tmp_path / "profiles" / "fake"
    own = profiled("py-spy", output_dir=str(tmp_path / "mine"))
    assert own.profile_dir == tmp_path / "mine" / "fake"
