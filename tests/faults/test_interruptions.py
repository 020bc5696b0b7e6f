"""Whatever ends the process that owns a server, at whatever moment: nothing is left running.

`nothing_left` looks for every process that carries the test's mark in its environment, daemons included.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest
from isolation import in_a_thread, own_state_dir
from sampling import sampled

from pytest_infserver import CommandServer, ServerState
from pytest_infserver.launcher.keeping.kept import all_servers

pytestmark = pytest.mark.usefixtures("hard_limit", "nothing_left")

LONG = 60.0
ENGINE = Path(__file__).parents[1] / "fake_engine.py"
FAMILY = ["--children=2", "--forget-children", "--stubborn-children", *(["--daemon"] * (sys.platform == "linux"))]
"""Children that ignore SIGTERM and that nobody ends, and a daemon in a session of its own."""

SCRIPT = """
import os, signal, sys, threading, time
from pytest_infserver import CommandServer

server = CommandServer(launch_command={command!r}, output_dir={folder!r}, stop_timeout=0.5, startup_timeout=60)

def say(word):
    print(word, flush=True)

def launched():
    while server.pid is None or b"child" not in open(server.log_path, "rb").read():
        time.sleep(0.005)
    say("now")

{body}
"""

MOMENTS = {
    "starting": (["--delay=100"], "threading.Thread(target=launched, daemon=True).start()\nserver.start()"),
    "running": ([], "server.start()\nsay('now')\ntime.sleep(100)"),
    "stopping": (
        ["--stop-delay=100"],
        "server.start()\nthreading.Timer(0.2, say, ['now']).start()\nserver.stop()\ntime.sleep(100)",
    ),
}


def command(*arguments: str, family: list[str]) -> list[str]:
    # Each child of the family says so: the first line means that the engine's children are there.
    return [sys.executable, "-S", str(ENGINE), "--port={port}", *family, "--say-children", *arguments]


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a plain script that owns a server; returns when it says that the moment has come."""
    made: list[subprocess.Popen[str]] = []

    def start(body: str, *arguments: str, before: str = "", family: list[str] = FAMILY) -> subprocess.Popen[str]:
        text = before + SCRIPT.format(command=command(*arguments, family=family), folder=str(tmp_path), body=body)
        script = subprocess.Popen(
            [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        made.append(script)
        assert script.stdout is not None
        if script.stdout.readline() != "now\n":
            raise AssertionError(script.communicate(timeout=60)[1])
        return script

    yield start
    for script in made:
        script.kill()
        script.communicate(timeout=60)


def finish(script: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a script wrote after its first line; communicate() would lose what is buffered."""
    assert script.stdout is not None
    assert script.stderr is not None
    output, errors = script.stdout.read(), script.stderr.read()
    script.wait(60)
    return output, errors


SIGNALS = {
    f"{moment}-{number.name}": (moment, number)
    for moment in MOMENTS
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
}
# The others are those of test_faults.py.
SIGNALS_AT_NIGHT = [name for name in SIGNALS if name.endswith(("SIGHUP", "SIGKILL")) or name == "stopping-SIGTERM"]


@pytest.mark.parametrize(("moment", "number"), sampled(SIGNALS, nightly=SIGNALS_AT_NIGHT))
def test_signal_to_the_owner(owner: Callable[..., subprocess.Popen[str]], moment: str, number: signal.Signals) -> None:
    arguments, body = MOMENTS[moment]
    script = owner(body, *arguments)
    script.send_signal(number)
    _, errors = finish(script)
    assert script.returncode == -number, errors
    if number is signal.SIGINT:
        assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("moment", sampled({name: name for name in MOMENTS}, nightly=["running", "stopping"]))
def test_owner_that_exits_without_a_word(owner: Callable[..., subprocess.Popen[str]], moment: str) -> None:
    arguments, body = MOMENTS[moment]
    ending = "def say(word):\n    print(word, flush=True)\n    os._exit(3)\n"
    script = owner(ending + body, *arguments)
    assert script.wait(60) == 3


@pytest.mark.parametrize("moment", ["starting", "stopping"])
def test_two_quick_interrupts(owner: Callable[..., subprocess.Popen[str]], moment: str) -> None:
    arguments, body = MOMENTS[moment]
    script = owner(body, *arguments, "--ignore-term")
    script.send_signal(signal.SIGINT)
    time.sleep(0.1)
    script.send_signal(signal.SIGINT)
    _, errors = finish(script)
    assert script.returncode != 0
    assert "KeyboardInterrupt" in errors


def test_interrupt_is_not_passed_to_the_server(owner: Callable[..., subprocess.Popen[str]]) -> None:
    """Ctrl-C goes to the whole foreground group: the server must live until its owner stops it."""
    body = (
        "os.setpgid(0, 0)\nserver.start()\n"
        "signal.signal(signal.SIGINT, lambda *_: say(server.check_health()))\n"
        "os.killpg(0, signal.SIGINT)\ntime.sleep(0.2)\nsay(server.check_health())\nserver.stop()"
    )
    script = owner("say('now')\n" + body)
    output, errors = finish(script)
    assert output == "True\nTrue\n", errors


def test_end_of_the_supervisor(owner: Callable[..., subprocess.Popen[str]]) -> None:
    body = (
        "server.start()\nsay('now')\nos.kill(server.runtime.process.supervisor_pid, signal.SIGKILL)\n"
        "say(server.wait_death(30))\nsay(server.state)\nserver.start()\nsay(server.check_health())\nserver.stop()\n"
    )
    script = owner(body)
    output, errors = finish(script)
    assert output.split() == ["True", "died", "True"], errors


def test_owner_under_nohup(tmp_path: Path, owner: Callable[..., subprocess.Popen[str]]) -> None:
    before = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    script = owner("server.start()\nsay('now')\ntime.sleep(0.3)\nserver.stop()\nsay(server.state)", before=before)
    script.send_signal(signal.SIGHUP)
    output, errors = finish(script)
    assert output == "stopped\n", errors


LIFE = {"server.py", "handle.py", "own.py", "local.py", "process_runtime.py", "runtime.py", "watch.py", "handover.py"}
LIFE |= {"supervised_process.py"}
STRIDE = 4
EVERY_FOURTH_LINE = pytest.mark.parametrize(
    "first", sampled({str(first): first for first in range(1, STRIDE + 1)}, nightly=["2", "3", "4"])
)
"""One line in four every day, all of them nightly."""


class Interrupt:
    """Raises KeyboardInterrupt when this thread first comes to a line of the launcher, the ``number``th one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.place: str | None = None
        self._seen: set[tuple[str, int]] = set()

    def __enter__(self) -> Interrupt:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if Path(frame.f_code.co_filename).name in LIFE else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        place = (Path(frame.f_code.co_filename).name, frame.f_lineno)
        if event == "line" and self.place is None and place not in self._seen:
            self._seen.add(place)
            if len(self._seen) == self.number:
                self.place = f"{place[0]}:{place[1]}"
                raise KeyboardInterrupt
        return self._line


def living_children() -> list[psutil.Process]:
    living = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            # Not the process of the pool of this run itself.
            of_run = "pytest_infserver.pool_process" in " ".join(child.cmdline())
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE and not of_run:
                living.append(child)
    return living


def nothing_runs(begin: float) -> bool:
    """Wait until no child is left, for so long from a moment on as only a server takes that nobody ends."""
    while (left := living_children()) and time.monotonic() - begin < LONG:
        time.sleep(0.005)
    return left == []


def server_of(tmp_path: Path) -> CommandServer:
    launch = [sys.executable, "-S", str(ENGINE), "--port={port}"]
    return CommandServer(launch_command=launch, output_dir=tmp_path, startup_timeout=60, stop_timeout=5)


@EVERY_FOURTH_LINE
@in_a_thread
def test_interrupt_at_any_line_of_start(tmp_path: Path, first: int) -> None:
    threads = threading.active_count()
    for number in range(first, 1000, STRIDE):
        server = server_of(tmp_path)
        begin = time.monotonic()
        with Interrupt(number) as interrupt:
            try:
                server.start()
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
        if not interrupted:
            server.stop()
        # Where the supervisor was lost to the interrupt it ends by itself.
        assert nothing_runs(begin), interrupt.place
        if interrupted:
            assert server.state in (ServerState.NEW, ServerState.FAILED), interrupt.place
        if interrupt.place is None:
            break
    assert threading.active_count() <= threads


@EVERY_FOURTH_LINE
@in_a_thread
def test_interrupt_at_any_line_of_stop(tmp_path: Path, first: int) -> None:
    for number in range(first, 200, STRIDE):
        server = server_of(tmp_path).start()
        with Interrupt(number) as interrupt, contextlib.suppress(KeyboardInterrupt):
            server.stop()
        if server.state is ServerState.READY:
            server.stop()
        assert nothing_runs(time.monotonic()), interrupt.place
        server.stop()
        assert server.state is ServerState.STOPPED
        if interrupt.place is None:
            return
    pytest.fail("stop() has no end")


def stop_kept_ones() -> None:
    for server in all_servers():
        if server.kept:
            server.stop(0)


@pytest.mark.skipif(sys.platform != "linux", reason="keeps servers on Linux")
@EVERY_FOURTH_LINE
@in_a_thread
def test_interrupt_at_any_line_of_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Afterwards it is either kept, or its owner's, which can stop it."""
    own_state_dir(monkeypatch, tmp_path / "state")
    for number in range(first, 200, STRIDE):
        server = server_of(tmp_path).start()
        with Interrupt(number) as interrupt, contextlib.suppress(KeyboardInterrupt):
            assert server.keep(600)
        begin = time.monotonic()
        server.stop()
        assert server.state is ServerState.STOPPED
        stop_kept_ones()
        assert nothing_runs(begin), interrupt.place
        if interrupt.place is None:
            return
    pytest.fail("keep() has no end")


@pytest.mark.skipif(sys.platform != "linux", reason="keeps servers on Linux")
@EVERY_FOURTH_LINE
@in_a_thread
def test_interrupt_at_any_line_of_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Afterwards it is still kept, or the new owner's, or it ends."""
    own_state_dir(monkeypatch, tmp_path / "state")
    for number in range(first, 200, STRIDE):
        assert server_of(tmp_path).start().keep(600)
        server = server_of(tmp_path)
        with Interrupt(number) as interrupt, contextlib.suppress(KeyboardInterrupt):
            assert server.take_over()
        begin = time.monotonic()
        assert server.state in (ServerState.NEW, ServerState.READY), interrupt.place
        server.stop()
        stop_kept_ones()
        assert nothing_runs(begin), interrupt.place
        if interrupt.place is None:
            return
    pytest.fail("take_over() has no end")
