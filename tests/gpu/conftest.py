"""Each test runs on a GPU, where one is, and as far as that goes on a stand-in of the driver, every day.

Of several tests that are one run of pytest, the run is a fixture of the module.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines.provision import environment, missing
from fake_driver import compile_stub
from isolation import no_process_left

from .machine import HERE, RUN_LIMIT, Machine, Watcher, gpu_problem

ON_GPU = pytest.param("gpu", id="gpu")
STAND_IN = pytest.param("stand-in", marks=pytest.mark.run, id="stand-in")
HIDDEN = pytest.param("hidden", marks=pytest.mark.run, id="hidden")
"""A stand-in that names no processes."""
ON_CPU = pytest.param("cpu", marks=pytest.mark.engine("transformers"), id="cpu")
"""Torch for real, on a machine without a GPU."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs what is not there, or fail where it has to be there."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        problem, required = None, False
        if item.get_closest_marker("gpu") is not None:
            problem, required = gpu_problem(), config.getoption("require_gpu")
        elif item.get_closest_marker("engine") is not None:
            problem, required = missing("transformers"), config.getoption("require_engines")
        if problem is not None and required:
            raise pytest.UsageError(f"{item.nodeid}: {problem}")
        if problem is not None:
            item.add_marker(pytest.mark.skip(reason=problem))


@pytest.fixture
def hard_limit_seconds() -> int:
    """Give starts on a real device their time."""
    return int(2 * RUN_LIMIT)


@pytest.fixture(autouse=True)
def gpu_limit(hard_limit: None) -> None:
    """Interrupt every test here that hangs."""


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for what is brought back."""
    given = request.config.getoption("gpu_results")
    return Path(given).resolve() if given else tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session", params=[ON_GPU, STAND_IN])
def machine(request: pytest.FixtureRequest, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The machine of a test; a test of others says so by ``parametrize("machine", [...], indirect=True)``."""
    state = tmp_path_factory.mktemp("state")
    state.chmod(0o700)
    # Its runs know of each other's devices, and the everyday ones of nobody else's.
    variables = {"INFSERVER_STATE_DIR": str(state), "INFSERVER_DEVICE_LOCKS": "1"}
    variables["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if request.param == "cpu":
        python = str(environment("transformers") / "bin" / "python")
        return Machine("cpu", python, results, "cpu", variables, {"HF_HUB_OFFLINE": "1"})
    if request.param == "gpu":
        made = Machine("gpu", sys.executable, results, environment=variables, server_variables={"HF_HUB_OFFLINE": "1"})
        made.note("machine", f"{platform.node()}, Linux {platform.release()}, Python {platform.python_version()}")
        return made
    folder = tmp_path_factory.mktemp("driver")
    compile_stub(folder)
    says = folder / "driver.txt"
    refuses = "fail nvmlDeviceGetComputeRunningProcesses_v3 3\n" if request.param == "hidden" else ""
    says.write_text(f"{refuses}gpu GPU-5ca1ab1e-0000-1111-2222-333344445555 1048576 Stand-in\n")
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho NVIDIA-SMI of a stand-in; cat $NVML_STUB\n")
    smi.chmod(0o755)
    variables |= {"LD_LIBRARY_PATH": str(folder), "NVML_STUB": str(says), "PATH": f"{folder}:{os.environ['PATH']}"}
    torch = {"PYTHONPATH": str(HERE / "stand_in")}
    return Machine(request.param, sys.executable, results, "cuda", variables, torch, stop_timeout=3)


@pytest.fixture(scope="session")
def watcher(machine: Machine) -> Iterator[Watcher]:
    """What the driver says."""
    one = Watcher(machine)
    yield one
    one.close()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder for a project, named after the test."""
    return _folder(tmp_path_factory, getattr(request.function, "__name__", "test"))


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what makes folders for projects of a whole module."""
    return lambda name: _folder(tmp_path_factory, name)


def _folder(factory: pytest.TempPathFactory, name: str) -> Path:
    made = factory.mktemp("project") / name.removeprefix("test_")
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def module_leaves_nothing() -> Iterator[None]:
    """Fail if what a module's own fixtures have started is left."""
    with no_process_left() as token:
        os.environ["INFSERVER_TEST_TOKEN"] = token
        yield
        os.environ.pop("INFSERVER_TEST_TOKEN", None)
