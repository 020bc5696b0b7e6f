"""What counts for a fingerprint, and what does not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer, VLLMServer
from pytest_infserver.launcher.engine.version import editable_source
from pytest_infserver.launcher.keeping.fingerprint import IGNORED_VARIABLES, fingerprint
from pytest_infserver.system.disk import stamps

Mark = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text("print('hello')")
    return path


@pytest.fixture
def mark(tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch) -> Mark:
    """Return the fingerprint of a server with these settings."""
    monkeypatch.chdir(tmp_path)

    def make(*arguments: str, **settings: Any) -> str:
        command = [sys.executable, str(script), "--host", "{host}", "--port", "{port}", *arguments]
        return fingerprint(CommandServer(**{"launch_command": command, **settings}))

    return make


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def test_it_is_a_hash(mark: Mark) -> None:
    assert len(mark()) == 64
    assert "0123456789" not in mark(env_vars={"HF_TOKEN": "0123456789"})
    assert mark() == mark()


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "other"},
        {"output_dir": "elsewhere"},
        {"startup_timeout": 1},
        {"stop_timeout": 1},
        {"heartbeat_interval": 1},
        {"heartbeat_timeout": 1},
        {"hang_timeout": 1},
        {"log_limit": 1},
        {"health_endpoint": "/x"},
    ],
)
def test_what_only_our_side_uses_does_not_count(mark: Mark, settings: dict[str, Any]) -> None:
    assert mark(**settings) == mark()


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 8000},
        {"host": "127.0.0.2"},
        {"env_vars": {"X": "1"}},
        {"env_vars": {"PATH": None}},
        {"env_vars": {"TERM": "x"}},
        {"env_vars": {"HF_TOKEN": "0123456789"}},
        {"stop_command": ["true"]},
        {"config": {"server_args": ["--x"]}, "launch_command": ["true", "{port}"]},
    ],
)
def test_what_counts(mark: Mark, settings: dict[str, Any]) -> None:
    assert mark(**settings) != mark()


def test_arguments_count(mark: Mark) -> None:
    marks = [mark(), mark("--x"), mark("--x", "1"), mark("--x=1"), mark("--api-key", "0123456789"), mark("--x 1")]
    assert len(set(marks)) == len(marks)


def test_the_port_that_was_chosen_does_not_count(mark: Mark, script: Path) -> None:
    command = [sys.executable, str(script), "--host", "{host}", "--port", "{port}"]
    server = CommandServer(launch_command=command)
    server.give(port=8123)
    assert fingerprint(server) == mark()
    assert server.port == 8123


@pytest.mark.parametrize(
    "name",
    "_ SHLVL PWD OLDPWD TERM TERM_PROGRAM COLUMNS LINES SSH_CLIENT XDG_SESSION_ID DBUS_SESSION_BUS_ADDRESS WINDOWID"
    " PYTEST_VERSION INFSERVER_CONFIG COV_CORE_SOURCE TMUX_PANE".split(),
)
def test_variables_of_the_shell_do_not_count(mark: Mark, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name, raising=False)
    before = mark()
    monkeypatch.setenv(name, "something else")
    assert mark() == before
    assert mark(env_vars={name: "named"}) != before


@pytest.mark.parametrize(
    "name",
    [
        "HOME",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "HF_HOME",
        "VLLM_X",
        "TMPDIR",
        "LINES_X",
        "XTERM",
        "__",
        "LANG",
    ],
)
def test_other_variables_count(mark: Mark, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert IGNORED_VARIABLES.fullmatch(name) is None
    before = mark()
    monkeypatch.setenv(name, "something else")
    assert mark() != before


def test_a_variable_is_not_mistaken_for_two(mark: Mark) -> None:
    assert mark(env_vars={"A": "1", "B": "2"}) != mark(env_vars={"A": "1\nB=2"})
    assert mark(env_vars={"A": "x", "B": ""}) != mark(env_vars={"A": "", "B": "x"})


def test_working_directory_counts(mark: Mark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mark()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert mark() != before
    (tmp_path / "below").rmdir()
    try:
        assert mark(output_dir=str(tmp_path)) != before
    finally:
        os.chdir(tmp_path)


@pytest.mark.parametrize("how", ["alone", "after an equals sign", "relative"])
def test_files_that_the_command_names_count(mark: Mark, tmp_path: Path, how: str) -> None:
    file = tmp_path / "template.jinja"
    word = {"alone": str(file), "after an equals sign": f"--chat-template={file}", "relative": "template.jinja"}[how]
    missing = mark(word)
    file.write_text("a")
    present = mark(word)
    touch(file)
    touched = mark(word)
    file.write_text("another length")
    assert len({missing, present, touched, mark(word)}) == 4


def test_script_counts(mark: Mark, script: Path) -> None:
    before = mark()
    touch(script)
    assert mark() != before
    replaced, status = script.with_suffix(".new"), script.stat()
    before = mark()
    replaced.write_bytes(script.read_bytes())
    os.utime(replaced, ns=(status.st_atime_ns, status.st_mtime_ns))
    replaced.replace(script)
    # Another inode with the same content, size and time is the same file.
    assert mark() == before


def test_binary_counts(mark: Mark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        (folder / "engine").write_text("#!/bin/sh\n")
        (folder / "engine").chmod(0o755)
    command = ["engine", "{port}"]
    marks = []
    for folder in folders:
        marks.append(mark(launch_command=command, env_vars={"PATH": str(folder)}))
    touch(folders[1] / "engine")
    marks.append(mark(launch_command=command, env_vars={"PATH": str(folders[1])}))
    assert len(set(marks)) == 3
    assert len(mark(launch_command=["no-such-engine", "{port}"])) == 64


@pytest.mark.parametrize("layout", ["module", "package"])
@pytest.mark.parametrize("where", ["working directory", "PYTHONPATH"])
def test_module_of_the_user_counts(mark: Mark, tmp_path: Path, layout: str, where: str) -> None:
    folder = tmp_path if where == "working directory" else tmp_path / "library"
    file = folder / ("mine.py" if layout == "module" else "mine/deep/__main__.py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a")
    env_vars = {} if where == "working directory" else {"PYTHONPATH": f"/nonexistent:{folder}"}
    command = [sys.executable, "-m", "mine.deep" if layout == "package" else "mine", "{port}"]
    before = mark(launch_command=command, env_vars=env_vars)
    touch(file)
    assert mark(launch_command=command, env_vars=env_vars) != before


@pytest.mark.parametrize("kind", ["file", "folder", "folder of links"])
def test_local_model_counts(mark: Mark, tmp_path: Path, kind: str) -> None:
    model = tmp_path / "model"
    file = model if kind == "file" else model / "deep" / "weights.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    blob = file
    if kind == "folder of links":
        blob = tmp_path / "blob"
        file.symlink_to(blob)
    blob.write_text("weights")
    before = mark(model=str(model))
    touch(blob)
    after = mark(model=str(model))
    assert after != before
    if kind != "file":
        (model / "config.json").write_text("{}")
        assert mark(model=str(model)) != after


def test_model_name_counts(mark: Mark) -> None:
    command = ["x", "{model}", "{port}"]
    assert mark(model="org/a", launch_command=command) != mark(model="org/b", launch_command=command)


def test_odd_words_do_no_harm(mark: Mark) -> None:
    assert len(mark("x" * 10_000, "\udcff", "a\nb", "", "-", "=", "--=", "-m", "..", "-m", "-m")) == 64


# The engine.


def site_of(venv: Path) -> Path:
    return venv / "lib" / "python3.12" / "site-packages"


def editable_engine(tmp_path: Path, editable: str = "true") -> tuple[Path, Path]:
    """An environment with an engine installed by ``pip install -e``, and its source folder."""
    source = tmp_path / "my source"
    (source / "vllm").mkdir(parents=True)
    (source / "vllm" / "engine.py").write_text("a")
    info = site_of(tmp_path) / "vllm-0.32.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    (info / "direct_url.json").write_text(
        f'{{\n  "dir_info": {{"editable": {editable}}},\n  "url": "{source.as_uri()}"\n}}\n'
    )
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch(0o755)
    (tmp_path / "pyvenv.cfg").write_text("version = 3.12.1\n")
    binary = tmp_path / "bin" / "vllm"
    binary.write_text(f"#!{python}\n")
    binary.chmod(0o755)
    return binary, source


@pytest.mark.usefixtures("nothing_left")
def test_source_of_an_editable_install_counts(tmp_path: Path) -> None:
    binary, source = editable_engine(tmp_path)
    assert editable_source(str(binary), ["vllm"], os.environ) == source
    server = VLLMServer(model="m", binary_path=str(binary))
    marks = [fingerprint(server)]
    for name in ("vllm/engine.py", "vllm/new.cu", "vllm/_C.so", "vllm/deep/a.py"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(f"something else {name}")
        marks.append(fingerprint(server))
    assert len(set(marks)) == len(marks)
    for name in ("vllm/__pycache__/engine.pyc", ".git/x.py", "vllm/notes.txt", "venv/pyvenv.cfg", "venv/lib/x.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    assert fingerprint(server) == marks[-1]


@pytest.mark.parametrize("text", ["{}", "null", "[]", "no", '{"dir_info": {"editable": true}}', '{"dir_info": 1}'])
@pytest.mark.usefixtures("nothing_left")
def test_odd_direct_urls(tmp_path: Path, text: str) -> None:
    binary, _ = editable_engine(tmp_path)
    (site_of(tmp_path) / "vllm-0.32.0.dist-info" / "direct_url.json").write_text(text)
    assert editable_source(str(binary), ["vllm"], os.environ) is None
    assert len(fingerprint(VLLMServer(model="m", binary_path=str(binary)))) == 64


@pytest.mark.usefixtures("nothing_left")
def test_install_from_a_folder_is_not_editable(tmp_path: Path) -> None:
    binary, _ = editable_engine(tmp_path, editable="false")
    assert editable_source(str(binary), ["vllm"], os.environ) is None


@pytest.mark.usefixtures("nothing_left")
def test_version_of_the_engine_counts(tmp_path: Path) -> None:
    binary, _ = editable_engine(tmp_path)
    server = VLLMServer(model="m", binary_path=str(binary))
    before = fingerprint(server)
    metadata = site_of(tmp_path) / "vllm-0.32.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("0.32.0", "0.33.0"))
    assert fingerprint(server) != before


def test_ten_thousand_sources_are_looked_at_quickly(tmp_path: Path) -> None:
    for number in range(100):
        folder = tmp_path / f"package{number}"
        folder.mkdir()
        for file in range(100):
            (folder / f"{file}.py").touch()
    begin = time.process_time()
    stamp = stamps.source_stamp(tmp_path)
    assert time.process_time() - begin < 1
    (tmp_path / "package42" / "42.py").write_text("x")
    assert stamps.source_stamp(tmp_path) != stamp


def test_circles_and_broken_links_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "broken.py").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.py")
    assert len(stamps.path_stamp(tmp_path)) == 64
    assert stamps.path_stamp(tmp_path / "nothing") == ""
    assert stamps.file_stamp("a\0b") == ""
