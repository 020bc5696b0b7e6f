"""Wrappers that start the server for the user: the server below them is asked to end, and gets its time.

They are stand-ins that do with signals and processes what the real ones do; `uv run` is the real one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer, create_server

ENGINE = str(Path(__file__).with_name("reach_engine.py"))
SERVER = f"""
import os, pathlib, runpy, signal, sys
def end(number, frame):
    with open(sys.argv[1], "a") as mark:
        mark.write(signal.Signals(number).name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
if os.environ.get("RANK", "0") != "0":
    signal.pause()
runpy.run_path({ENGINE!r}, run_name="__main__")
"""
CONDA = """
# conda is a Python program without a handler; between it and the command is a script of bash.
import shlex, subprocess, sys
sys.exit(subprocess.call(["bash", "-c", shlex.join(sys.argv[1:]) + "; exit $?"]))
"""
MPIRUN = """
# Its ranks have process groups of their own; it passes SIGTERM on, and ends when they have ended.
import os, signal, subprocess, sys
ranks = [subprocess.Popen(sys.argv[1:], process_group=0, env={**os.environ, "RANK": str(rank)}) for rank in (0, 1)]
def end(number, frame):
    for rank in ranks:
        os.killpg(rank.pid, signal.SIGCONT)
        os.killpg(rank.pid, number)
signal.signal(signal.SIGTERM, end)
for rank in ranks:
    rank.wait()
"""
TORCHRUN = """
# Its workers have sessions of their own; at SIGTERM an exception unwinds it, which ends them.
import os, signal, subprocess, sys
class Stop(Exception): pass
def end(number, frame):
    raise Stop
signal.signal(signal.SIGTERM, end)
workers = [subprocess.Popen(sys.argv[1:], start_new_session=True, env={**os.environ, "RANK": str(r)}) for r in (0, 1)]
try:
    for worker in workers:
        worker.wait()
except Stop:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait()
    sys.exit(1)
"""
DEAF = """
# As many a home-made one: it waits for what it has never asked to end.
import signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: None)
child.wait()
"""
SHELLS = {
    "bash -c": ["bash", "-c", '"$@"; true', "bash"],
    "sh -c, exec": ["sh", "-c", 'exec "$@"', "sh"],
    "bash -c in bash -c": ["bash", "-c", """bash -c '"$@"; true' bash "$@"; true""", "bash"],
    "bash -c with a pipe": ["bash", "-c", '"$@" 2>&1 | cat', "bash"],
    "env": ["env", "-u", "NO_SUCH_VARIABLE"],
    "conda run": [sys.executable, "-S", "-c", CONDA],
    "deaf": [sys.executable, "-S", "-c", DEAF],
}


def server_command(mark: Path) -> list[str]:
    """Return what starts a server that writes down by which signal it was asked to end."""
    return [sys.executable, "-S", "-c", SERVER, str(mark), "--port", "{port}"]


def stopped(command: list[str], folder: Path, **settings: Any) -> CommandServer:
    """Start a server, stop it, and make sure that nothing of it had to be killed."""
    settings = {"output_dir": folder / "logs", "startup_timeout": 30, "stop_timeout": 10, **settings}
    server = create_server("command", launch_command=command, **settings)
    server.start()
    assert server.check_health()
    server.stop()
    assert server.survivors == ()
    assert isinstance(server, CommandServer)
    return server


@pytest.mark.parametrize("wrapper", SHELLS.values(), ids=SHELLS)
def test_a_wrapper_of_one_process(wrapper: list[str], tmp_path: Path, nothing_left: None) -> None:
    stopped([*wrapper, *server_command(tmp_path / "mark")], tmp_path)
    assert (tmp_path / "mark").read_text() == "SIGTERM\n"


def test_uv_run(tmp_path: Path, nothing_left: None) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    wrapper = [uv, "run", "--no-project", "--offline", "--python", sys.executable, "--"]
    stopped([*wrapper, *server_command(tmp_path / "mark")], tmp_path, cwd=tmp_path)
    assert (tmp_path / "mark").read_text() == "SIGTERM\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the stand-in uses process_group")
@pytest.mark.parametrize("code", [MPIRUN, TORCHRUN], ids=["mpirun", "torchrun"])
def test_a_wrapper_of_several_processes(code: str, tmp_path: Path, nothing_left: None) -> None:
    stopped([sys.executable, "-S", "-c", code, *server_command(tmp_path / "mark")], tmp_path)
    assert (tmp_path / "mark").read_text() == "SIGTERM\nSIGTERM\n"


CLIENT = """
# docker run: the container is the daemon's child, and the client passes SIGTERM on by asking the daemon.
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(number, frame):
    (folder / "asked").touch()
signal.signal(signal.SIGTERM, end)
(folder / "port").write_text(sys.argv[2])
(folder / "port").rename(folder / "request")
while not (folder / "ended").exists():
    time.sleep(0.01)
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[[], int | None]]:
    """Play docker's daemon: start a container when a client asks for it, end it when it asks for that."""
    over = threading.Event()
    found: list[subprocess.Popen[bytes]] = []

    def serve() -> None:
        while not over.wait(0.01):
            if not found and (tmp_path / "request").exists():
                words = server_command(tmp_path / "mark")
                port = (tmp_path / "request").read_text()
                found.append(subprocess.Popen([word.replace("{port}", port) for word in words]))
            if found and (tmp_path / "asked").exists():
                found[0].terminate()
                found[0].wait(20)
                (tmp_path / "ended").touch()
                return

    thread = threading.Thread(target=serve)
    thread.start()
    yield lambda: found[0].poll() if found else None
    over.set()
    thread.join()
    for container in found:
        container.kill()
        container.wait()


def test_docker_run(tmp_path: Path, daemon: Callable[[], int | None], nothing_left: None) -> None:
    command = [sys.executable, "-S", "-c", CLIENT, str(tmp_path), "{port}"]
    begin = time.monotonic()
    # Whoever answers at its port counts as this server: it is one where no other test has any.
    port = 30_000 + os.getpid() % 2_000
    stopped(command, tmp_path, own_listener=False, stop_timeout=60, port=port)
    assert daemon() == 0
    assert (tmp_path / "mark").read_text() == "SIGTERM\n"
    assert time.monotonic() - begin < 50
