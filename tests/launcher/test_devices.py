"""GPU slots: which devices there are, how many a server needs, and that nobody gets what somebody else has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import requests
from fake_driver import Driver
from isolation import in_a_thread, own_state_dir

from pytest_infserver import ServerStartupError, create_server
from pytest_infserver.launcher.devices import (
    Demand,
    Device,
    DeviceClaim,
    Visible,
    claim,
    demand_of,
    describe_holder,
    describe_taken,
    shortage,
    shortage_together,
    visible_devices,
)
from pytest_infserver.launcher.devices import claims as claims_module
from pytest_infserver.launcher.devices import visible as visible_module
from pytest_infserver.system.disk.locks import take_shared_lock
from pytest_infserver.system.disk.places import shared_lock_file
from pytest_infserver.system.gpus import Gpu, NoTelemetry

pytestmark = [pytest.mark.usefixtures("hard_limit", "nothing_left", "own_state")]

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
SILENCE = "nothing tells about GPUs"
FOUR = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
Machine = Callable[..., None]


@pytest.fixture
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INFSERVER_DEVICE_LOCKS")
    own_state_dir(monkeypatch, tmp_path / "state")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, own_state: None) -> Machine:
    """Give the machine GPUs with these UUIDs: ``machine("GPU-a", "GPU-b", amd=False)``; it has none at first."""
    found: list[Gpu] | None = None

    def read() -> list[Gpu]:
        if found is None:
            raise NoTelemetry(SILENCE)
        return found

    def have(*uuids: str, amd: bool = False) -> None:
        nonlocal found
        found = [Gpu(uuid, index, "Stub", None, None, amd) for index, uuid in enumerate(uuids)]

    monkeypatch.setattr(visible_module, "read_gpus", read)
    return have


@pytest.fixture
def claimed() -> Iterator[Callable[..., DeviceClaim | None]]:
    """Claim, and give back at the end."""
    made: list[DeviceClaim] = []

    def take(visible: Visible, demand: Demand, *avoid: str) -> DeviceClaim | None:
        found = claim(visible, demand, frozenset(avoid))
        if found is not None:
            made.append(found)
        return found

    yield take
    for one in made:
        one.release()


def labels(visible: Visible) -> list[str]:
    return [device.label for device in visible.devices]


def demand(count: int, **fields: Any) -> Demand:
    return Demand(count, f"gpus: {count}", **fields)


def own_list(text: str, count: int | None = None) -> Demand:
    fixed = visible_module.entries(text)
    return Demand(len(fixed) if count is None else count, "own", fixed, "CUDA_VISIBLE_DEVICES", hides=count == 0)


def got(found: DeviceClaim | None) -> list[str] | None:
    return None if found is None else [device.label for device in found.devices]


# What there is.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4,5", ["4", "5"]),
        (" 4 , 5 ", ["4", "5"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("all", []),
        ("0,-1,1", ["0"]),
        ("0,,1", ["0"]),
        ("0,1.5", ["0"]),
        ("0,٣", ["0"]),
        ("1,0,1,01", ["1", "0"]),
        ("GPU-a,GPU-b,GPU-a", ["GPU-a", "GPU-b"]),
        ("MIG-1,MIG-GPU-a/1/0", ["MIG-1", "MIG-GPU-a/1/0"]),
    ],
)
def test_list_of_the_caller_counts_without_a_driver(text: str, expected: list[str]) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        visible = visible_devices({name: text})
        assert (visible.variable, labels(visible)) == (name, expected)
        assert [device.index for device in visible.devices] == list(range(len(expected)))
        assert visible.source == (f"{name}={text}" if text else f"{name} is empty")


def test_machine_without_gpus() -> None:
    visible = visible_devices({})
    assert (visible.variable, visible.devices, visible.source) == ("CUDA_VISIBLE_DEVICES", (), SILENCE)


@pytest.mark.parametrize(
    ("amd", "variable", "shows"), [(False, "CUDA_VISIBLE_DEVICES", "NVML"), (True, "HIP_VISIBLE_DEVICES", "amdsmi")]
)
def test_all_gpus_of_the_driver_without_a_list(machine: Machine, amd: bool, variable: str, shows: str) -> None:
    machine("GPU-a", "GPU-b", amd=amd)
    visible = visible_devices({})
    assert visible.devices == (Device("0", "GPU-a", 0), Device("1", "GPU-b", 1))
    assert (visible.variable, visible.source) == (variable, f"2 GPUs that {shows} shows")


def test_list_is_read_as_the_driver_knows_the_devices(machine: Machine) -> None:
    machine("GPU-aa1", "GPU-ab2", "GPU-c")
    visible = visible_devices({"CUDA_VISIBLE_DEVICES": "1,GPU-ab,GPU-c,0,MIG-x"})
    assert [(device.label, device.key) for device in visible.devices] == [
        ("1", "GPU-ab2"),
        ("GPU-c", "GPU-c"),
        ("0", "GPU-aa1"),
        ("MIG-x", "MIG-x"),
    ]
    for invalid in ("3", "GPU-a", "GPU-z"):
        assert labels(visible_devices({"CUDA_VISIBLE_DEVICES": f"0,{invalid},1"})) == ["0"], invalid


def test_list_that_the_driver_cannot_judge_counts(machine: Machine) -> None:
    """A driver that shows no GPU says nothing, and AMD's UUIDs in the environment are not those of amdsmi."""
    machine()
    assert labels(visible_devices(FOUR)) == ["4", "5", "6", "7"]
    machine("uuid-one", amd=True)
    assert labels(visible_devices({"HIP_VISIBLE_DEVICES": "GPU-1234"})) == ["GPU-1234"]


def test_numbers_of_hip_are_relative_to_rocr() -> None:
    environ = {"ROCR_VISIBLE_DEVICES": "5,7", "HIP_VISIBLE_DEVICES": "1,2"}
    assert visible_devices(environ).devices == (Device("1", "index-7", 0),)
    visible = visible_devices({"ROCR_VISIBLE_DEVICES": "5,7"})
    assert visible.devices == (Device("0", "index-5", 0), Device("1", "index-7", 1))
    assert (visible.variable, visible.source) == ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES=5,7")


def test_which_variable_counts(machine: Machine) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "0"}
    assert labels(visible_devices(environ)) == ["0"]
    machine("GPU-a", "GPU-b")
    nvidia = visible_devices(environ)
    assert (nvidia.variable, labels(nvidia), nvidia.overruled) == ("CUDA_VISIBLE_DEVICES", ["0"], ())
    assert labels(visible_devices({"HIP_VISIBLE_DEVICES": "1"})) == ["0", "1"]
    machine("a", "b", amd=True)
    del environ["ROCR_VISIBLE_DEVICES"]
    amd = visible_devices(environ)
    assert (amd.variable, labels(amd), amd.overruled) == ("HIP_VISIBLE_DEVICES", ["1"], ("CUDA_VISIBLE_DEVICES",))
    # vLLM refuses to start where the two differ.
    assert amd.environment(amd.devices) == {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": None}
    assert labels(visible_devices({"CUDA_VISIBLE_DEVICES": "1"})) == ["1"]


def test_numbers_mean_the_same_to_cuda_and_to_the_driver(machine: Machine) -> None:
    def order(environ: dict[str, str]) -> str | None:
        visible = visible_devices(environ)
        return visible.environment(visible.devices[:1]).get("CUDA_DEVICE_ORDER")

    assert order(FOUR) is None
    machine("GPU-a")
    assert order({}) is None
    machine("GPU-a", "GPU-b")
    assert order({}) == order({"CUDA_VISIBLE_DEVICES": "1"}) == "PCI_BUS_ID"
    assert order({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) == "PCI_BUS_ID"
    assert order({"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "1"}) is None
    assert order({"CUDA_VISIBLE_DEVICES": "GPU-b"}) is None
    machine("a", "b", amd=True)
    assert order({}) is None


# What a server needs.


@pytest.mark.parametrize(
    ("backend", "settings", "count", "reason"),
    [
        ("vllm", {"gpus": 2}, 2, "gpus: 2"),
        ("vllm", {"gpus": 0}, 0, "gpus: 0"),
        ("vllm", {}, 4, "a vllm server without a size takes all 4"),
        ("sglang", {}, 4, "a sglang server without a size takes all 4"),
        ("transformers", {}, 4, "a transformers server without a size takes all 4"),
        ("transformers", {"args": {"device": "cpu"}}, 0, "--device cpu"),
        ("llamacpp", {}, 0, "a llamacpp server without 'gpus'"),
        ("llamacpp", {"gpus": 1}, 1, "gpus: 1"),
        (
            "vllm",
            {"args": {"tensor-parallel-size": 2, "pipeline_parallel_size": 3}},
            6,
            "tensor-parallel-size 2 x pipe",
        ),
        ("vllm", {"args": {"tensor-parallel-size": 1}}, 1, "tensor-parallel-size 1"),
        ("vllm", {"args": ["-tp", "2", "-dp=2", "-pp", "2"]}, 8, "tensor-parallel-size 2 x pipeline-parallel-size 2 x"),
        ("vllm", {"args": ["--tensor_parallel_size=3"]}, 3, "tensor-parallel-size 3"),
        ("vllm", {"args": ["-tp", "1", "--tensor-parallel-size", "2"]}, 2, "tensor-parallel-size 2"),
        ("vllm", {"args": ["-tp", "4", "--nnodes", "2"]}, 2, "tensor-parallel-size 4 on 2 nodes"),
        (
            "vllm",
            {"args": ["-dp", "2", "--data-parallel-rank", "1", "-tp", "2"]},
            2,
            "tensor-parallel-size 2 x data",
        ),
        ("vllm", {"args": ["-dp=4", "-dpn=0"]}, 1, "data-parallel-size 1"),
        ("vllm", {"args": ["--headless", "-dp", "4", "-dpl", "2"]}, 2, "data-parallel-size 2"),
        ("vllm", {"args": ["--headless", "-dp", "3", "--data-parallel-start-rank", "1"]}, 3, "data-parallel-size 3"),
        ("vllm", {"args": ["-dp", "4", "--data-parallel-size-local=0"]}, 0, "data-parallel-size 0"),
        ("vllm", {"args": ["-tp", "many"]}, 4, "a vllm server without a size"),
        ("vllm", {"args": {"tensor-parallel-size": 2}, "gpus": 1}, 1, "gpus: 1"),
        ("sglang", {"args": {"tp": 2, "dp-size": 2}}, 4, "tensor-parallel-size 2 x data-parallel-size 2"),
        ("sglang", {"args": {"tp-size": 2, "dp": 2, "enable-dp-attention": True}}, 2, "tensor-parallel-size 2"),
        ("sglang", {"args": {"tp": 2, "ep-size": 2, "pp-size": 2}}, 4, "tensor-parallel-size 2 x pipeline-parallel-si"),
        ("vllm", {"env": "0,1"}, 2, "CUDA_VISIBLE_DEVICES=0,1 in env_vars"),
        ("llamacpp", {"env": "3"}, 1, "CUDA_VISIBLE_DEVICES=3 in env_vars"),
        ("vllm", {"env": ""}, 0, "CUDA_VISIBLE_DEVICES= in env_vars"),
        ("vllm", {"env": "0,-1,1"}, 1, "CUDA_VISIBLE_DEVICES=0,-1,1 in env_vars"),
        ("vllm", {"env": "0,0"}, 1, "CUDA_VISIBLE_DEVICES=0,0 in env_vars"),
        ("vllm", {"env": None}, 4, "a vllm server without a size takes all 4"),
        ("vllm", {"env": "0,1,2,3", "gpus": 1}, 1, "gpus: 1, CUDA_VISIBLE_DEVICES=0,1,2,3 in env_vars"),
        ("vllm", {"env": "0,1", "args": {"tensor-parallel-size": 4}}, 2, "CUDA_VISIBLE_DEVICES=0,1 in env_vars"),
        ("remote", {"url": "http://127.0.0.1:9"}, 0, "it is not started here"),
        ("vllm", {"url": "http://127.0.0.1:9", "gpus": 2}, 0, "it is not started here"),
    ],
)
def test_demand(backend: str, settings: dict[str, Any], count: int, reason: str) -> None:
    keywords: dict[str, Any] = {key: value for key, value in settings.items() if key in ("gpus", "url")}
    if "args" in settings:
        keywords["config"] = {"server_args": settings["args"]}
    if "env" in settings:
        keywords["env_vars"] = {"CUDA_VISIBLE_DEVICES": settings["env"]}
    found = demand_of(create_server(backend, "m", **keywords), visible_devices(FOUR))
    assert (found.count, found.hides) == (count, settings.get("gpus") == 0)
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("mask", "labels"), [("0", ["0"]), ("1,0", ["1", "0"]), ("0.0,0.1", ["0"]), ("2.1, x", ["2"]), ("", ["4", "5"])]
)
def test_a_mask_of_intels_claims_those_devices_and_no_others(
    claimed: Callable[..., DeviceClaim | None], mask: str, labels: list[str]
) -> None:
    """They are apart from NVIDIA's of the same numbers, and one server at a time has each."""
    visible = visible_devices({"CUDA_VISIBLE_DEVICES": "4,5"})
    demand = demand_of(create_server("vllm", "m", env_vars={"ZE_AFFINITY_MASK": mask}), visible)
    assert demand.count == len(labels)
    first = claimed(visible, demand)
    assert first is not None
    assert [device.label for device in first.devices] == labels
    assert claimed(visible, demand) is None
    if mask:
        assert first.env_vars == {}
        assert claimed(visible, Demand(2, "all of NVIDIA's")) is not None


@pytest.mark.parametrize("environ", [{}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_only_what_is_said_counts_where_there_are_no_gpus(environ: dict[str, str]) -> None:
    visible = visible_devices(environ)
    for backend in ("vllm", "sglang", "transformers"):
        server = create_server(backend, "m", config={"server_args": ["--tensor-parallel-size", "2"]})
        assert demand_of(server, visible).count == 0
        assert demand_of(create_server(backend, "m", gpus=2), visible).count == 2
        fixed = create_server(backend, "m", env_vars={"HIP_VISIBLE_DEVICES": "0,1"})
        assert demand_of(fixed, visible) == Demand(
            2, "HIP_VISIBLE_DEVICES=0,1 in env_vars", ("0", "1"), "HIP_VISIBLE_DEVICES"
        )


def test_shortage(machine: Machine) -> None:
    two = visible_devices({"CUDA_VISIBLE_DEVICES": "0,1"})
    assert shortage(two, demand(2)) is None
    assert shortage(two, demand(0, hides=True)) is None
    assert shortage(two, demand(8)) == "needs 8 GPUs (gpus: 8), and this run has 2 (CUDA_VISIBLE_DEVICES=0,1)"
    assert shortage(visible_devices({}), demand(1)) == f"needs 1 GPU (gpus: 1), and this run has none ({SILENCE})"
    # What the server names itself need not be in the caller's list, and without a driver nobody knows better.
    assert shortage(two, own_list("5,6")) is None
    assert shortage(two, own_list("5,6", 3)) == "needs 3 GPUs (own), and its CUDA_VISIBLE_DEVICES names 2"
    machine("GPU-a", "GPU-b")
    text = "needs GPU 5 (own), which this machine does not have (2 GPUs that NVML shows)"
    assert shortage(visible_devices({}), own_list("0,5")) == text
    assert shortage(visible_devices({}), own_list("0,GPU-b")) is None
    assert "some of them are the same device" in (shortage(visible_devices({}), own_list("0,GPU-a")) or "")


def test_shortage_of_several_servers_together() -> None:
    four = visible_devices(FOUR)
    assert shortage_together(four, {}) is None
    assert shortage_together(four, {"a": demand(2), "b": demand(2), "c": demand(0)}) is None
    assert shortage_together(four, {"a": demand(2), "b": demand(3), "c": demand(0)}) == (
        "need 5 GPUs together (a: 2 GPUs (gpus: 2); b: 3 GPUs (gpus: 3)), and this run has 4"
        " (CUDA_VISIBLE_DEVICES=4,5,6,7)"
    )
    assert shortage_together(four, {"a": demand(8)}) == f"a {shortage(four, demand(8))}"
    # What is named is gone for the others, and what can be one of several gives way.
    assert shortage_together(four, {"a": own_list("4,5"), "b": demand(2)}) is None
    assert shortage_together(four, {"a": own_list("4,5"), "b": demand(3)}) is not None
    assert shortage_together(four, {"a": own_list("4,5"), "b": own_list("5,6")}) is not None
    assert shortage_together(four, {"a": own_list("4,5", 1), "b": own_list("4"), "c": own_list("5,6", 1)}) is None
    assert shortage_together(four, {"a": own_list("0"), "b": demand(4)}) is None


# Who has it.


def test_all_or_nothing(claimed: Callable[..., DeviceClaim | None]) -> None:
    four = visible_devices(FOUR)
    first = claimed(four, demand(3))
    assert got(first) == ["4", "5", "6"]
    assert first is not None
    assert first.env_vars == {"CUDA_VISIBLE_DEVICES": "4,5,6"}
    assert len(first.lock_fds) == 3
    assert claimed(four, demand(2)) is None
    assert got(claimed(four, demand(1))) == ["7"]
    assert claimed(four, demand(1)) is None
    first.release()
    first.release()
    assert got(claimed(four, demand(3))) == ["4", "5", "6"]


def test_neighbours_are_taken_where_there_are_some(claimed: Callable[..., DeviceClaim | None]) -> None:
    four = visible_devices(FOUR)
    assert got(claimed(four, own_list("5"))) == ["5"]
    assert got(claimed(four, demand(2))) == ["6", "7"]
    assert claimed(four, demand(2)) is None


def test_no_neighbours_are_better_than_nothing(claimed: Callable[..., DeviceClaim | None]) -> None:
    four = visible_devices(FOUR)
    assert got(claimed(four, own_list("5,7"))) == ["5", "7"]
    assert got(claimed(four, demand(2))) == ["4", "6"]


def test_devices_to_avoid(claimed: Callable[..., DeviceClaim | None]) -> None:
    four = visible_devices(FOUR)
    assert claimed(four, demand(4), "index-4") is None
    assert got(claimed(four, demand(2), "index-4", "index-6")) == ["5", "7"]


def test_one_device_under_two_names_is_one(machine: Machine, claimed: Callable[..., DeviceClaim | None]) -> None:
    machine("GPU-a", "GPU-b")
    twice = visible_devices({"CUDA_VISIBLE_DEVICES": "0,GPU-a"})
    assert claimed(twice, demand(2)) is None
    assert got(claimed(twice, demand(1))) == ["0"]
    assert claimed(visible_devices({"CUDA_VISIBLE_DEVICES": "GPU-a"}), demand(1)) is None
    assert claimed(visible_devices({}), own_list("GPU-a")) is None
    assert got(claimed(visible_devices({}), demand(1))) == ["1"]


def test_what_a_server_names_itself_stays_as_it_is(claimed: Callable[..., DeviceClaim | None]) -> None:
    two = visible_devices({"CUDA_VISIBLE_DEVICES": "4,5"})
    fixed = claimed(two, own_list("7,3"))
    assert fixed is not None
    assert (got(fixed), fixed.env_vars) == (["7", "3"], {})
    assert claimed(two, own_list("3")) is None
    some = claimed(two, own_list("3,2,1", 2))
    assert some is not None
    assert some.env_vars == {"CUDA_VISIBLE_DEVICES": "2,1"}


def test_server_that_must_see_none(claimed: Callable[..., DeviceClaim | None]) -> None:
    for name, nothing in (("CUDA_VISIBLE_DEVICES", ""), ("HIP_VISIBLE_DEVICES", "-1")):
        hidden = claimed(visible_devices({name: "0"}), demand(0, hides=True))
        assert hidden is not None
        assert (hidden.devices, hidden.lock_fds, hidden.env_vars) == ((), [], {name: nothing})
    unknown = claimed(visible_devices(FOUR), demand(0))
    assert unknown is not None
    assert unknown.env_vars == {}
    own = claimed(visible_devices(FOUR), own_list("1", 0))
    assert own is not None
    assert own.env_vars == {"CUDA_VISIBLE_DEVICES": ""}


def test_without_locks_one_process_still_gives_each_device_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claimed: Callable[..., DeviceClaim | None]
) -> None:
    monkeypatch.setenv("INFSERVER_DEVICE_LOCKS", "0")
    two = visible_devices({"CUDA_VISIBLE_DEVICES": "4,5"})
    first = claimed(two, demand(1))
    assert first is not None
    assert first.lock_fds == []
    assert got(claimed(two, demand(1))) == ["5"]
    assert claimed(two, demand(1)) is None
    assert "GPU 4 is taken by another server of this process" in describe_taken(two, demand(1))
    # Who names one wants that one.
    assert got(claimed(two, own_list("4"))) == ["4"]
    first.release()
    assert not (tmp_path / "state").exists()


def test_claim_that_nobody_holds_any_more_is_released() -> None:
    two = visible_devices({"CUDA_VISIBLE_DEVICES": "4"})
    assert got(claim(two, demand(1))) == ["4"]
    again = claim(two, demand(1))
    assert again is not None
    again.release()


def test_interrupted_claim_leaves_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = len(os.listdir("/dev/fd"))
    two = visible_devices({"CUDA_VISIBLE_DEVICES": "4,5"})
    for name in ("sign", "_choose", "_environment"):
        with monkeypatch.context() as patch:
            patch.setattr(claims_module, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                claim(two, demand(1))
        assert len(os.listdir("/dev/fd")) == before
    again = claim(two, demand(2))
    assert again is not None
    again.release()


class Interrupt:
    """Raises KeyboardInterrupt at the ``number``th line of these files that this thread comes to."""

    def __init__(self, number: int) -> None:
        self.place: str | None = None
        self._number = number
        self._seen: set[tuple[str, int]] = set()

    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        files = {"claims.py", "memory.py", "locks.py", "places.py"}
        return self._line if Path(frame.f_code.co_filename).name in files else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        at = (Path(frame.f_code.co_filename).name, frame.f_lineno)
        if event == "line" and self.place is None and at not in self._seen:
            self._seen.add(at)
            if len(self._seen) == self._number:
                self.place = f"{at[0]}:{at[1]}"
                raise KeyboardInterrupt
        return self._line


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt in __del__
@in_a_thread
def test_interrupt_at_any_line_of_a_claim(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    visible = visible_devices(os.environ)
    for number in range(1, 1000):
        interrupt = Interrupt(number)
        server = fake_server("--exit=3", gpus=1)
        sys.settrace(interrupt.call)
        try:
            server.start()
        except (KeyboardInterrupt, ServerStartupError):
            pass
        finally:
            sys.settrace(None)
        assert server.devices is None, interrupt.place
        both = claim(visible, demand(2))
        assert both is not None, interrupt.place
        both.release()
        if interrupt.place is None:
            break
    assert number > 50


def test_threads_that_claim_at_once(claimed: Callable[..., DeviceClaim | None]) -> None:
    """Each wants a half: nobody may hold a part of it and then give up for want of the rest."""
    eight = visible_devices({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"})
    for _ in range(20):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: claim(eight, demand(3)), range(4)))
        taken = [device.label for one in found if one is not None for device in one.devices]
        for one in found:
            if one is not None:
                one.release()
        assert len(taken) == len(set(taken)) == 6


HOLDER = """
import os, sys
from pytest_infserver.launcher.devices import Demand, claim, visible_devices
while sys.stdin.readline():
    one = claim(visible_devices(os.environ), Demand(int(sys.argv[1]), "test"))
    print(",".join(device.label for device in one.devices) if one else "nothing", flush=True)
"""


@pytest.fixture
def other() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that claim at each line that they get, and say what they got."""
    made: list[subprocess.Popen[str]] = []

    def start(count: int, code: str = HOLDER, **variables: str) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(count)],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return made[-1]

    yield start
    for process in made:
        process.kill()
        with process:
            pass


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_processes_that_claim_at_once(other: Callable[..., subprocess.Popen[str]]) -> None:
    processes = [other(3, **FOUR) for _ in range(2)] + [other(1, **FOUR) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
    for process in processes:
        assert process.stdin is not None
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
    taken = [label for answer in answers if answer != "nothing" for label in answer.split(",")]
    assert len(taken) == len(set(taken)) >= 3, answers


def test_killed_holder_frees_its_devices(
    other: Callable[..., subprocess.Popen[str]], claimed: Callable[..., DeviceClaim | None]
) -> None:
    four = visible_devices(FOUR)
    process = other(4, **FOUR)
    assert ask(process) == "4,5,6,7"
    assert claimed(four, demand(1)) is None
    said = describe_holder(four.devices[0])
    assert said.startswith(f"pid {process.pid} (")
    assert "import os" in said
    assert describe_taken(four, own_list("5")) == f"GPU 5 is taken by {describe_holder(four.devices[1])}"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert describe_holder(four.devices[0]) == f"pid {process.pid}, which has ended or cannot be seen from here"
    assert got(claimed(four, demand(4))) == ["4", "5", "6", "7"]


def test_lock_file_that_cannot_be_used_is_a_taken_device(
    tmp_path: Path, claimed: Callable[..., DeviceClaim | None]
) -> None:
    folder = tmp_path / "state" / "pytest-infserver-devices"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "slot-index-4.lock").mkdir()
    four = visible_devices(FOUR)
    never = claim(four, demand(4))
    assert never is not None
    with pytest.raises(ServerStartupError, match=r"GPUs cannot be kept from other runs: .*slot-index-4\.lock"):
        assert never.lock_fds
    never.release()
    assert got(claimed(four, demand(3))) == ["5", "6", "7"]
    assert str(folder) in describe_holder(four.devices[0])
    # The others may come back: they are waited for, and it is said what is wrong with this one.
    assert claimed(four, demand(2)) is None
    assert "GPU 4 cannot be locked ([Errno 21] Is a directory: " in describe_taken(four, demand(2))


@pytest.mark.parametrize("planted", ["pipe", "link", "hard link", "8 GB"])
def test_planted_lock_files(tmp_path: Path, claimed: Callable[..., DeviceClaim | None], planted: str) -> None:
    folder, precious = tmp_path / "state" / "pytest-infserver-devices", tmp_path / "precious"
    folder.mkdir(parents=True, mode=0o700)
    precious.write_text("precious")
    for name in ("turn.lock", "slot-index-4.lock"):
        if planted == "pipe":
            os.mkfifo(folder / name)
        elif planted == "link":
            (folder / name).symlink_to(precious)
        elif planted == "hard link":
            os.link(precious, folder / name)
        else:
            with (folder / name).open("wb") as file:
                file.truncate(8 << 30)
    four = visible_devices(FOUR)
    assert "which has not said who it is" in describe_holder(four.devices[0])
    assert got(claimed(four, demand(3))) == (["4", "5", "6"] if planted == "8 GB" else ["5", "6", "7"])
    assert precious.read_text() == "precious"


def test_folder_for_locks_that_is_a_link_lets_no_server_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_server: Any, claimed: Callable[..., DeviceClaim | None]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "state" / "pytest-infserver-devices").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    words = r"GPUs cannot be kept from other runs: .*pytest-infserver-devices, .* is no folder but a link\. .*LOCKS=0"
    with pytest.raises(ServerStartupError, match=words):
        fake_server(gpus=1).start()
    # A pool that has claimed it says the same at the start.
    server = fake_server(gpus=1)
    server.use_devices(claimed(visible_devices(os.environ), demand(1)))
    with pytest.raises(ServerStartupError, match=words):
        server.start()
    assert not server.running
    assert server.pid is None
    server.stop()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    # What needs none starts.
    with fake_server(gpus=0) as other:
        assert other.running


def test_a_process_of_somebody_else_is_not_named(claimed: Callable[..., DeviceClaim | None], tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may give a file away")
    two = visible_devices({"CUDA_VISIBLE_DEVICES": "4,5"})
    held = take_shared_lock(shared_lock_file("slot-index-4.lock"))
    assert held is not None
    file = shared_lock_file("slot-index-4.lock")
    os.write(held, str(os.getppid()).encode())
    assert f"pid {os.getppid()}" in describe_taken(two, own_list("4"))
    os.chown(file, 65534, 65534)
    said = describe_taken(two, own_list("4"))
    assert said == f"GPU 4 is taken by another run, which has not said who it is in {file}"
    os.close(held)


def test_a_turn_that_somebody_keeps_for_ever_is_waited_for_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, claimed: Callable[..., DeviceClaim | None]
) -> None:
    monkeypatch.setattr(claims_module, "_TURN_LIMIT", 0.1)
    turn = take_shared_lock(shared_lock_file("turn.lock"))
    assert turn is not None
    assert got(claimed(visible_devices(FOUR), demand(1))) == ["4"]
    os.close(turn)


# Servers.


def seen(server: Any) -> dict[str, str]:
    env = requests.get(server.url_for("/argv"), timeout=10).json()["env"]
    return {name: env[name] for name in VARIABLES if name in env}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "4,5"),
        ({"gpus": 1}, "4"),
        ({"gpus": 2}, "4,5"),
        ({"gpus": 0}, ""),
        ({"env_vars": {"CUDA_VISIBLE_DEVICES": "0,1,2"}}, "0,1,2"),
        ({"env_vars": {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "gpus": 1}, "0"),
        ({"env_vars": {"CUDA_VISIBLE_DEVICES": None}, "gpus": 1}, "4"),
    ],
)
def test_what_a_server_sees(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any, settings: dict[str, Any], expected: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    server = fake_server(**settings)
    assert "CUDA_VISIBLE_DEVICES=4" not in str(server.command())
    with server:
        assert seen(server) == {"CUDA_VISIBLE_DEVICES": expected}
        if settings:
            assert f"CUDA_VISIBLE_DEVICES={expected or repr('')} " in str(server.command())
            assert server.devices is not None
    assert server.devices is None


def test_servers_of_one_process_get_one_device_each(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    first, second, third = (fake_server(name=name, gpus=1) for name in ("a", "b", "c"))
    first.start()
    second.start()
    assert [seen(first), seen(second)] == [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    with pytest.raises(ServerStartupError) as caught:
        third.start()
    assert str(caught.value).startswith(
        "c (command) cannot start: needs 1 GPU (gpus: 1), and too few are free: GPU 4 is taken by another server"
        f" of this process, pid {os.getpid()} ("
    )
    assert "INFSERVER_DEVICE_LOCKS=0" in str(caught.value)
    second.stop()
    third.start()
    assert seen(third) == {"CUDA_VISIBLE_DEVICES": "5"}


def test_server_that_needs_more_than_there_is(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    with pytest.raises(ServerStartupError, match=r"needs 1 GPU .* has none .*pip install 'pytest-infserver\[gpu\]'"):
        fake_server(gpus=1).start()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    server = fake_server(gpus=3)
    with pytest.raises(ServerStartupError, match=r"needs 3 GPUs \(gpus: 3\), and this run has 2 \(CUDA_"):
        server.start()
    assert server.launches == 0


def test_failed_start_frees_the_devices(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(ServerStartupError, match="exited with code 3"):
        fake_server("--exit=3", gpus=1).start()
    with fake_server(gpus=1) as server:
        assert seen(server) == {"CUDA_VISIBLE_DEVICES": "4"}


def test_restarted_server_keeps_its_device(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    first, server = fake_server(name="a", gpus=1).start(), fake_server(name="b", gpus=1).start()
    first.stop()
    os.kill(server.pid, signal.SIGKILL)
    assert server.wait_death(30)
    server.start()
    assert seen(server) == {"CUDA_VISIBLE_DEVICES": "5"}


def test_devices_that_are_given_are_never_released(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    visible = visible_devices(os.environ)
    given = claim(visible, own_list("5"))
    assert given is not None
    given.env_vars = visible.environment(given.devices)
    server = fake_server(gpus=1)
    server.use_devices(given)
    for _ in range(2):
        with server:
            assert seen(server) == {"CUDA_VISIBLE_DEVICES": "5"}
            assert server.devices is given
        assert len(given.lock_fds) == 1
        assert claim(visible, own_list("5")) is None
    given.release()
    server.use_devices(None)
    with server:
        assert seen(server) == {"CUDA_VISIBLE_DEVICES": "4"}


def test_supervisor_keeps_the_devices_until_the_server_is_gone(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    visible = visible_devices(os.environ)
    given = claim(visible, demand(1))
    assert given is not None
    server = fake_server(gpus=1)
    server.use_devices(given)
    with server:
        given.release()
        assert claim(visible, demand(1)) is None
    again = claim(visible, demand(1))
    assert again is not None
    again.release()


OWNER = f"""
import sys
import time
from pytest_infserver import CommandServer, ServerStartupError
command = [sys.executable, "-S", {str(Path(__file__).parents[1] / "fake_engine.py")!r}, "--port", "{{port}}"]
import os
server = CommandServer(launch_command=command, output_dir=os.environ["LOGS"], gpus=int(sys.argv[1]))
while sys.stdin.readline():
    import requests
    try:
        server.start()
        print(requests.get(server.url_for("/argv"), timeout=10).json()["env"]["CUDA_VISIBLE_DEVICES"], flush=True)
    except ServerStartupError as error:
        print(error, flush=True)
server.stop()
"""


def test_servers_of_two_processes(other: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    variables = {"CUDA_VISIBLE_DEVICES": "4,5", "LOGS": str(tmp_path / "logs")}
    first, second, third = (other(count, OWNER, **variables) for count in (1, 1, 2))
    for process in (first, second):
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.stdout.readline().strip() for process in (first, second) if process.stdout is not None]
    assert sorted(found) == ["4", "5"]
    refusal = ask(third)
    assert "needs 2 GPUs (gpus: 2), and too few are free: GPU 4 is taken by pid " in refusal
    assert f"pid {first.pid} (" in refusal
    assert f"pid {second.pid} (" in refusal
    # Killed with kill -9: its supervisor ends the server, and with it go the locks.
    first.kill()
    second.kill()
    deadline = time.monotonic() + 60
    while (answer := ask(third)) != "4,5" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert answer == "4,5"
    assert third.stdin is not None
    third.stdin.close()
    assert third.wait(60) == 0


# Through the real nvidia-ml-py, each in an interpreter of its own.

PROGRAM = f"""
from pytest_infserver import CommandServer
from pytest_infserver.launcher.runtime import process_runtime as local_module
from pytest_infserver.launcher.devices import Demand, claim, visible_devices
from pytest_infserver.pool.servers import executor

MIB = 1 << 20
local_module._MEMORY_GRACE = executor._MEMORY_GRACE = 0.1

def used(mib, name="a"):
    return f"gpu GPU-{{name}} {{mib * MIB}} Stub {{name.upper()}}"

def make(**settings):
    command = [sys.executable, "-S", {str(Path(__file__).parents[1] / "fake_engine.py")!r}, "--port", "{{port}}"]
    one = CommandServer(launch_command=command, output_dir=os.environ["LOGS"], **settings)
    one.warnings = []
    one.on_warning = one.warnings.append
    return one

def env(one):
    import requests
    found = requests.get(one.url_for("/argv"), timeout=10).json()["env"]
    return [found.get("CUDA_VISIBLE_DEVICES"), found.get("CUDA_DEVICE_ORDER")]

def take(count=1):
    return claim(visible_devices(os.environ), Demand(count, "test"))
"""
A, B = "gpu GPU-a 0 Stub A", "gpu GPU-b 0 Stub B"


@pytest.fixture
def run(driver: Driver, tmp_path: Path) -> Callable[..., Any]:
    def start(code: str, *lines: str) -> Any:
        return driver.run(PROGRAM + code, *lines, LOGS=str(tmp_path / "logs"))

    return start


def test_gpus_of_the_driver_are_handed_out(run: Callable[..., Any]) -> None:
    code = "one, two = make(gpus=1).start(), make(gpus=1).start()\nresult([env(one), env(two)])\none.stop()\ntwo.stop()"
    assert run(code, A, B) == [["0", "PCI_BUS_ID"], ["1", "PCI_BUS_ID"]]


def test_memory_that_comes_back(run: Callable[..., Any]) -> None:
    code = """
one = take()
say(used(5000), used(9000, "b"))
threading.Timer(0.3, say, [used(400), used(9000, "b")]).start()
begin = time.monotonic()
result([one.wait_until_back(), time.monotonic() - begin])
"""
    words, seconds = run(code, A, B)
    assert words is None
    assert 0.2 < seconds < 20


def test_memory_that_does_not_come_back(run: Callable[..., Any]) -> None:
    code = """
one = take(2)
say(used(1), used(6000, "b"), f"process {os.getpid()} {5000 * MIB}", "process 1999999999 0")
words = [one.wait_until_back(0.1)]
say(used(1), used(6000, "b"))
words.append(one.wait_until_back(0.1))
result([os.getpid(), words])
"""
    pid, (named, unnamed) = run(code, A, B)
    assert named.startswith(f"GPU 1 (Stub B) holds 6000 MiB more than before, for pid {pid} (")
    assert named.endswith(", pid 1999999999")
    assert unnamed == "GPU 1 (Stub B) holds 6000 MiB more than before; the driver does not say for which process"


def test_memory_of_which_nobody_can_tell(run: Callable[..., Any]) -> None:
    code = """
found = []
for line in ("fail nvmlDeviceGetMemoryInfo 3", "fail nvmlDeviceGetCount_v2 999"):
    say(used(0))
    one = take()
    say(used(9000), line)
    begin = time.monotonic()
    found.append([one.wait_until_back(), time.monotonic() - begin < 20])
    one.release()
    say(used(0), line)
    one = take()
    say(used(9000))
    found.append([one and one.wait_until_back(), time.monotonic() - begin < 20])
    if one:
        one.release()
result(found)
"""
    assert run(code, A) == [[None, True]] * 4


def test_a_start_waits_until_the_memory_of_the_server_before_it_is_back(run: Callable[..., Any]) -> None:
    """However long the driver takes: also beyond the end of that server's stop, and for a restart of it."""
    code = """
def started_when(server, free):
    thread = threading.Thread(target=server.start)
    thread.start()
    while server.runtime.status.phase != "waiting for GPU memory":
        time.sleep(0.01)
    # It looks again and again.
    thread.join(0.5)
    waited = thread.is_alive()
    say(free)
    thread.join()
    return [waited, server.running]

one = make(gpus=1).start()
say(used(5000))
one.stop()
other = make(gpus=1, name="other")
found = [started_when(other, used(400))]
say(used(6000))
other.runtime.kill()
found.append(started_when(other, used(0)))
other.stop()
result([found, one.warnings + other.warnings])
"""
    assert run(code, A) == [[[True, True], [True, True]], []]


def test_a_start_fails_when_memory_is_not_back_in_time_and_says_who_holds_it(run: Callable[..., Any]) -> None:
    code = """
from pytest_infserver import ServerStartupError
one = make(gpus=1).start()
say(used(5000), f"process {os.getpid()} {5000 * MIB}")
one.stop()
words = []
other = make(gpus=1, name="other", memory_release_timeout=0.2)
for _ in range(2):
    try:
        other.start()
    except ServerStartupError as error:
        words.append(str(error))
launches = other.launches
anyway = make(gpus=1, name="anyway", memory_release_timeout=0).start()
anyway.stop()
say(used(0))
warnings = one.warnings + other.warnings + anyway.warnings
other.start().stop()
result([os.getpid(), words, launches, warnings])
"""
    pid, words, launches, warnings = run(code, A)
    assert len(words) == 2
    for text in words:
        assert f"other (command) cannot start: GPU 0 (Stub A) holds 5000 MiB more than before, for pid {pid} (" in text
        assert "it has waited 0.2 s for that. End what holds it, raise 'memory_release_timeout'" in text
    # Nothing was launched onto a full GPU.
    assert launches == 0
    assert warnings == []


def test_what_another_server_on_the_same_gpu_uses_is_not_waited_for(run: Callable[..., Any]) -> None:
    """Where locks are off servers may share a GPU that they name."""
    code = """
shared = {"env_vars": {"CUDA_VISIBLE_DEVICES": "0"}, "memory_release_timeout": 0.1}
one, two = make(name="one", **shared).start(), make(name="two", **shared).start()
say(used(9000))
one.runtime.kill()
one.start()
found = [one.running, two.running]
one.stop()
two.stop()
result(found)
"""
    assert run(code.replace("shared =", "os.environ['INFSERVER_DEVICE_LOCKS'] = '0'\nshared ="), A) == [True, True]


def test_the_pools_next_server_on_a_gpu_waits_too_and_fails_its_test(run: Callable[..., Any]) -> None:
    code = """
from pytest_infserver.pool.pool import Pool
from pytest_infserver.pool.servers.policy import Hooks
from pytest_infserver.pool.room import machine_room

configs = {name: make(gpus=1, name=name, memory_release_timeout=0.2).settings for name in "ab"}
hooks = Hooks(*(lambda server: None for _ in range(3)))
pool = Pool(configs, machine_room(configs, None), hooks)
pool.join("x")
[first] = pool.acquire("x", ["a"])
say(used(5000))
pool.release(first.ticket)
[second] = pool.acquire("x", ["b"])
result([str(second.error), pool.incidents])
pool.close()
"""
    words, incidents = run(code, A)
    assert "b (command) cannot start: GPU 0 (Stub A) holds 5000 MiB more than before" in words
    assert incidents == []


def test_lock_of_debug_mode_is_another_one(run: Callable[..., Any]) -> None:
    """Where debug mode cannot tell memory by process it locks every device: that must not cost anybody a slot."""
    code = """
from pytest_infserver.launcher.leaks import gpu
gpu._pids_are_ours = lambda: False
one, two = (make(gpus=1, debug_mode=True).start() for _ in range(2))
found = [env(one)[0], env(two)[0], take() is None]
for server in (one, two):
    try:
        server.stop()
    except Exception:
        pass
found.append([device.label for device in take(2).devices])
result(found)
"""
    assert run(code, A, B) == ["0", "1", True, ["0", "1"]]


def test_check_and_command_claim_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_server: Any) -> None:
    from pytest_infserver.reporting.dry_run import command_lines

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    server = fake_server(gpus=8)
    lines = list(command_lines([server.settings]))
    assert lines[0].startswith("fake: ")
    assert server.devices is None
    assert not (tmp_path / "state").exists()


def test_the_memory_of_who_sleeps_keeps_nobody_from_its_gpu(run: Callable[..., Any]) -> None:
    """What an engine keeps while it sleeps is none of the next one's, and the lock stays until both are gone."""
    code = """
def other(*lent):
    demand, visible = Demand(1, "test"), visible_devices(os.environ)
    return claim(visible, demand, lent={key: lock for one in lent for key, lock in one.locks.items()})

one = take()
say(used(5000))
one.is_lent = True
say(used(1500))
two = other(one)
found = [two.not_back(), [device.label for device in two.devices]]
say(used(9000))
# One ends in its sleep: what two has is not its own.
one.release()
found += [one.not_back(), take() is None]
say(used(1000))
found.append(two.not_back())
two.release()
say(used(0))
three = take()
found.append([device.label for device in three.devices])
three.release()
result(found)
"""
    assert run(code, A) == [None, ["0"], None, True, None, ["0"]]


def test_one_that_wakes_does_not_count_what_the_other_had(run: Callable[..., Any]) -> None:
    code = """
one = take()
one.is_lent = True
say(used(1500))
two = claim(visible_devices(os.environ), Demand(1, "test"), lent=dict(one.locks))
say(used(9000))
found = [one.not_back()]
two.is_lent, one.is_lent = True, False
found.append(two.not_back())
two.is_lent = False
two.release()
found.append(one.not_back())
result(found)
one.release()
"""
    first, second, third = run(code, A)
    assert (first, second) == (None, None)
    assert third == "GPU 0 (Stub A) holds 9000 MiB more than before; the driver does not say for which process"
