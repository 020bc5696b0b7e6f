"""SGLang's own faults, through the plain API and through the plugin. Its kernels are stubs: see stubs/sgl_kernel."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

import psutil
import pytest

from pytest_infserver import (
    ConfigError,
    InferenceServer,
    PortInUseError,
    ServerStartupError,
    ServerStartupTimeout,
)
from pytest_infserver.launcher.startup import ports
from pytest_infserver.reporting.record.engine_metrics import EngineMetrics

from .conftest import all_gone, occupied_while_booting, terminate_when, tree

pytestmark = pytest.mark.engine("sglang")
Make = Callable[..., InferenceServer]


TWO_RANKS = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}


@pytest.mark.nightly
def test_plain_api_without_metrics_and_a_kill_of_the_main_process(make_server: Make) -> None:
    phases: list[str] = []
    server = make_server("sglang", {"enable-metrics": False})
    server.on_wait = lambda one: phases.append(one.phase) if one.phase not in phases else None
    server.start()
    assert phases[0] == "importing"
    assert len(phases) > 1
    metrics = EngineMetrics()
    assert [metrics.read(server) for _ in range(3)] == [None] * 3
    metrics.close()
    # It is asked once, and has said that it has none.
    assert server.read_log().count("GET /metrics") == 1
    processes = tree(server)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert server.wait_death(60)
    assert "was killed by SIGKILL, while it was in use" in str(server.why_died())
    server.stop()
    assert all_gone(processes)


def test_kill_of_the_scheduler_fails_the_test_that_runs(run_project: Callable[..., pytest.RunResult]) -> None:
    tests = """
        import os, signal, psutil, requests

        def test_kill(inference_server):
            processes = psutil.Process(inference_server.pid).children(recursive=True)
            [scheduler] = [one for one in processes if "scheduler" in (" ".join(one.cmdline()) or one.name())]
            os.kill(scheduler.pid, signal.SIGKILL)
            body = {"model": inference_server.model, "prompt": "Hello", "max_tokens": 4}
            requests.post(inference_server.url_for("/v1/completions"), json=body, timeout=300).raise_for_status()
    """
    text = run_project("sglang", tests).stdout.str()
    assert "1 failed" in text or "1 error" in text
    assert "while it was in use" in text, text


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"no-such-flag": True}, "error: unrecognized arguments: --no-such-flag"),
        pytest.param(
            {"mem-fraction-static": 0.0001},
            "ValueError: Loaded weights leave no GPU memory for the KV cache",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_start_that_fails_names_the_cause(make_server: Make, arguments: dict[str, object], cause: str) -> None:
    server = make_server("sglang", arguments)
    with pytest.raises(ServerStartupError) as caught:
        server.start()
    lines = str(caught.value).splitlines()
    assert cause in lines[1], str(caught.value)
    assert not isinstance(caught.value, ServerStartupTimeout)


def test_a_missing_model(make_server: Make) -> None:
    with pytest.raises(ServerStartupError) as caught:
        make_server("sglang", model="/no/such/model").start()
    assert "OSError: " in str(caught.value).splitlines()[1]
    assert "a path that does not exist on this machine: /no/such/model" in str(caught.value)


@pytest.mark.nightly
def test_a_port_that_is_taken_while_it_boots(make_server: Make) -> None:
    server = make_server("sglang", port=8990)
    with occupied_while_booting(server), pytest.raises(PortInUseError) as caught:
        server.start()
    assert "error while attempting to bind on address ('127.0.0.1', 8990)" in str(caught.value).splitlines()[1]


@pytest.mark.parametrize("moment", [pytest.param("importing", marks=pytest.mark.nightly), "starting the engine"])
def test_sigterm_during_the_start(make_server: Make, moment: str) -> None:
    server = make_server("sglang")
    seen = terminate_when(server, lambda one: one.phase == moment and (one.runtime.starting_seconds or 0) > 2)
    with pytest.raises(ServerStartupError, match="was killed by SIGTERM, before it was ready"):
        server.start()
    assert seen
    assert all_gone(seen)


def test_an_option_of_the_seed_that_sglang_never_had(make_server: Make) -> None:
    server = make_server("sglang", {"mem-fraction-reserved": 0.1})
    with pytest.raises(
        ConfigError, match=r"sglang 0\.5\.23 has no --mem-fraction-reserved: write --mem-fraction-static"
    ):
        server.start()
    assert server.launches == 0


@pytest.mark.nightly
def test_the_ports_of_data_parallel_are_those_that_are_kept_free(make_server: Make) -> None:
    """SGLang 0.5.23 cannot run data parallel attention on a CPU, but it binds its ports before it finds that out."""
    arguments = {"tp": 2, "dp": 2, "enable-dp-attention": True}
    server = make_server("sglang", arguments, env_vars=TWO_RANKS)
    bound: set[int] = set()

    def look(one: InferenceServer) -> None:
        if one.pid is None:
            return
        with contextlib.suppress(psutil.Error):
            for process in tree(one):
                connections = process.net_connections("tcp")
                bound.update(entry.laddr.port for entry in connections if entry.status == psutil.CONN_LISTEN)

    server.on_wait = look
    with pytest.raises(ServerStartupError, match="AttributeError: 'TorchNativeAttnBackend' object has no attribute"):
        server.start()
    derived = set(server.derived_ports(server.port))
    drawn = {port for port in bound if port in server.drawn_ports or port >= ports.FIRST_EPHEMERAL}
    assert bound - drawn - {server.port} <= derived
    assert len(bound & derived) >= 2, bound
