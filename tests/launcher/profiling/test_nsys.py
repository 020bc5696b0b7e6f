"""nsys around a server, and a report for each profile; nsys is a stand-in with the manners of 2022.4.2."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from stand_ins import FakeNsys, SglangLike, VllmLike, ask, names, wait_for, warnings

from pytest_infserver import CommandServer, InferenceServer, LeakError, ProfileError, ServerStartupError, ServerState
from pytest_infserver.launcher.profiling.profilers.nsys import Nsys

pytestmark = pytest.mark.usefixtures("nothing_left", "nsys")

Profiled = Callable[..., InferenceServer]


def scratch_of(server: InferenceServer) -> Path:
    assert server.allotment.place is not None
    return Path(server.allotment.place.scratch)


def report(files: list[Path]) -> str:
    (file,) = files
    return file.read_text()


# What works.


def test_whole_life_has_one_report(profiled: Profiled, nsys: FakeNsys, tmp_path: Path) -> None:
    server = profiled("nsys", args=["--trace=cuda,nvtx", "--nvtx-capture=x", "-s", "none"])
    with server:
        assert server.profiles == []
        scratch = scratch_of(server)
    assert server.profiles == [tmp_path / "profiles" / "fake" / "server.nsys-rep"]
    assert report(server.profiles) == "half a report"
    assert nsys.verbs() == ["launch", "start", "stop"]
    launch, start = nsys.events()[:2]
    # Each argument goes to the command that knows it.
    assert "--nvtx-capture=x --session-new=" in launch
    assert "--trace=cuda,nvtx --wait=primary" in launch
    assert "--trace" not in start
    assert start.split()[-2:] == ["-s", "none"]
    assert not scratch.exists()
    assert warnings(server) == []


def test_on_demand_has_a_report_for_each_profile_and_none_besides(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys", on_demand=True)
    with server:
        for name in ("first", "second", "first"):
            with server.profiling(name) as files:
                assert files == []
            assert report(files) == "half a report"
    assert [path.name for path in server.profiles] == ["first.nsys-rep", "second.nsys-rep", "first-2.nsys-rep"]
    assert nsys.verbs() == ["launch", *["start", "stop"] * 3]
    assert names(server.profile_dir) == ["first-2.nsys-rep", "first.nsys-rep", "second.nsys-rep"]


def test_the_pid_is_the_engines_and_its_environment_is_its_own(profiled: Profiled) -> None:
    with profiled("nsys", on_demand=True) as server:
        told = ask(server, "/argv")
        assert server.pid == told["pid"]
        assert server.runtime.process is not None
        assert server.pid != server.runtime.process.pid
        assert server.pid in server.process_tree()
        # nsys's own is the private one.
        assert told["env"]["TMPDIR"] == "/tmp"


def test_the_users_tmpdir_reaches_the_engine(profiled: Profiled, tmp_path: Path) -> None:
    server = profiled("nsys", on_demand=True, settings={"env_vars": {"TMPDIR": str(tmp_path)}})
    with server:
        assert ask(server, "/argv")["env"]["TMPDIR"] == str(tmp_path)


def test_sampling_is_left_out_unless_it_is_asked_for(profiled: Profiled, nsys: FakeNsys) -> None:
    with profiled("nsys") as server:
        assert server.running
    assert {"--sample=none", "--cpuctxsw=none"} <= set(nsys.events()[1].split())


def test_restart_is_profiled_anew(profiled: Profiled) -> None:
    server = profiled("nsys")
    for _ in range(2):
        server.start()
        server.stop()
    assert [path.name for path in server.profiles] == ["server.nsys-rep", "server-2.nsys-rep"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trace=cuda", "nvtx", "osrt"], ["--trace=cuda,nvtx,osrt"]),
        (["-t", "cuda", "nvtx"], ["-t", "cuda,nvtx"]),
        (["-t", "cuda,nvtx"], ["-t", "cuda,nvtx"]),
    ],
)
def test_comma_that_yaml_has_taken_for_its_own(profiled: Profiled, args: list[str], words: list[str]) -> None:
    argv = profiled("nsys", args=args).command().argv
    at = argv.index("/bin/sh")
    assert list(argv[at - len(words) : at]) == words


# The capture range.


def test_capture_range_is_begun_after_nsys_and_ended_before_it(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys", cls=VllmLike, on_demand=True, args=["--capture-range=cudaProfilerApi"])
    with server:
        argv = ask(server, "/argv")["argv"]
        assert argv[argv.index("--profiler-config") + 1] == '{"profiler": "cuda"}'
        with server.profiling("a") as files:
            pass
    assert report(files) == "half a report"
    assert nsys.verbs() == ["launch", "start", "POST /start_profile", "POST /stop_profile", "stop"]


def test_sglang_is_told_of_the_range_in_the_request(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys", cls=SglangLike, on_demand=True, args=["-c", "cudaProfilerApi"])
    with server, server.profiling("a") as files:
        pass
    assert report(files) == "half a report"


def test_own_profiler_config_is_left_alone(profiled: Profiled) -> None:
    own = {"server_args": ["--profiler-config.profiler", "cuda"]}
    server = profiled(
        "nsys", cls=VllmLike, on_demand=True, args=["--capture-range=cudaProfilerApi"], settings={"config": own}
    )
    with server:
        assert "--profiler-config" not in ask(server, "/argv")["argv"]


def test_range_of_a_whole_life_is_somebody_elses_to_begin(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys", cls=VllmLike, args=["--capture-range=cudaProfilerApi"]).start()
    with pytest.raises(ProfileError, match="the capture range has not begun, so that there is no report"):
        server.stop()
    assert server.state is ServerState.STOPPED
    assert nsys.verbs() == ["launch", "start", "stop"]
    assert names(server.profile_dir) == []


def test_refused_range_leaves_nsys_ready_for_the_next_profile(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled(
        "nsys",
        "--refuse-profile",
        "/start_profile",
        cls=VllmLike,
        on_demand=True,
        args=["--capture-range=cudaProfilerApi"],
    )
    with server:
        for _ in range(2):
            with pytest.raises(ProfileError, match=r"(?s)POST /start_profile was answered 500:.*no profile today"):
                server.start_profile("a")
    assert nsys.verbs() == ["launch", *["start", "POST /start_profile", "stop"] * 2]
    assert names(server.profile_dir) == []


def test_range_that_cannot_be_ended_stops_nsys_all_the_same(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled(
        "nsys",
        "--refuse-profile",
        "/stop_profile",
        cls=VllmLike,
        on_demand=True,
        args=["--capture-range=cudaProfilerApi"],
    )
    with server:
        server.start_profile("a")
        with pytest.raises(ProfileError, match="POST /stop_profile was answered 500"):
            server.stop_profile()
        assert nsys.verbs()[-1] == "stop"
        server.start_profile("b")
        with pytest.raises(ProfileError, match="POST /stop_profile"):
            server.stop_profile()


# What cannot be done is said before anything is started.


def refusal(server: InferenceServer) -> str:
    with pytest.raises(ProfileError) as caught:
        server.start()
    assert server.state is ServerState.FAILED
    assert server.launches == 0
    return str(caught.value)


def test_missing_tool(profiled: Profiled, bin_folder: Path) -> None:
    (bin_folder / "nsys").unlink()
    text = refusal(profiled("nsys"))
    assert text.startswith("fake (command): profiling with nsys: nsys is not on PATH. Install Nsight Systems")
    assert text.endswith("Or name it with 'binary_path:' under 'profile:'")


@pytest.mark.parametrize("kind", ["missing", "folder", "not executable"])
def test_binary_path_that_is_no_executable(profiled: Profiled, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "my-nsys"
    if kind == "folder":
        path.mkdir()
    elif kind == "not executable":
        path.write_text("#!/bin/sh\n")
        path.chmod(0o644)
    assert f"'{path}' is not an executable file" in refusal(profiled("nsys", binary_path=str(path)))


def test_binary_path_counts_more_than_path(profiled: Profiled, bin_folder: Path, tmp_path: Path) -> None:
    moved = (bin_folder / "nsys").rename(tmp_path / "nsys-2022")
    with profiled("nsys", on_demand=True, binary_path=str(moved)) as server:
        assert server.command().argv[0] == str(moved)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--output=x"], "--output is set by pytest-infserver"),
        (["-f", "true"], "-f is set by pytest-infserver"),
        (["--wait=all"], "--wait is set by pytest-infserver"),
        (["--speed=fast"], "neither 'nsys launch' nor 'nsys start' has the option --speed"),
        (["trace"], "neither 'nsys launch' nor 'nsys start' has the option trace"),
        (["--capture-range-end=repeat:2"], "--capture-range-end=repeat:2: each profile makes one report"),
    ],
)
def test_arguments_that_cannot_be(profiled: Profiled, args: list[str], problem: str) -> None:
    assert problem in refusal(profiled("nsys", args=args))


def test_broken_tool_is_shown_with_its_words(profiled: Profiled, bin_folder: Path) -> None:
    (bin_folder / "nsys").write_text("#!/bin/sh\necho cannot load libfoo.so\nexit 127\n")
    text = refusal(profiled("nsys"))
    assert re.search(r"launch --help': exit status \d+:\n  cannot load libfoo\.so", text)


def test_sampling_without_permission_is_refused(profiled: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.profiling.profilers.nsys._may_sample", lambda: False)
    assert "--sample=process-tree is not permitted" in refusal(profiled("nsys", args=["--sample=process-tree"]))
    with profiled("nsys", args=["--sample=none"], on_demand=True) as server:
        assert server.running


@pytest.mark.parametrize("place", ["in the way", "below a file"])
def test_output_dir_that_cannot_be_made(profiled: Profiled, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" if place == "below a file" else tmp_path
    if place == "in the way":
        (tmp_path / "fake").touch()
    text = refusal(profiled("nsys", output_dir=str(folder)))
    assert "the folder for profiles cannot be used" in text
    assert "set 'output_dir' under 'profile:'" in text


# What goes wrong in a profile.


def test_report_that_is_not_written_is_an_error(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("nothing")
    with profiled("nsys", on_demand=True) as server:
        server.start_profile("a")
        with pytest.raises(
            ProfileError, match=r"nsys stop: no report:\n  \[1/1\] \[====100%\] r.nsys-rep\n  Generated"
        ):
            server.stop_profile()
        # Neither an empty file nor a state that keeps others from theirs is left.
        assert names(server.profile_dir) == []
        assert server.profiles == []
        nsys.fail()
        with server.profiling("b") as files:
            pass
        assert report(files) == "half a report"


def test_full_disk(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("full")
    with profiled("nsys", on_demand=True) as server:
        server.start_profile("a")
        with pytest.raises(ProfileError, match=r"(?s)nsys stop: exit status 1:.*No space left on device"):
            server.stop_profile()
        assert names(server.profile_dir) == []


def test_importer_that_is_missing_is_named(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("qdstrm")
    with profiled("nsys", on_demand=True) as server:
        server.start_profile("a")
        with pytest.raises(ProfileError, match=r"a\.qdstrm could not be made a report: this nsys lacks its importer"):
            server.stop_profile()


def test_report_that_somebody_holds_open_is_not_complete(
    profiled: Profiled, nsys: FakeNsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profiles" / "fake" / "a.nsys-rep"
    monkeypatch.setenv("FAKE_OPEN", str(path))
    nsys.fail("open")
    with profiled("nsys", on_demand=True) as server:
        server.start_profile("a")
        wait_for(lambda: [one for one in psutil.Process().children(recursive=True) if holds(one, path)])
        with pytest.raises(ProfileError, match=r"a\.nsys-rep is still being written"):
            server.stop_profile()


def holds(process: psutil.Process, path: Path) -> bool:
    try:
        return str(path) in [file.path for file in process.open_files()]
    except psutil.Error:
        return False


def test_flush_timeout_is_kept_and_nothing_hangs_on(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("hang")
    with profiled("nsys", on_demand=True, flush_timeout=0.5) as server:
        server.start_profile("a")
        begin = time.monotonic()
        with pytest.raises(ProfileError, match=r"nsys stop: killed: it did not end within 0\.5 s"):
            server.stop_profile()
        assert time.monotonic() - begin < 15
        assert not nsys_clients()


def test_hang_is_not_taken_for_a_range_that_has_not_begun(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("hang")
    server = profiled("nsys", cls=VllmLike, on_demand=True, flush_timeout=0.5, args=["--capture-range=cudaProfilerApi"])
    with server:
        server.start_profile("a")
        with pytest.raises(ProfileError, match="killed: it did not end within"):
            server.stop_profile()


def nsys_clients() -> list[list[str]]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(word.endswith("fake_nsys.py") for word in words) and "launch" not in words:
            found.append(words)
    return found


def test_start_that_hangs_is_given_up(profiled: Profiled, nsys: FakeNsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.profiling.profilers.nsys.ASK_LIMIT", 1.0)
    nsys.fail("start-hangs")
    server = profiled("nsys")
    with pytest.raises(ProfileError, match="nsys start: killed: it did not end within 1 s"):
        server.start()
    assert server.state is ServerState.FAILED
    assert names(server.profile_dir) == []


def test_session_that_does_not_come_is_given_up(
    profiled: Profiled, nsys: FakeNsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.profiling.profilers.nsys._SESSION_LIMIT", 1.0)
    nsys.fail("no-session")
    server = profiled("nsys")
    with pytest.raises(ProfileError, match="nsys does not know the session after 1 s"):
        server.start()
    # `nsys start` would make a session of that name.
    assert "start" not in nsys.verbs()


@pytest.mark.parametrize("fault", ["unsent", "unknown"])
def test_busy_machine_is_asked_again(profiled: Profiled, nsys: FakeNsys, fault: str) -> None:
    nsys.fail(fault)
    with profiled("nsys") as server:
        pass
    assert nsys.verbs() == ["launch", "start", "stop"]
    assert report(server.profiles) == "half a report"


def test_command_that_reaches_nobody_is_given_up(
    profiled: Profiled, nsys: FakeNsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.profiling.profilers.nsys._SESSION_LIMIT", 1.0)
    nsys.fail("never-sent")
    with pytest.raises(ProfileError, match="The proxy is not started"):
        profiled("nsys").start()


def test_flush_is_told_as_progress(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("slow")
    told: list[str] = []
    server = profiled("nsys", on_demand=True)
    server.on_progress = told.append
    with server:
        with server.profiling("a"):
            pass
    assert told == ["fake (command): nsys writes its trace, 3 s"]


def test_interrupted_flush_leaves_nothing(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("hang")
    server = profiled("nsys").start()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    assert server.state is ServerState.STOPPED
    assert not nsys_clients()
    # The fixture sees to it that the server and nsys have ended.


def test_interrupted_flush_does_not_resume_the_whole_life(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys").start()
    server.start_profile("a")
    nsys.fail("hang")
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        server.stop_profile()
    assert nsys.verbs() == ["launch", "start", "stop", "start", "stop"]
    nsys.fail()
    server.stop()


# The server's end.


def test_killed_server_has_its_report(profiled: Profiled) -> None:
    server = profiled("nsys").start()
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    assert server.runtime.last_exit()[0] is not None
    # nsys says 137; the engine was what was killed.
    assert server.runtime.last_exit()[0].code == -signal.SIGKILL
    server.stop()
    assert report(server.profiles) == "half a report"
    # It may have been told as the death of a process below nsys before nsys has ended.
    assert [text for text in warnings(server) if "was killed by SIGKILL, while it was in use" not in text] == []


def test_killed_server_has_the_report_of_a_part(profiled: Profiled) -> None:
    server = profiled("nsys", on_demand=True).start()
    server.start_profile("a")
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    assert report(server.stop_profile()) == "half a report"
    server.stop()


def test_server_that_dies_in_the_flush(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys", on_demand=True).start()
    server.start_profile("a")
    nsys.fail("hang")
    threading.Timer(0.5, os.kill, (server.pid or 0, signal.SIGKILL)).start()
    # The launched nsys writes it when the engine has ended.
    assert report(server.stop_profile()) == "half a report"
    assert not nsys_clients()
    server.stop()


def test_killed_nsys_ends_the_server_and_its_report_is_missed(profiled: Profiled) -> None:
    server = profiled("nsys").start()
    assert server.runtime.process is not None
    os.kill(server.runtime.process.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    server.stop()
    (text,) = warnings(server)
    assert text.endswith(f"profiling with nsys: it has written nothing to {server.profile_dir / 'server.nsys-rep'}")
    assert names(server.profile_dir) == []


@pytest.mark.parametrize("what", ["a bystander", "nothing", "no number"])
def test_only_what_is_ours_is_asked_to_end(profiled: Profiled, what: str) -> None:
    with subprocess.Popen(["/bin/sleep", "600"]) as bystander:
        server = profiled("nsys", on_demand=True).start()
        assert server.allotment.place is not None
        assert server.runtime.process is not None
        text = {"a bystander": str(bystander.pid), "nothing": "", "no number": "x"}[what]
        Path(server.allotment.place.pid_file).write_text(text)
        if what != "a bystander":
            assert server.pid == server.runtime.process.pid
        server.stop()
        assert server.survivors == ()
        assert bystander.poll() is None
        bystander.kill()


def test_exit_code_of_the_server_is_its_own(profiled: Profiled) -> None:
    server = profiled("nsys", "--exit-after", "1", "7").start()
    assert server.wait_death(30)
    assert server.runtime.last_exit()[0] is not None
    assert server.runtime.last_exit()[0].code == 7


def test_exit_code_that_stands_for_no_signal_is_one(profiled: Profiled) -> None:
    server = profiled("nsys", "--exit-after", "1", "255").start()
    assert server.wait_death(30)
    assert "exited with code 255" in str(server.why_died())


def test_server_is_asked_to_end_itself_and_not_by_nsys(profiled: Profiled) -> None:
    # One that needs a second to end in order gets it.
    server = profiled("nsys", "--stop-delay", "1").start()
    server.stop()
    assert server.survivors == ()
    assert len(server.profiles) == 1


def test_server_that_ignores_the_request_to_end_is_killed_with_its_report_written(profiled: Profiled) -> None:
    server = profiled("nsys", "--ignore-term", settings={"stop_timeout": 1}).start()
    server.stop()
    assert len(server.profiles) == 1
    assert len(server.survivors) >= 1


def test_start_that_fails_says_why_as_without_nsys(profiled: Profiled, nsys: FakeNsys) -> None:
    server = profiled("nsys", "--say", "RuntimeError: no such model", "--exit", "1")
    with pytest.raises(ServerStartupError, match="RuntimeError: no such model"):
        server.start()
    assert server.state is ServerState.FAILED
    assert not scratch_of(server).exists()


def test_engine_that_is_missing_is_named(nsys: FakeNsys, tmp_path: Path) -> None:
    server = CommandServer(
        launch_command=["no-such-engine", "{port}"], output_dir=tmp_path / "server_logs", profile={"tool": "nsys"}
    )
    with pytest.raises(ServerStartupError, match="the binary 'no-such-engine' is not on PATH"):
        server.start()
    assert nsys.events() == []


def test_owner_that_is_killed_takes_everything_with_it(nsys: FakeNsys, tmp_path: Path, nothing_left: None) -> None:
    code = f"""
import sys, time
from pytest_infserver import CommandServer
server = CommandServer(
    launch_command=[sys.executable, "-S", {str(Path(__file__).parents[2] / "fake_engine.py")!r}, "--port", "{{port}}"],
    output_dir={str(tmp_path / "server_logs")!r}, name="fake", profile={{"tool": "nsys"}}).start()
print(server.allotment.place.scratch, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        scratch = Path(owner.stdout.readline().strip())
        assert scratch.exists()
        owner.kill()
    wait_for(lambda: not scratch.exists())
    assert (tmp_path / "profiles" / "fake" / "server.nsys-rep").read_text() == "half a report"


# Debug mode.


def test_debug_mode_takes_nothing_of_nsys_for_a_leak(profiled: Profiled) -> None:
    server = profiled("nsys", "--leak-file", "engine-file", settings={"debug_mode": True})
    server.start()
    with pytest.raises(LeakError) as caught:
        server.stop()
    # The engine has its own TMPDIR, in which its leak is seen.
    assert [finding.kind for finding in caught.value.findings] == ["file"]
    assert len(server.profiles) == 1


def test_debug_mode_is_quiet_about_nsys(profiled: Profiled) -> None:
    server = profiled("nsys", settings={"debug_mode": True})
    server.start()
    server.stop()
    assert server.leak_report is not None
    assert server.leak_report.findings == ()
    assert warnings(server) == []


def test_debug_mode_finds_what_a_profiler_leaves(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("orphan")
    server = profiled("nsys", settings={"debug_mode": True, "stop_timeout": 2}).start()
    with pytest.raises(LeakError) as caught:
        server.stop()
    assert [finding.kind for finding in caught.value.findings] == ["process"]


# Pieces.


def test_nsys_sees_the_start(profiled: Profiled) -> None:
    server = profiled("nsys")
    assert isinstance(server.profiler, Nsys)
    # The command is shown before the launch without making anything.
    assert server.command().argv[1:3] == ("launch", "--session-new=SESSION")


def test_a_start_that_nsys_itself_has_spoilt_is_repeated_once(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("lost")
    with profiled("nsys") as server:
        assert server.running
        assert server.launches == 2
    assert report(server.profiles) == "half a report"
    assert warnings(server) == ["fake (command): nsys itself failed at the start, which is tried once more"]


def test_an_nsys_that_fails_each_time_fails_the_start(profiled: Profiled, nsys: FakeNsys) -> None:
    nsys.fail("always-lost")
    server = profiled("nsys")
    with pytest.raises(ServerStartupError, match="Connection to the Agent lost"):
        server.start()
    assert server.launches == 2
