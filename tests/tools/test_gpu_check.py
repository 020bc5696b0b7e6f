"""The tier `gpu` where there is no GPU, and the script that takes it to where one is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from fake_driver import compile_stub
from gpu.machine import gpu_problem

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "gpu_check.sh"
pytestmark = [
    pytest.mark.run,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(sys.platform != "linux", reason="the machines with a GPU are Linux's"),
]


@pytest.fixture
def hard_limit_seconds() -> int:
    """Give pip its time."""
    return 600


def call(command: list[str | Path], folder: Path, **variables: str) -> tuple[int, str]:
    """Run a program; return its exit status and what it said."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_tier_is_skipped_with_the_reason_or_an_error_where_it_is_asked_for() -> None:
    problem = gpu_problem()
    if problem is None:
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
    status, said = call([*command], ROOT)
    assert status == 0, said
    assert problem in said
    assert "passed" not in said.splitlines()[-1], said
    status, said = call([*command, "--require-gpu"], ROOT)
    assert status == pytest.ExitCode.USAGE_ERROR, said
    assert f"ERROR: tests/gpu/test_leak_kinds.py::test_each_kind[gpu-allocates]: {problem}" in said


def test_script_says_that_nothing_is_packed(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    shutil.copy(SCRIPT, tmp_path / "tools")
    status, said = call([tmp_path / "tools" / "gpu_check.sh", "run"], tmp_path, OUT=str(tmp_path / "out"))
    assert status != 0
    assert "run 'tools/gpu_check.sh pack' where there is a network" in said


@pytest.mark.nightly
def test_what_is_packed_runs_beside_what_the_machine_has(tmp_path: Path) -> None:
    """On a machine whose Python has torch and transformers and nothing else, with a stand-in of its driver."""
    tree, driver, machine = tmp_path / "tree", tmp_path / "driver", tmp_path / "machine"
    tree.mkdir()
    driver.mkdir()
    for name in ("pytest_infserver", "tests", "tools"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    compile_stub(driver)
    (driver / "driver.txt").write_text("gpu GPU-12345678-stand-in 0 Stand-in\n")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", machine], check=True)
    packages = machine / "lib" / f"python{version}" / "site-packages"
    shutil.copytree(ROOT / "tests" / "gpu" / "stand_in" / "torch", packages / "torch")
    (packages / "transformers.py").write_text("")
    # To pack takes an interpreter that has pip.
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "packer"], check=True)
    packer = str(tmp_path / "packer" / "bin" / "python")
    status, said = call([tree / "tools" / "gpu_check.sh", "pack"], tree, PYTHON=packer, PACK_FOR=version)
    assert status == 0, said
    out = tmp_path / "out"
    variables = {"LD_LIBRARY_PATH": str(driver), "NVML_STUB": str(driver / "driver.txt"), "OUT": str(out)}
    variables |= {"PYTHON": str(machine / "bin" / "python"), "PIP_NO_INDEX": "1"}
    status, said = call([tree / "tools" / "gpu_check.sh", "run", "-k", "uuid or record"], tree, **variables)
    assert status == 0, said
    assert {path.name for path in out.iterdir()} >= {"figures.txt", "junit.xml", "output.txt", "logs.tar.gz"}
    suite = ElementTree.parse(out / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "0")
    assert "MiB" in (out / "figures.txt").read_text()
