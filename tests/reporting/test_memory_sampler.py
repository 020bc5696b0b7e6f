"""How much memory the servers of a run use, as a thread sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_infserver import CommandServer
from pytest_infserver.reporting.record import memory_sampler
from pytest_infserver.reporting.record.memory_sampler import MemorySampler, gpu_memory
from pytest_infserver.system.gpus import Gpu


def gpu(uuid: str, used: int | None, processes: dict[int, int] | None) -> Gpu:
    return Gpu(uuid, 0, "H100", used, processes)


def test_gpu_memory_is_that_of_the_servers_processes() -> None:
    gpus = [gpu("a", 900, {1: 100, 2: 200}), gpu("b", 800, {1: 50, 9: 700}), gpu("c", 5, None)]
    assert gpu_memory(gpus, ["a"], [1, 3]) == 150


def test_where_the_driver_knows_other_process_ids_the_servers_own_devices_count() -> None:
    gpus = [gpu("a", 900, {77: 0}), gpu("b", 800, {}), gpu("c", None, None)]
    assert gpu_memory(gpus, ["a", "c"], [1]) == 900
    assert gpu_memory(gpus, ["c"], [1]) is None
    assert gpu_memory([], ["a"], [1]) is None


def samplers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "infserver-memory"}


@pytest.mark.usefixtures("hard_limit")
def test_a_running_server_is_looked_at_until_the_end(fake_server: Callable[..., CommandServer]) -> None:
    # The run that this test belongs to may look at servers of its own.
    others = samplers()
    with fake_server("--children", "2") as server:
        watch = MemorySampler(lambda: [server], interval=0.05)
        assert watch.points(server) == []
        watch.wake()
        deadline = time.monotonic() + 30
        while len(watch.points(server)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        watch.end()
        points = watch.points(server)
    assert len(points) >= 3
    assert all(rss > 5_000_000 and of_gpus is None for _, (rss, of_gpus) in points)
    assert samplers() == others
    # A wake after the end starts nothing any more.
    watch.wake()
    assert samplers() == others


@pytest.mark.usefixtures("hard_limit")
def test_gpus_are_asked_only_for_servers_that_have_some(
    fake_server: Callable[..., CommandServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def read(*_: Any) -> list[Gpu]:
        asked.append(1)
        return [gpu("GPU-1", 4096, {})]

    monkeypatch.setattr(memory_sampler, "_gpus", read)
    with fake_server() as server:
        watch = MemorySampler(lambda: [server])
        watch._look()
        assert not asked
        server.device_keys = ("GPU-1",)
        watch._look()
        watch.end()
    assert watch.points(server)[-1][1][1] == 4096


def test_a_server_that_does_not_run_has_no_points(fake_server: Callable[..., CommandServer]) -> None:
    server = fake_server()
    watch = MemorySampler(lambda: [server])
    watch._look()
    assert watch.points(server) == []


@pytest.mark.usefixtures("hard_limit")
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
def test_a_look_that_fails_is_followed_by_others(
    fake_server: Callable[..., CommandServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_server() as server:
        failures = [OSError("too many open files"), RuntimeError("odd")]
        tree = server.process_tree

        def process_tree() -> list[int]:
            if failures:
                raise failures.pop()
            return tree()

        monkeypatch.setattr(server, "process_tree", process_tree)
        watch = MemorySampler(lambda: [server], interval=0.05)
        watch.wake()
        deadline = time.monotonic() + 30
        while not watch.points(server) and time.monotonic() < deadline:
            time.sleep(0.01)
        watch.end()
    assert watch.points(server)
