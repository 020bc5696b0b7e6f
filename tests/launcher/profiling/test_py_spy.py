"""py-spy, the real one, on the fake engine."""

from __future__ import annotations

import json
import os
import shutil
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
from stand_ins import follower, names, wait_for, warnings, work

from pytest_infserver import CommandServer, InferenceServer, LlamaCppServer, ProfileError, ServerState
from pytest_infserver.launcher.profiling.chosen import check_profiler
from pytest_infserver.launcher.profiling.profilers.py_spy import PySpy

pytestmark = pytest.mark.usefixtures("nothing_left")

Profiled = Callable[..., InferenceServer]


def py_spies() -> list[psutil.Process]:
    """Return the py-spy processes that this process has started and that run still."""
    return [one for one in psutil.Process().children() if one.name() == "py-spy" and one.status() != "zombie"]


def fake_py_spy(folder: Path, body: str) -> str:
    path = folder / "py-spy"
    path.write_text(
        f"#!{sys.executable} -S\nimport signal, sys, time\n{HELP}out = sys.argv[sys.argv.index('-o') + 1]\n{body}"
    )
    path.chmod(0o755)
    return str(path)


HELP = "if '--help' in sys.argv:\n    sys.exit(print('  -f, --format <format>\\n  -i, --idle\\n  -n, --native'))\n"
SAMPLING = "print('py-spy> Sampling process 100 times a second', flush=True)\n"


def test_part_of_a_life(profiled: Profiled) -> None:
    with profiled(None) as server:
        with server.profiling("test_a.py::test_b[x]") as files:
            work(server)
        (file,) = files
        assert file == server.profile_dir / "test_a.test_b-x.svg"
        assert "fake_engine.py" in file.read_text()
        assert names(server.profile_dir) == ["test_a.test_b-x.svg"]
        assert not py_spies()
        assert server.profiles == files


def test_thread_that_blocks_the_signal_which_ends_it(profiled: Profiled) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with profiled(None) as server, server.profiling("blocked") as files:
            work(server)
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert len(files) == 1


def test_whole_life_begins_when_the_server_is_ready(profiled: Profiled) -> None:
    server = profiled("py-spy")
    with server:
        (one,) = py_spies()
        assert str(server.pid) in one.cmdline()
        work(server)
    assert [path.name for path in server.profiles] == ["server.svg"]
    assert not py_spies()


@pytest.mark.parametrize(
    ("args", "suffix"),
    [
        (["--format", "speedscope"], ".speedscope.json"),
        (["-f", "raw"], ".txt"),
        (["--format=chrometrace", "--rate", "50"], ".trace.json"),
    ],
)
def test_formats(profiled: Profiled, args: list[str], suffix: str) -> None:
    with profiled("py-spy", on_demand=True, args=args) as server, server.profiling("a") as files:
        work(server)
    (file,) = files
    assert file.name == f"a{suffix}"
    if suffix.endswith("json"):
        assert json.loads(file.read_text())
    else:
        assert "(fake_engine.py:" in file.read_text()


def test_children_are_seen(profiled: Profiled) -> None:
    with profiled("py-spy", "--children", "1", on_demand=True, args=["-f", "raw", "--idle"]) as server:
        with server.profiling("a") as files:
            work(server)
    # The child sleeps in its one line of code.
    assert "<module> (<string>:" in files[0].read_text()


@pytest.mark.parametrize("word", ["-o", "--output=x", "--pid", "-p", "-d", "--duration=3"])
def test_what_is_set_by_us_is_refused(profiled: Profiled, word: str) -> None:
    server = profiled("py-spy", args=[word])
    with pytest.raises(ProfileError, match="is set by pytest-infserver; leave it out of 'args:'"):
        server.start()
    assert server.launches == 0


def test_unknown_format_is_refused(profiled: Profiled) -> None:
    with pytest.raises(ProfileError, match="its formats are flamegraph, speedscope, chrometrace, raw, not 'pdf'"):
        profiled("py-spy", args=["--format", "pdf"]).start()


def test_unknown_argument_is_refused_before_the_start(profiled: Profiled) -> None:
    server = profiled("py-spy", on_demand=True, args=["--speed"])
    with pytest.raises(ProfileError, match=r"'py-spy record' has no option --speed: see '.*py-spy record --help'"):
        server.start()
    assert server.launches == 0


@pytest.mark.parametrize("args", [["-d1"], ["-d", "1"], ["--duration=1"], ["-o/tmp/x"], ["-p1"]])
def test_argument_that_is_ours_is_refused_in_every_spelling(profiled: Profiled, args: list[str]) -> None:
    server = profiled("py-spy", args=args)
    with pytest.raises(
        ProfileError, match=r"^fake \(command\): profiling with py-spy: -\S+ is set by pytest-infserver"
    ):
        server.start()
    assert server.launches == 0


@pytest.mark.parametrize("args", [["-fspeedscope"], ["-f", "speedscope"], ["--format=speedscope"]])
def test_format_in_every_spelling(profiled: Profiled, args: list[str]) -> None:
    server = profiled("py-spy", args=args)
    assert server.profiler is not None
    server.profiler.check()
    assert server.profiler.suffix == ".speedscope.json"


def test_missing_tool(profiled: Profiled, bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = profiled("py-spy")
    # It is also looked for beside Python.
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    with pytest.raises(ProfileError, match=r"py-spy is not on PATH. Install it with 'pip install pytest-inf"):
        server.start()
    assert server.launches == 0


def test_found_beside_python(profiled: Profiled, bin_folder: Path) -> None:
    assert shutil.which("py-spy") is None
    with profiled("py-spy", on_demand=True) as server, server.profiling("a") as files:
        work(server)
    assert len(files) == 1


def test_what_the_kernel_forbids_is_said_before_the_start(profiled: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.profiling.profilers.py_spy.may_trace", lambda path: "not here")
    server = profiled("py-spy")
    with pytest.raises(ProfileError, match="profiling with py-spy: not here"):
        server.start()
    assert server.launches == 0


def test_native_program_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    server = LlamaCppServer(model="m.gguf", binary_path=str(binary), profile={"tool": "py-spy"})
    with pytest.raises(ProfileError, match=r"llama-server is no Python program; nsys can profile it"):
        check_profiler(server, "py-spy")


def test_idle_threads_of_llama_cpp_are_shown() -> None:
    server = LlamaCppServer(model="builtin:tiny", profile={"tool": "py-spy", "args": ["--idle", "--native"]})
    assert isinstance(server.profiler, PySpy)
    # Once: py-spy refuses a flag that is given twice.
    assert list(server.profiler._args) == ["--idle", "--native"]


# What goes wrong.


def test_killed_server_has_its_trace(profiled: Profiled) -> None:
    server = profiled("py-spy").start()
    work(server)
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    server.stop()
    assert [path.name for path in server.profiles] == ["server.svg"]
    assert not py_spies()


def test_killed_server_is_not_kept_from_its_end(profiled: Profiled, tmp_path: Path) -> None:
    """As when it is killed while py-spy looks into it, which leaves it stopped at its exit."""
    body = f"""
import ctypes
SEIZE, OPTION_TRACEEXIT = 0x4206, 0x40
arguments = [ctypes.c_long(word) for word in (SEIZE, int(sys.argv[sys.argv.index("-p") + 1]), 0, OPTION_TRACEEXIT)]
assert ctypes.CDLL(None, use_errno=True).ptrace(*arguments) == 0, ctypes.get_errno()
{SAMPLING}
try:
    time.sleep(600)
except KeyboardInterrupt:
    open(out, "w").write("seen")
    print("Wrote flamegraph")
"""
    server = profiled("py-spy", binary_path=fake_py_spy(tmp_path, body)).start()
    os.kill(server.pid or 0, signal.SIGKILL)
    time.sleep(0.5)
    assert psutil.Process(server.pid).status() == psutil.STATUS_TRACING_STOP
    assert server.wait_death(30)
    server.stop()
    assert [path.read_text() for path in server.profiles] == ["seen"]


def test_killed_server_has_the_trace_of_a_part(profiled: Profiled) -> None:
    server = profiled(None).start()
    server.start_profile("a")
    work(server)
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    assert [path.name for path in server.stop_profile()] == ["a.svg"]
    server.stop()


def test_killed_py_spy_is_missed(profiled: Profiled) -> None:
    with profiled(None) as server:
        server.start_profile("a")
        (one,) = py_spies()
        one.kill()
        with pytest.raises(ProfileError, match="py-spy has ended without its file"):
            server.stop_profile()
        assert names(server.profile_dir) == []
        with server.profiling("b") as files:
            work(server)
        assert len(files) == 1


def profile_again_and_again(server: InferenceServer) -> None:
    """Profile a server that is idle; what it does for a health check is seen, or not."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        server.start_profile("a")
        server.stop_profile()


def test_server_without_python_code_is_explained(profiled: Profiled) -> None:
    with profiled(None, "--idle-first-thread") as server:
        with pytest.raises(ProfileError, match=r"saw no Python code run;.*args: \[--idle\]"):
            profile_again_and_again(server)


@pytest.mark.parametrize(
    ("shares", "args", "said"),
    [
        (["100", "100.00", "100.00"], [], True),
        (["100", "100.00", "62.10", "37.90"], [], False),
        (["100", "100.00"], ["--native"], False),
        ([], [], False),
    ],
)
def test_one_stack_only_is_explained(
    profiled: Profiled, tmp_path: Path, shares: list[str], args: list[str], said: bool
) -> None:
    frames = "".join(f"<title>main (a.py:1) (14 samples, {share}%)</title>" for share in shares)
    body = f"""
{SAMPLING}
try:
    time.sleep(600)
except KeyboardInterrupt:
    open(out, "w").write({frames!r} or "no flame graph")
    print("Wrote flamegraph")
"""
    native = type("Native", (CommandServer,), {"works_in_native_code": True})
    binary = fake_py_spy(tmp_path, body)
    with profiled("py-spy", cls=native, on_demand=True, binary_path=binary, args=args) as server:
        with server.profiling("a"):
            pass
        found = [text for text in warnings(server) if "one stack only (a.svg)" in text]
        assert len(found) == said
        assert not said or "'args: [--native]'" in found[0]


def test_flush_timeout_is_kept(profiled: Profiled, tmp_path: Path) -> None:
    body = f"signal.signal(signal.SIGINT, signal.SIG_IGN)\n{SAMPLING}time.sleep(600)"
    binary = fake_py_spy(tmp_path, body)
    with profiled("py-spy", on_demand=True, binary_path=binary, flush_timeout=0.5) as server:
        server.start_profile("a")
        with pytest.raises(ProfileError, match=r"has not written its file: it did not end within 0\.5 s"):
            server.stop_profile()
        assert names(server.profile_dir) == []
        # Nor is one left that nobody has reaped.
        assert not [one for one in psutil.Process().children() if one.name() == "py-spy"]


def test_begin_that_hangs_is_given_up(profiled: Profiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.profiling.profilers.py_spy._BEGIN_LIMIT", 0.5)
    binary = fake_py_spy(tmp_path, "print('wait', flush=True)\ntime.sleep(600)")
    with profiled("py-spy", on_demand=True, binary_path=binary) as server:
        with pytest.raises(ProfileError, match=r"does not sample after 0.5 s:\n  wait"):
            server.start_profile("a")
        assert names(server.profile_dir) == []


def test_binary_that_cannot_be_executed_is_an_error(profiled: Profiled, tmp_path: Path) -> None:
    binary = tmp_path / "py-spy"
    binary.write_bytes(b"\x7fELF broken")
    binary.chmod(0o755)
    server = profiled("py-spy", on_demand=True, binary_path=str(binary))
    with pytest.raises(ProfileError, match="Exec format error"):
        server.start()
    assert server.launches == 0


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        ("print('Wrote flamegraph')", "it has written nothing to .*a.svg"),
        ("import os; os.unlink(out); print('Wrote flamegraph')", "No such file or directory|has written nothing"),
        ("sys.exit('Error: No space left on device')", r"(?s)ended without its file:.*No space left"),
    ],
)
def test_tool_that_lies(profiled: Profiled, tmp_path: Path, end: str, problem: str) -> None:
    body = f"{SAMPLING}try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    {end}\n"
    with profiled("py-spy", on_demand=True, binary_path=fake_py_spy(tmp_path, body)) as server:
        server.start_profile("a")
        with pytest.raises(ProfileError, match=problem):
            server.stop_profile()
        assert names(server.profile_dir) == []


def test_full_disk(tmp_path: Path, nothing_left: None) -> None:
    """The traces go to a file system of 16 KB, in a mount namespace of the test's own."""
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    engine = Path(__file__).parents[2] / "fake_engine.py"
    code = f"""
import sys, time, urllib.request
from pytest_infserver import CommandServer, ProfileError
server = CommandServer(
    launch_command=[sys.executable, "-S", {str(engine)!r}, "--port", "{{port}}"], name="fake",
    output_dir={str(tmp_path / "server_logs")!r}, profile={{"tool": "py-spy", "on_demand": True}})
with server:
    for name in ("a", "b"):
        try:
            with server.profiling(name):
                end = time.monotonic() + 0.5
                while time.monotonic() < end:
                    urllib.request.urlopen(server.server_url + "/argv").read()
        except ProfileError as error:
            print("ERROR", error)
    print("RUNS", server.running, server.profiles)
"""
    result = run_in_namespace(code, profiles)
    if result is None:
        pytest.skip("needs the right to mount")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("ERROR fake (command): profiling with py-spy: ") == 2, result.stdout
    assert "No space left on device" in result.stdout
    assert "RUNS True []" in result.stdout


def run_in_namespace(code: str, folder: Path) -> subprocess.CompletedProcess[str] | None:
    unshare = ["unshare", "--mount", "--", "/bin/sh", "-c"]
    mount = f"mount -t tmpfs -o size=16k tmpfs {folder}"
    if shutil.which("unshare") is None:
        return None
    if subprocess.run([*unshare, mount], capture_output=True, timeout=30, check=False).returncode:
        return None
    return subprocess.run(
        [*unshare, f'{mount} && exec "$@"', "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_interrupt_while_it_begins_leaves_no_py_spy(profiled: Profiled, tmp_path: Path) -> None:
    binary = fake_py_spy(tmp_path, "print('wait', flush=True)\ntime.sleep(600)")
    with profiled("py-spy", on_demand=True, binary_path=binary) as server:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            server.start_profile("a")
        assert names(server.profile_dir) == []
        assert not server.runtime.profiling.is_running()


def test_debug_mode_is_quiet(profiled: Profiled) -> None:
    server = profiled("py-spy", settings={"debug_mode": True}).start()
    work(server)
    server.stop()
    assert server.leak_report is not None
    assert server.leak_report.findings == ()
    assert len(server.profiles) == 1


def test_server_started_for_nsys_can_be_seen_by_py_spy(profiled: Profiled, nsys: object) -> None:
    with profiled("nsys", on_demand=True) as server:
        with server.profiling("a", tool="py-spy") as files:
            work(server)
        assert "fake_engine.py" in files[0].read_text()


def test_other_process_ends_what_a_killed_one_has_begun(profiled: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    server = profiled(None).start()

    def begin(server: InferenceServer, pipe: Any) -> None:
        server.start_profile("theirs")
        pipe.send(server.pid)
        time.sleep(600)

    with follower(server, begin) as other:
        assert other.hear() == server.pid
        monkeypatch.setattr("pytest_infserver.launcher.profiling.profiling._HANDOVER_LIMIT", 0.3)
        with pytest.raises(ProfileError, match=r"the profile 'theirs' \(py-spy\) is being made by process \d+"):
            server.start_profile("ours")
        assert server.runtime.profiling.is_running()
        work(server)
        other.kill()
    assert not server.runtime.profiling.is_running()
    with server.profiling("ours") as files:
        work(server)
    assert len(files) == 1
    # What the other one had seen is kept.
    assert [path.name for path in server.profiles] == ["theirs.svg", "ours.svg"]
    assert warnings(server) == []
    server.stop()
    wait_for(lambda: not [one for one in psutil.process_iter() if str(server.profile_dir) in " ".join(cmdline(one))])


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_stop_ends_what_a_killed_process_has_begun(profiled: Profiled) -> None:
    server = profiled(None).start()

    def begin(server: InferenceServer, pipe: Any) -> None:
        server.start_profile("theirs")
        pipe.send("begun")
        time.sleep(600)

    with follower(server, begin) as other:
        other.hear()
        work(server)
        other.kill()
    server.stop()
    assert server.state is ServerState.STOPPED
    assert [path.name for path in server.profiles] == ["theirs.svg"]


def test_what_another_process_has_ended_is_reaped(profiled: Profiled) -> None:
    def take_its_place(server: InferenceServer, pipe: Any) -> None:
        with server.profiling("theirs"):
            work(server)
        pipe.send("done")
        pipe.recv()

    with profiled("py-spy") as server:
        work(server)
        with follower(server, take_its_place) as other:
            assert other.hear() == "done"
            with server.profiling("ours"):
                work(server)
        assert len([one for one in psutil.Process().children() if one.name() == "py-spy"]) == 1
    # Between and after them nothing has happened, which is no fault of the whole life's.
    assert warnings(server) == []
    assert not [one for one in psutil.Process().children() if one.name() == "py-spy"]


def test_whole_life_in_which_nothing_happens_is_an_error(profiled: Profiled, tmp_path: Path) -> None:
    # The real one sees the server's last steps to its readiness, or does not.
    end = "sys.exit('Error: No stack counts found')"
    body = f"{SAMPLING}try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    {end}\n"
    server = profiled("py-spy", binary_path=fake_py_spy(tmp_path, body)).start()
    with pytest.raises(ProfileError, match="py-spy saw no Python code run"):
        server.stop()
