"""GPUs for tests on machines that have none, and another user for tests that are run by root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_driver import Driver, compile_stub

NOBODY = 65534
BuildStub = Callable[..., Path]


@pytest.fixture(scope="session")
def build_stub(tmp_path_factory: pytest.TempPathFactory) -> BuildStub:
    """Return what compiles the stand-in of NVIDIA's library and says in which folder it is."""

    def build(*options: str) -> Path:
        folder = tmp_path_factory.mktemp("nvml")
        compile_stub(folder, *options)
        return folder

    return build


@pytest.fixture(scope="session")
def stub_folder(build_stub: BuildStub) -> Path:
    return build_stub()


@pytest.fixture
def driver(stub_folder: Path, tmp_path: Path) -> Driver:
    """A driver of NVIDIA's; without lines it knows no GPU."""
    return Driver(stub_folder, tmp_path / "driver.txt")


@contextlib.contextmanager
def _ordinary_user() -> Iterator[None]:
    if os.getuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def ordinary_user() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return what makes this process an ordinary user for a while, one without any files if it is root's."""
    return _ordinary_user
