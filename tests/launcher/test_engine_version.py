"""Which version of an engine is installed, without importing it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_infserver.cli.main import main
from pytest_infserver.launcher.engine.version import installed_version, is_at_least

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


def test_a_package_in_the_working_directory_is_not_meant(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(env.pop("PYTHONPATH"))
    assert installed_version(sys.executable, ["enginepkg"], env) is None


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


def installed(folder: Path, name: str = "enginepkg", version: str = "1.2.3") -> Path:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return info


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that exists if anything was run: an interpreter, a sitecustomize, a package, or a .pth file."""
    return tmp_path / "ran"


def trapped_venv(folder: Path, ran: Path, settings: str = "version = 3.12.3\n") -> Path:
    """Make a virtual environment of files only, which notes that anything of it is run; return its packages."""
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\n{settings}")
    python = script(folder / "bin", f"#!/bin/sh\ntouch {ran}\n", "python3")
    script(folder / "bin", f"#!{python}\n")
    packages = folder / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)
    for name in ("sitecustomize.py", "usercustomize.py", "enginepkg.py"):
        (packages / name).write_text(f"open({str(ran)!r}, 'w')\n")
    (packages / "trap.pth").write_text(f"import os; open({str(ran)!r}, 'w')\n")
    return packages


@pytest.mark.parametrize("settings", ["version = 3.12.3\n", "version_info = 3.12.3.final.0\nuv = 0.8\n", ""])
def test_a_virtual_environment_is_read_and_not_run(tmp_path: Path, ran: Path, settings: str) -> None:
    packages = trapped_venv(tmp_path / "venv", ran, settings)
    binary = str(tmp_path / "venv" / "bin" / "engine")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages)}
    assert installed_version(binary, ["enginepkg"], env) is None
    installed(packages)
    assert installed_version(binary, ["other", "EnginePkg"], env) == "1.2.3"
    assert installed_version(binary, ["enginepkg"], {"PATH": ""}) == "1.2.3"
    assert not ran.exists()


def test_check_runs_nothing_that_the_file_names(
    tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = trapped_venv(tmp_path / "venv", ran)
    installed(packages, "vllm", "0.32.0")
    tool = script(tmp_path, f"#!/bin/sh\ntouch {ran}\n", "nsys")
    config = tmp_path / "servers.yaml"
    config.write_text(
        f"""
backend: vllm
model: m
binary_path: {tmp_path}/venv/bin/engine
env_vars: {{PYTHONPATH: "{packages}", PATH: "{tmp_path}/venv/bin"}}
config: {{server_args: {{disable-log-requests: true}}}}
profile: {{tool: nsys, binary_path: "{tool}"}}
"""
    )
    assert main(["check", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "vllm 0.32.0 has no --disable-log-requests" in shown
    assert "is not run here" in shown
    assert not ran.exists()


@pytest.mark.parametrize("option", ["--collect-only", "--infserver-dry-run"])
def test_neither_collection_nor_a_dry_run_runs_anything(
    tmp_path: Path, ran: Path, pytester: pytest.Pytester, run_pytest: Callable[..., pytest.RunResult], option: str
) -> None:
    packages = trapped_venv(tmp_path / "venv", ran)
    installed(packages, "vllm", "0.32.0")
    pytester.makepyfile("def test_it(inference_server): ...")
    config = tmp_path / "servers.yaml"
    config.write_text(
        f"""
backend: vllm
model: m
binary_path: {tmp_path}/venv/bin/engine
env_vars: {{PYTHONPATH: "{packages}"}}
config: {{server_args: {{disable-log-requests: true}}}}
"""
    )
    result = run_pytest(option, f"--infserver-config={config}")
    assert result.ret == 0, result.stdout.str()
    assert not ran.exists()


def test_base_of_an_environment_that_sees_it(tmp_path: Path, ran: Path) -> None:
    base = tmp_path / "base" / "lib" / "python3.12" / "site-packages"
    installed(base)
    home = f"home = {tmp_path}/base/bin\nversion = 3.12.1\n"
    for seen in ("true", "false"):
        trapped_venv(tmp_path / seen, ran, f"{home}include-system-site-packages = {seen}\n")
        expected = "1.2.3" if seen == "true" else None
        assert installed_version(str(tmp_path / seen / "bin" / "engine"), ["enginepkg"], {"PATH": ""}) == expected


@pytest.mark.parametrize(
    "folder",
    [
        "usr/lib/python3.12/site-packages",
        "usr/local/lib/python3.12/dist-packages",
        "usr/lib/python3/dist-packages",
        "home/.local/lib/python3.12/site-packages",
        "usr/lib64/python3.12/site-packages",
    ],
)
def test_where_an_installation_has_its_packages(tmp_path: Path, folder: str) -> None:
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    script(tmp_path / "usr" / "bin", "", "python3.12")
    (tmp_path / "usr" / "bin" / "python3").symlink_to("python3.12")
    binary = script(tmp_path, f"#!{tmp_path}/usr/bin/python3\n")
    installed(tmp_path / "usr/lib/python3.11/site-packages", version="0.0.1")
    installed(tmp_path / folder)
    env = {"PATH": "", "HOME": str(tmp_path / "home")}
    assert installed_version(binary, ["enginepkg"], env) == "1.2.3"
    in_home = folder.startswith("home")
    expected = None if in_home else "1.2.3"
    assert installed_version(binary, ["enginepkg"], {**env, "PYTHONNOUSERSITE": "1"}) == expected


def test_a_plain_line_of_a_pth_file_is_followed(tmp_path: Path, ran: Path) -> None:
    packages = trapped_venv(tmp_path / "venv", ran)
    installed(tmp_path / "elsewhere")
    (packages / "more.pth").write_text(f"# words\n{tmp_path}/elsewhere\n/no/such/folder\n")
    assert installed_version(str(tmp_path / "venv" / "bin" / "engine"), ["enginepkg"], {"PATH": ""}) == "1.2.3"
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["fifo", "link", "huge", "garbage", "folder", "nothing"])
def test_odd_metadata(tmp_path: Path, env: dict[str, str], kind: str) -> None:
    file = Path(env["PYTHONPATH"]) / "enginepkg-1.2.3.dist-info" / "METADATA"
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "link":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind != "nothing":
        file.write_bytes(b"\xff" * (50_000_000 if kind == "huge" else 1000))
    engine = script(tmp_path, "#!/usr/bin/env python3\n")
    assert installed_version(engine, ["enginepkg"], env) == "1.2.3"
