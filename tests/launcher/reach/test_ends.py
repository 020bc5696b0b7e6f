"""How servers are asked to end, where they are launched, and launchers that do not stay."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import (
    InferenceServerError,
    PortInUseError,
    ServerStartupError,
    ServerStartupTimeout,
    create_server,
)
from pytest_infserver.launcher.supervision.stopping import _with_pid

ENGINE = str(Path(__file__).with_name("reach_engine.py"))
LEAVES_A_MARK = f"""
import pathlib, runpy, signal, sys
def end(number, frame):
    pathlib.Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
runpy.run_path({ENGINE!r}, run_name="__main__")
"""
Launch = Callable[..., Any]


@pytest.fixture
def launch(tmp_path: Path, nothing_left: None, hard_limit: None) -> Launch:
    """Return what starts a server that writes down by which signal it was asked to end, below a wrapper."""

    def start(wrapper: list[str] | None = None, **settings: Any) -> Any:
        words = [sys.executable, "-S", "-c", LEAVES_A_MARK, str(tmp_path / "mark"), "--port", "{port}"]
        if wrapper is not None:
            words = [*wrapper[:-1], wrapper[-1] + " ".join(map(shlex.quote, words)) + "; true"]
        settings = {"output_dir": tmp_path / "logs", "startup_timeout": 30, "stop_timeout": 5, **settings}
        return create_server("command", launch_command=words, **settings).start()

    return start


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_signal_that_asks_it_to_end(launch: Launch, tmp_path: Path, name: str) -> None:
    server = launch(stop_signal=name.removeprefix("SIG"))
    server.stop()
    assert (tmp_path / "mark").read_text() == name
    assert server.stop_seconds < 4


def test_the_stop_command_knows_the_pid(launch: Launch, tmp_path: Path) -> None:
    server = launch(stop_command=["kill", "-INT", "{pid}"])
    server.stop()
    assert (tmp_path / "mark").read_text() == "SIGINT"


def test_a_pid_is_written_literally() -> None:
    assert [_with_pid(word, 7) for word in (b"{pid}", rb"\{pid}", b"a{pid}b{port}")] == [b"7", b"{pid}", b"a7b{port}"]


@pytest.mark.parametrize(
    "script",
    [
        "",  # bash is ended by SIGTERM, and leaves the server to us
        "trap '' TERM; ",  # the server inherits that, and sets its own handler
        "trap 'echo later' TERM; ",  # bash keeps the signal until the server has ended
    ],
    ids=["plain", "ignores", "waits"],
)
def test_a_wrapper_does_not_keep_the_signal_from_the_server(launch: Launch, tmp_path: Path, script: str) -> None:
    server = launch(["bash", "-c", script])
    server.stop()
    assert (tmp_path / "mark").read_text() == "SIGTERM"
    assert server.survivors == ()
    assert server.stop_seconds < 4.5


def test_a_wrapper_and_another_signal(launch: Launch, tmp_path: Path) -> None:
    server = launch(["bash", "-c", "trap 'echo later' INT; "], stop_signal="INT")
    server.stop()
    assert (tmp_path / "mark").read_text() == "SIGINT"
    assert server.survivors == ()


def test_a_launcher_that_goes_into_the_background_is_told_so(tmp_path: Path, nothing_left: None) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])"
    command = [sys.executable, "-S", "-c", code, "{port}"]
    server = create_server("command", launch_command=command, output_dir=tmp_path, startup_timeout=30)
    expected = r"exited with code 0, before it was ready: it went into the background as process \d+: run it in the"
    with pytest.raises(ServerStartupError, match=expected):
        server.start()


DAEMON = f"""
import os, pathlib, socket, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-S", {ENGINE!r}, "--port", sys.argv[1]])
    os._exit(0)
while True:
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
        break
    except OSError:
        time.sleep(0.01)
while sys.argv[2] and not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("waits", [True, False], ids=["ends when it is ready", "ends when it listens"])
def test_a_launcher_that_waits_for_its_daemon(tmp_path: Path, nothing_left: None, waits: bool) -> None:
    """It ends when the server listens, which may be known to be ready by then, or not."""
    mark = tmp_path / "mark"
    command = [sys.executable, "-S", "-c", DAEMON, "{port}", str(mark) if waits else ""]
    server = create_server("command", launch_command=command, output_dir=tmp_path / "logs", startup_timeout=30)

    def begin_and_end() -> None:
        server.start()
        mark.touch()
        assert server.wait_death(30)
        server.raise_if_dead()

    told = r"went into the background as process \d+.*run it in the foreground"
    with pytest.raises(InferenceServerError, match=told) as caught:
        begin_and_end()
    assert not isinstance(caught.value, PortInUseError)
    server.stop()


def test_workers_that_outlive_their_server_are_no_daemons(tmp_path: Path, nothing_left: None) -> None:
    """As those of vLLM, which ends with 0 when its engine was killed."""
    code = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(100)'])\n"
        "print('it is ready', flush=True)\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
    )
    mark = tmp_path / "mark"
    settings: dict[str, Any] = {
        "ready": {"log": "^it is ready"},
        "startup_timeout": 30,
        "output_dir": tmp_path / "logs",
    }
    server = create_server("command", launch_command=[sys.executable, "-S", "-c", code, str(mark)], **settings).start()
    mark.touch()
    assert server.wait_death(30)
    assert "exited with code 0, while it was in use" in str(server.why_died())
    server.stop()


def test_the_directory_of_the_launch(tmp_path: Path, nothing_left: None) -> None:
    code = "import os, time; print('in', os.getcwd(), flush=True); time.sleep(100)"
    settings: dict[str, Any] = {"output_dir": tmp_path, "startup_timeout": 30, "ready": {"log": "^in /"}}
    folder = tmp_path / "there"
    folder.mkdir()
    command = [sys.executable, "-S", "-c", code]
    with create_server("command", launch_command=command, cwd=folder, **settings) as server:
        assert f"in {folder}" in server.read_log()
    server = create_server("command", launch_command=command, cwd=tmp_path / "nowhere", **settings)
    with pytest.raises(ServerStartupError, match="'cwd' is no directory"):
        server.start()


@pytest.mark.parametrize(
    "settings",
    [
        {"launch_command": ["true", "{port}", "a" * 200_000]},
        {"launch_command": ["true", "{port}"], "env_vars": {"LONG": "a" * 200_000}},
        {"launch_command": ["true", "{port}", *["a" * 100_000] * 100]},
    ],
    ids=["word", "variable", "sum"],
)
def test_a_command_line_that_is_too_long_is_refused_in_few_words(tmp_path: Path, settings: dict[str, Any]) -> None:
    server = create_server("command", output_dir=tmp_path, **settings)
    with pytest.raises(ServerStartupError, match="argument list too long") as caught:
        server.start()
    assert len(str(caught.value)) < 400


def test_a_download_that_stands_still(tmp_path: Path, nothing_left: None) -> None:
    code = (
        "import time\n"
        "print('Downloading model.safetensors: 10%', flush=True)\n"
        "for second in range(100):\n"
        "    time.sleep(0.2)\n"
        "    print(f'Downloading model.safetensors: 11% [00:{second:02}<?]', flush=True)\n"
    )
    wrapper = tmp_path / "engine"
    wrapper.write_text(f"#!/bin/sh\nexec {sys.executable} -S -c {shlex.quote(code)}\n")
    wrapper.chmod(0o755)
    server = create_server(
        "vllm",
        model="m",
        gpus=0,
        binary_path=str(wrapper),
        output_dir=tmp_path,
        startup_timeout=60,
        download_stall_timeout=1.5,
    )
    with pytest.raises(ServerStartupTimeout, match=r"made no progress for 1.5 s \(download_stall_timeout\)") as caught:
        server.start()
    assert "11%" in str(caught.value)


@pytest.mark.parametrize("flags", [{"models-dir": "/m"}, {"hf-repo": "org/m"}, {"fim-qwen-7b-default": True}])
def test_a_llama_server_without_a_model(flags: dict[str, Any]) -> None:
    words = create_server("llamacpp", binary_path="llama-server", config={"server_args": flags}).get_launch_command()
    assert "--model" not in words
