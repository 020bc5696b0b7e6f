"""Which version of an engine is installed, without importing it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from pytest_infserver.launcher.engine_version import installed_version, is_at_least

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment with a package `enginepkg` 1.2.3 that must not be imported."""
    info = tmp_path / "site" / "enginepkg-1.2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: enginepkg\nVersion: 1.2.3\n")
    (tmp_path / "site" / "enginepkg.py").write_text("raise SystemExit('imported')\n")
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path / "site")}


def script(folder: Path, text: str, name: str = "engine") -> str:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "head",
    [
        f"#!{sys.executable}\n",
        f"#! {sys.executable} -I\n",
        f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''\n",
        f"#!/bin/sh\n'''exec' {sys.executable} \"$0\" \"$@\"\n' '''\n",
        "#!/usr/bin/env python3\n",
        "#!/usr/bin/env -S python3 -u\n",
    ],
)
def test_a_script_that_names_its_interpreter(tmp_path: Path, env: dict[str, str], head: str) -> None:
    assert installed_version(script(tmp_path, head), ["other", "enginepkg"], env) == "1.2.3"


def test_a_name_on_path_and_an_interpreter(tmp_path: Path, env: dict[str, str]) -> None:
    script(tmp_path, f"#!{sys.executable}\n")
    assert installed_version("engine", ["enginepkg"], env) == "1.2.3"
    assert installed_version(sys.executable, ["enginepkg"], env) == "1.2.3"


@pytest.mark.parametrize(
    "text",
    ["", "#!", "#!/bin/sh\nexec engine\n", "#!/bin/sh\n", "\x7fELF\0\0", "#!/bin/bash 'unbalanced\n", "#!/no/python\n"],
)
def test_what_does_not_tell(tmp_path: Path, env: dict[str, str], text: str) -> None:
    assert installed_version(script(tmp_path, text), ["enginepkg"], env) is None


def test_an_engine_that_is_not_there(tmp_path: Path, env: dict[str, str]) -> None:
    assert installed_version("/no/such/engine", ["enginepkg"], env) is None
    assert installed_version(script(tmp_path, f"#!{sys.executable}\n"), ["not-installed"], env) is None
    assert installed_version(sys.executable, [], env) is None
    (tmp_path / "folder").mkdir()
    assert installed_version(str(tmp_path / "folder"), ["enginepkg"], env) is None


def test_an_interpreter_that_fails_or_hangs(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.engine_version._LIMIT", 0.2)
    assert installed_version(script(tmp_path, "#!/bin/sh\nexit 3\n", "python3"), ["enginepkg"], env) is None
    begin = time.monotonic()
    assert installed_version(script(tmp_path, "#!/bin/sh\nexec sleep 60\n", "python4"), ["enginepkg"], env) is None
    assert time.monotonic() - begin < 30


def test_a_package_in_the_working_directory_is_not_meant(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(env.pop("PYTHONPATH"))
    assert installed_version(sys.executable, ["enginepkg"], env) is None


def test_it_is_asked_once(tmp_path: Path, env: dict[str, str]) -> None:
    count = tmp_path / "count"
    python = script(tmp_path, f'#!/bin/sh\necho x >> {count}\nexec {sys.executable} "$@"\n', "python7")
    assert [installed_version(python, ["enginepkg"], env) for _ in range(3)] == ["1.2.3"] * 3
    assert count.read_text() == "x\n"


@pytest.mark.parametrize(
    ("version", "bound", "enough"),
    [
        ("0.32.0+cpu", "0.32", True),
        ("0.9.2", "0.12", False),
        ("0.12.0", "0.12.1", False),
        ("0.12", "0.12", True),
        ("1.0.0.dev3", "0.12", True),
        ("garbage", "0.12", False),
        ("garbage", "", True),
    ],
)
def test_is_at_least(version: str, bound: str, enough: bool) -> None:
    assert is_at_least(version, bound) is enough


def test_a_wrapper_called_like_python_is_not_run(tmp_path: Path, env: dict[str, str]) -> None:
    ran = tmp_path / "ran"
    wrapper = script(tmp_path, f"#!/bin/sh\ntouch {ran}\n", "python-in-docker.sh")
    assert installed_version(wrapper, ["enginepkg"], env) is None
    assert not ran.exists()


def test_what_an_environment_prints_at_its_start_is_no_version(tmp_path: Path, env: dict[str, str]) -> None:
    (Path(env["PYTHONPATH"]) / "sitecustomize.py").write_text("print('2026.1 is here')\n")
    assert installed_version(sys.executable, ["enginepkg"], env) == "1.2.3"


def test_no_answer_is_not_remembered(tmp_path: Path, env: dict[str, str]) -> None:
    python = script(tmp_path, f'#!/bin/sh\n[ -e {tmp_path}/good ] && exec {sys.executable} "$@"\n', "python8")
    assert installed_version(python, ["enginepkg"], env) is None
    (tmp_path / "good").touch()
    assert installed_version(python, ["enginepkg"], env) == "1.2.3"


def test_nothing_is_left_of_an_interpreter_that_hangs(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.engine_version._LIMIT", 0.5)
    child = tmp_path / "child"
    python = script(tmp_path, f"#!/bin/sh\nsleep 60 & echo $! > {child}\nwait\n", "python9")
    assert installed_version(python, ["enginepkg"], env) is None
    pid = int(child.read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
