"""PyTorch's profiler, which the engine is asked for; the engine is a stand-in with the manners of vLLM and SGLang."""

from __future__ import annotations

import gzip
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_ins import SglangLike, VllmLike, ask, names, warnings

from pytest_infserver import InferenceServer, ProfileError, ServerState, SGLangServer, VLLMServer

pytestmark = pytest.mark.usefixtures("nothing_left")

Profiled = Callable[..., InferenceServer]


def set_version(vllm: Path, version: str) -> None:
    (info,) = vllm.parent.parent.glob("lib/python3.12/site-packages/*")
    new = info.rename(info.with_name(f"vllm-{version}.dist-info"))
    (new / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


# What works.


def test_part_of_a_life(profiled: Profiled) -> None:
    with profiled("pytorch", "--trace-delay", "0.3", cls=VllmLike, on_demand=True) as server:
        for name in ("a", "b"):
            with server.profiling(name) as files:
                pass
            (file,) = files
            assert file == server.profile_dir / name / "rank0.1.pt.trace.json.gz"
            assert json.loads(gzip.decompress(file.read_bytes())) == {"traceEvents": []}
        assert server.running
    assert names(server.profile_dir) == ["a", "a/rank0.1.pt.trace.json.gz", "b", "b/rank0.1.pt.trace.json.gz"]
    assert warnings(server) == []


def test_whole_life(profiled: Profiled) -> None:
    server = profiled("pytorch", cls=VllmLike)
    with server:
        config = json.loads(ask(server, "/argv")["argv"][-1])
    assert config["profiler"] == "torch"
    assert Path(config["torch_profiler_dir"]).parent == server.profile_dir
    assert [path.parent.name for path in server.profiles] == ["server"]
    # The engine's own folder is gone.
    assert names(server.profile_dir) == ["server", "server/rank0.1.pt.trace.json.gz"]


def test_trace_that_is_written_after_the_answer_is_waited_for(profiled: Profiled) -> None:
    words = ("--trace-late", "--trace-delay", "1.5")
    with profiled("pytorch", *words, cls=VllmLike, on_demand=True) as server, server.profiling("a") as files:
        pass
    assert json.loads(gzip.decompress(files[0].read_bytes())) == {"traceEvents": []}


def test_sglang_is_told_in_the_request(profiled: Profiled) -> None:
    server = profiled(
        "pytorch", "--sglang-profiler", cls=SglangLike, on_demand=True, args=["with_stack=true", "num_steps_=2"]
    )
    with server:
        assert "--profiler-config" not in ask(server, "/argv")["argv"]
        with server.profiling("a") as files:
            pass
    assert [path.name for path in files] == ["1.5-TP-0.trace.json.gz"]


def test_sglang_that_has_stopped_by_itself_has_its_trace(profiled: Profiled) -> None:
    server = profiled("pytorch", "--sglang-profiler", cls=SglangLike, on_demand=True, args=["num_steps=5"])
    with server, server.profiling("a") as files:
        pass
    assert [path.name for path in files] == ["1.5-TP-0.trace.json.gz"]


def test_settings_are_passed_on_with_their_types() -> None:
    server = VLLMServer(
        model="m", profile={"tool": "pytorch", "args": ["torch_profiler_with_stack=true", "wait=3", "name=x"]}
    )
    words = server.command().argv
    config = json.loads(words[words.index("--profiler-config") + 1])
    assert config.pop("torch_profiler_dir").endswith("/profiles/vllm/.SESSION")
    assert config == {"profiler": "torch", "torch_profiler_with_stack": True, "wait": 3, "name": "x"}


def test_old_vllm_is_told_by_a_variable(installed_vllm: Path, tmp_path: Path, nothing_left: None) -> None:
    set_version(installed_vllm, "0.12.1")
    settings: dict[str, Any] = {"model": "m", "binary_path": str(installed_vllm), "output_dir": tmp_path / "logs"}
    with VLLMServer(**settings, profile={"tool": "pytorch", "on_demand": True}) as server:
        told = ask(server, "/argv")
        assert "--profiler-config" not in told["argv"]
        assert Path(told["env"]["VLLM_TORCH_PROFILER_DIR"]).parent == server.profile_dir
        with server.profiling("a") as files:
            pass
    assert [path.name for path in files] == ["rank0.1.pt.trace.json.gz"]
    refused = VLLMServer(**settings, profile={"tool": "pytorch", "args": ["with_stack=true"]})
    with pytest.raises(ProfileError, match=r"vLLM 0\.12\.1 takes its settings from VLLM_TORCH_PROFILER_\* in 'env_va"):
        refused.start()


@pytest.mark.parametrize("version", ["0.13.0", "0.32.0+cpu"])
def test_vllm_is_told_by_an_option(installed_vllm: Path, tmp_path: Path, nothing_left: None, version: str) -> None:
    set_version(installed_vllm, version)
    server = VLLMServer(
        model="m",
        binary_path=str(installed_vllm),
        output_dir=tmp_path / "logs",
        profile={"tool": "pytorch", "on_demand": True},
    )
    with server:
        told = ask(server, "/argv")
        assert "VLLM_TORCH_PROFILER_DIR" not in told["env"]
        assert "--profiler-config" in told["argv"]


def test_old_vllm_cannot_begin_a_capture_range(installed_vllm: Path, nsys: object) -> None:
    set_version(installed_vllm, "0.12.1")
    server = VLLMServer(
        model="m",
        binary_path=str(installed_vllm),
        profile={"tool": "nsys", "on_demand": True, "args": ["--capture-range=cudaProfilerApi"]},
    )
    with pytest.raises(ProfileError, match=r"vLLM 0\.12\.1 cannot begin a capture range"):
        server.start()


def test_vllm_under_nsys_spawns_its_workers(nsys: object) -> None:
    server = VLLMServer(model="m", profile={"tool": "nsys"})
    assert server.command().env_vars["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    own = VLLMServer(model="m", env_vars={"VLLM_WORKER_MULTIPROC_METHOD": "fork"}, profile={"tool": "nsys"})
    assert own.command().env_vars["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"


# What cannot be done is said before anything is started.


def refusal(server: InferenceServer) -> str:
    with pytest.raises(ProfileError) as caught:
        server.start()
    assert server.launches == 0
    return str(caught.value)


def test_backend_without_endpoints(profiled: Profiled) -> None:
    text = refusal(profiled("pytorch"))
    assert "backend 'command' has no endpoints for it; py-spy and nsys work with every server" in text


@pytest.mark.parametrize("words", [["--profiler-config", "{}"], ["--profiler-config.profiler=torch"]])
def test_own_profiler_config_is_refused(profiled: Profiled, words: list[str]) -> None:
    server = profiled("pytorch", cls=VllmLike, settings={"config": {"server_args": words}})
    assert "--profiler-config is set by pytest-infserver; leave it out of 'config:'" in refusal(server)


def test_own_variable_of_old_vllm_is_refused(installed_vllm: Path, tmp_path: Path) -> None:
    set_version(installed_vllm, "0.12.1")
    server = VLLMServer(
        model="m",
        binary_path=str(installed_vllm),
        output_dir=tmp_path,
        env_vars={"VLLM_TORCH_PROFILER_DIR": "/elsewhere"},
        profile={"tool": "pytorch"},
    )
    assert "VLLM_TORCH_PROFILER_DIR is set by pytest-infserver; leave it out of 'env_vars:'" in refusal(server)


@pytest.mark.parametrize("word", ["--stack", "stack", "--stack=true"])
def test_arguments_are_settings(profiled: Profiled, word: str) -> None:
    text = refusal(profiled("pytorch", cls=VllmLike, args=[word]))
    assert f"settings of the engine's profiler such as with_stack=true, not '{word}'" in text


def test_server_that_was_not_started_for_it(profiled: Profiled) -> None:
    with profiled(None, cls=VllmLike) as server, pytest.raises(ProfileError, match="has to be started for it: write"):
        server.start_profile("a", tool="pytorch")


def test_engine_that_does_not_know_the_endpoint(profiled: Profiled) -> None:
    # SGLang's class, but an engine that answers 404.
    with profiled("pytorch", cls=SglangLike, on_demand=True) as server:
        with pytest.raises(
            ProfileError, match="the server has no /start_profile: it was not started for this profiler"
        ):
            server.start_profile("a")
        assert not server.runtime.profiling.is_running()
        assert names(server.profile_dir) == [f".{server.allotment.place.session}" if server.allotment.place else ""]


# What goes wrong in a profile.


def test_engine_is_never_told_to_stop_twice(profiled: Profiled) -> None:
    with profiled("pytorch", cls=VllmLike, on_demand=True) as server:
        server.start_profile("a")
        server.stop_profile()
        with pytest.raises(ProfileError, match="no profile is running"):
            server.stop_profile()
        # It would have crashed.
        assert server.check_health()


def test_engine_that_writes_nothing(profiled: Profiled) -> None:
    with profiled("pytorch", "--no-trace", cls=VllmLike, on_demand=True, flush_timeout=1) as server:
        server.start_profile("a")
        with pytest.raises(ProfileError, match="it has written no trace after 1 s"):
            server.stop_profile()
        assert "a" not in names(server.profile_dir)


def test_flush_timeout_is_kept_and_the_late_trace_is_not_taken_for_the_next_one(profiled: Profiled) -> None:
    words = ("--trace-late", "--trace-delay", "3")
    with profiled("pytorch", *words, cls=VllmLike, on_demand=True, flush_timeout=1) as server:
        server.start_profile("a")
        with pytest.raises(
            ProfileError, match=r"it still writes its traces after 1 s; it is below /.*/profiles/fake/\."
        ):
            server.stop_profile()
        time.sleep(3)
        server.start_profile("b")
        with pytest.raises(ProfileError, match="it has written no trace after 1 s"):
            server.stop_profile()
        assert server.profiles == []


def test_answer_that_does_not_come_is_given_up(profiled: Profiled) -> None:
    with profiled("pytorch", "--trace-delay", "60", cls=VllmLike, on_demand=True, flush_timeout=1) as server:
        server.start_profile("a")
        begin = time.monotonic()
        with pytest.raises(ProfileError, match="POST /stop_profile"):
            server.stop_profile()
        assert time.monotonic() - begin < 20


def test_killed_server_has_no_trace_which_is_said(profiled: Profiled) -> None:
    server = profiled("pytorch", cls=VllmLike).start()
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    server.stop()
    (text,) = warnings(server)
    assert text.endswith("the server has ended: the engine writes its trace when it is asked to")
    assert server.profiles == []


def test_server_that_dies_while_it_writes(profiled: Profiled) -> None:
    server = profiled("pytorch", "--trace-delay", "60", cls=VllmLike, on_demand=True).start()
    server.start_profile("a")
    threading.Timer(0.5, os.kill, (server.pid or 0, signal.SIGKILL)).start()
    with pytest.raises(ProfileError, match="POST /stop_profile"):
        server.stop_profile()
    server.stop()
    assert server.state is ServerState.STOPPED


def test_long_flush_is_told_as_progress(profiled: Profiled) -> None:
    told: list[str] = []
    with profiled("pytorch", "--trace-delay", "4", cls=VllmLike, on_demand=True) as server:
        server.on_progress = told.append
        with server.profiling("a"):
            pass
    assert told == ["fake (command): pytorch writes its trace, 3 s"]


def test_files_of_one_name_in_several_folders_are_all_kept(profiled: Profiled) -> None:
    with profiled("pytorch", cls=VllmLike, on_demand=True) as server:
        server.start_profile("a")
        assert server.allotment.place is not None
        for rank in ("dp0", "dp1"):
            folder = server.profile_dir / f".{server.allotment.place.session}" / rank
            folder.mkdir()
            (folder / "trace.json").write_text(rank)
        files = server.stop_profile()
    assert [str(path.relative_to(server.profile_dir)) for path in files] == [
        "a/dp0/trace.json",
        "a/dp1/trace.json",
        "a/rank0.1.pt.trace.json.gz",
    ]


def test_backends_know_how_they_are_asked() -> None:
    assert VLLMServer.torch_endpoints is not None
    assert VLLMServer.torch_endpoints.body("/x", {}) is None
    assert SGLangServer.torch_endpoints is not None
    assert SGLangServer.torch_endpoints.body("/x", {"num_steps": 3}) == {"output_dir": "/x", "num_steps": 3}
    assert SGLangServer.cuda_endpoints is not None
    assert SGLangServer.cuda_endpoints.body("/x", {})["activities"] == ["CUDA_PROFILER"]  # type: ignore[index]
