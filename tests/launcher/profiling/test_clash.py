"""What keeps a profiler from working, and what does not."""

from __future__ import annotations

import pytest

from pytest_infserver.launcher.profiling.clash import clash_of


@pytest.mark.parametrize(
    "argv",
    [
        ["nsys", "profile", "vllm"],
        ["/opt/nvidia/bin/ncu", "vllm"],
        ["env", "A=1", "rocprofv3", "--", "vllm"],
        ["env", "-u", "LD_PRELOAD", "A=1", "B=2", "nsys", "profile", "--trace=cuda", "vllm"],
        ["numactl", "--all", "/opt/rocm/bin/rocprof"],
        ["taskset", "-c", "0,1", "nice", "-n", "5", "nsys", "profile", "vllm"],
    ],
)
def test_command_under_a_profiler(argv: list[str]) -> None:
    text = clash_of(argv, {})
    assert text is not None
    assert text.startswith("the server's command starts '")


@pytest.mark.parametrize(
    "argv", [["vllm", "serve", "m", "--served-model-name", "nsys"], ["/nsys/bin/vllm", "serve"], ["my-nsys"], []]
)
def test_command_that_only_looks_like_it(argv: list[str]) -> None:
    assert clash_of(argv, {}) is None


@pytest.mark.parametrize(
    "value",
    [
        "/opt/rocm/lib/librocprofiler-sdk-tool.so",
        "/lib/libtcmalloc.so:/opt/nvidia/libToolsInjection64.so",
        "/lib/libtcmalloc.so /opt/rocm/lib/libroctracer64.so",
        "libcupti.so.12",
        "/opt/intel/libittnotify_collector.so",
    ],
)
def test_preloaded_profiler(value: str) -> None:
    text = clash_of(["vllm"], {"LD_PRELOAD": value})
    assert text is not None
    assert text.startswith("LD_PRELOAD loads ")
    # Only the one that is in the way is named.
    assert "tcmalloc" not in text


@pytest.mark.parametrize("value", ["", "/lib/libtcmalloc.so", "libjemalloc.so.2:libasan.so", "/rocprof/libmine.so"])
def test_other_preloaded_libraries_do_no_harm(value: str) -> None:
    assert clash_of(["vllm"], {"LD_PRELOAD": value}) is None


@pytest.mark.parametrize(
    "name",
    [
        "CUDA_INJECTION64_PATH",
        "NVTX_INJECTION64_PATH",
        "ROCP_TOOL_LIBRARIES",
        "ROCP_TOOL_LIB",
        "HSA_TOOLS_LIB",
        "KOKKOS_TOOLS_LIBS",
    ],
)
def test_injected_library(name: str) -> None:
    assert clash_of(["vllm"], {name: "/x.so"}) == (
        f"{name} is set to /x.so: another profiler is loaded already, as if pytest itself ran under it"
    )
    assert clash_of(["vllm"], {name: ""}) is None


def test_nothing_in_the_way() -> None:
    assert clash_of(["vllm", "serve"], {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0"}) is None
