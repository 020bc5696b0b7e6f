"""AMD's profilers over a server's whole life; both are stand-ins that behave as their scripts do."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_ins import ask, names, warnings

from pytest_infserver import InferenceServer, ProfileError, ServerDiedError, ServerStartupError, ServerState
from pytest_infserver.launcher.profiling.chosen import check_profiler

pytestmark = pytest.mark.usefixtures("nothing_left", "bin_folder")

Profiled = Callable[..., InferenceServer]


def refusal(server: InferenceServer) -> str:
    with pytest.raises(ProfileError) as caught:
        server.start()
    assert server.state is ServerState.FAILED
    assert server.launches == 0
    return str(caught.value)


@pytest.mark.usefixtures("rocprofv3")
class TestRocprofv3:
    """The current one, which becomes the server."""

    def test_whole_life(self, profiled: Profiled, tmp_path: Path) -> None:
        server = profiled("amd")
        with server:
            told = ask(server, "/argv")
            assert server.runtime.process is not None
            assert told["pid"] == server.pid == server.runtime.process.pid
            assert told["env"]["LD_PRELOAD"] == "libc.so.6"
            assert told["env"]["FAKE_ROCPROF_ARGV"] == (
                f"--runtime-trace --output-format pftrace csv -d {tmp_path}/profiles/fake/server"
            )
        assert server.profiles == [tmp_path / f"profiles/fake/server/host/{told['pid']}_results.pftrace"]
        assert warnings(server) == []

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            (["--stats"], "--runtime-trace --stats --output-format pftrace csv"),
            (["--sys-trace", "--stats"], "--sys-trace --stats --output-format pftrace csv"),
            (["--kernel-trace", "--output-format", "json"], "--kernel-trace --output-format json"),
        ],
    )
    def test_arguments(self, profiled: Profiled, args: list[str], expected: str) -> None:
        with profiled("amd", args=args) as server:
            assert ask(server, "/argv")["env"]["FAKE_ROCPROF_ARGV"].rpartition(" -d ")[0] == expected

    @pytest.mark.parametrize("word", ["-d", "-o", "--output-directory=x", "--output-file", "--"])
    def test_what_is_set_by_us_is_refused(self, profiled: Profiled, word: str) -> None:
        assert f"{word} is set by pytest-infserver" in refusal(profiled("amd", args=[word]))

    def test_trace_of_each_launch_has_its_folder(self, profiled: Profiled) -> None:
        server = profiled("amd")
        for _ in range(2):
            server.start()
            server.stop()
        folders = {path.relative_to(server.profile_dir).parts[0] for path in server.profiles}
        assert folders == {"server", "server-2"}

    def test_killed_server_has_no_trace_which_is_said(self, profiled: Profiled) -> None:
        server = profiled("amd").start()
        os.kill(server.pid or 0, signal.SIGKILL)
        assert server.wait_death(30)
        server.stop()
        (text,) = warnings(server)
        assert "profiling with amd: it has written nothing to " in text
        assert names(server.profile_dir) == []

    def test_stop_without_a_trace_is_an_error(self, profiled: Profiled) -> None:
        server = profiled("amd", "--default-term").start()
        with pytest.raises(ProfileError, match="it has written nothing to"):
            server.stop()
        assert server.state is ServerState.STOPPED

    def test_flush_at_the_end_may_take_longer_than_a_stop(self, profiled: Profiled) -> None:
        server = profiled("amd", "--stop-delay", "2", flush_timeout=60, settings={"stop_timeout": 0.2})
        with server:
            pass
        assert len(server.profiles) == 1
        assert server.survivors == ()

    def test_flush_timeout_is_kept(self, profiled: Profiled) -> None:
        server = profiled("amd", "--ignore-term", flush_timeout=1, settings={"stop_timeout": 0.2}).start()
        begin = time.monotonic()
        with pytest.raises(ProfileError, match="it has written nothing to"):
            server.stop()
        assert time.monotonic() - begin < 30

    def test_parts_cannot_be_profiled(self, profiled: Profiled) -> None:
        with profiled("amd") as server, pytest.raises(ProfileError, match="a server's whole life only"):
            server.start_profile("a")

    def test_on_demand_is_refused(self, profiled: Profiled) -> None:
        assert "a server's whole life only: leave out 'on_demand: true'" in refusal(profiled("amd", on_demand=True))

    def test_it_cannot_be_had_later(self, profiled: Profiled) -> None:
        with profiled(None) as server:
            with pytest.raises(ProfileError, match=r"has to be started for it: write 'profile: \{tool: amd\}'$"):
                server.start_profile("a", tool="amd")
            with pytest.raises(ProfileError, match=r"'profile: \{tool: amd\}' or --infserver-profile"):
                check_profiler(server, "amd")

    def test_failed_start_leaves_no_folder(self, profiled: Profiled) -> None:
        server = profiled("amd", "--exit", "3")
        with pytest.raises(ServerStartupError, match="exited with code 3"):
            server.start()
        assert names(server.profile_dir) == []

    def test_launch_that_fails_leaves_no_folder(self, profiled: Profiled, bin_folder: Path) -> None:
        # Executable, but nothing that can be executed.
        (bin_folder / "rocprofv3").write_bytes(b"\x7fELF broken")
        server = profiled("amd")
        with pytest.raises(ServerStartupError, match="Exec format error"):
            server.start()
        assert names(server.profile_dir) == []

    def test_debug_mode_is_quiet(self, profiled: Profiled) -> None:
        server = profiled("amd", settings={"debug_mode": True}).start()
        server.stop()
        assert server.leak_report is not None
        assert server.leak_report.findings == ()
        assert len(server.profiles) == 1


@pytest.mark.usefixtures("rocprof")
class TestOldRocprof:
    """The old one, which stays above the server."""

    def test_whole_life(self, profiled: Profiled) -> None:
        server = profiled("amd")
        with server:
            told = ask(server, "/argv")
            assert server.runtime.process is not None
            # The engine is what is asked to end, and what py-spy looks at.
            assert told["pid"] == server.pid != server.runtime.process.pid
        assert [path.name for path in server.profiles] == ["results.csv", "results.stats.csv"]
        assert server.survivors == ()

    def test_arguments_reach_the_engine_through_the_shell_of_rocprof(self, profiled: Profiled, tmp_path: Path) -> None:
        words = ["--json", '{"a": "b c"}', "--price", "$HOME", "--tick", "`id`", "--back", "a\\b"]
        with profiled("amd", *words) as server:
            argv = ask(server, "/argv")["argv"]
        assert argv[argv.index("--json") :] == words

    def test_arguments_of_its_own(self, profiled: Profiled) -> None:
        with profiled("amd", args=["--stats"]) as server:
            words = server.command().argv
        assert words[1:4] == ("-o", f"{server.profile_dir}/server/results.csv", "--stats")
        assert "--" not in words

    def test_new_one_is_preferred(self, profiled: Profiled, rocprofv3: Path) -> None:
        with profiled("amd") as server:
            assert server.command().argv[0] == str(rocprofv3)

    def test_binary_path_chooses(self, profiled: Profiled, rocprof: Path, rocprofv3: Path) -> None:
        with profiled("amd", binary_path=str(rocprof)) as server:
            assert server.command().argv[0] == str(rocprof)

    def test_link_is_looked_through(self, profiled: Profiled, rocprof: Path, tmp_path: Path) -> None:
        link = tmp_path / "my-profiler"
        link.symlink_to(rocprof)
        with profiled("amd", binary_path=str(link)) as server:
            assert server.command().argv[1] == "-o"

    def test_dead_server_is_noticed(self, profiled: Profiled) -> None:
        server = profiled("amd").start()
        os.kill(server.pid or 0, signal.SIGKILL)
        assert server.wait_death(30)
        with pytest.raises(ServerDiedError):
            server.raise_if_dead()
        server.stop()
        # Its script sums up all the same.
        assert len(server.profiles) == 2


def test_missing_tool(profiled: Profiled) -> None:
    if shutil.which("rocprofv3", path="/opt/rocm/bin"):
        pytest.skip("this machine has ROCm")
    assert "rocprofv3 or rocprof is not on PATH. It comes with ROCm. Or name it with" in refusal(profiled("amd"))


def test_found_beside_rocm(
    profiled: Profiled, rocprofv3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rocm"
    folder.mkdir()
    moved = rocprofv3.rename(folder / "rocprofv3")
    monkeypatch.setattr("pytest_infserver.launcher.profiling.profilers.amd._ROCM", [str(folder)])
    with profiled("amd") as server:
        assert server.command().argv[0] == str(moved)
