"""`infserver run`: servers outside pytest, until somebody ends it."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pytest_infserver.launcher.diagnosis.log_follower import LogFollower

pytestmark = pytest.mark.usefixtures("hard_limit", "nothing_left")

COMMAND = [sys.executable, "-c", "import sys; from pytest_infserver.cli.main import main; sys.exit(main())", "run"]
ENGINE = [sys.executable, "-S", str(Path(__file__).with_name("fake_engine.py")), "--port", "{port}"]
READY = r"^(\w+): ready after [\d.]+ s: (http://\S+)$"


class Session:
    """One `infserver run`, with what it has printed."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._new: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self.process.stdout:
                self._new.put(line.rstrip("\n"))
        self._new.put(None)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str) -> re.Match[str]:
        """Wait for a line, of those that have not been waited for."""
        while True:
            try:
                line = self._new.get(timeout=30)
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} within 30 s:\n{self.text}") from None
            assert line is not None, f"ended without {pattern!r}:\n{self.text}"
            self.lines.append(line)
            match = re.search(pattern, line)
            if match is not None:
                return match

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end; return the exit status."""
        while (line := self._new.get(timeout=30)) is not None:
            self.lines.append(line)
        return self.process.wait(30)


@pytest.fixture
def run() -> Iterator[Callable[..., Session]]:
    sessions: list[Session] = []

    def start(*arguments: str | Path) -> Session:
        sessions.append(Session(*arguments))
        return sessions[-1]

    yield start
    for session in sessions:
        session.process.kill()
        session.process.wait()


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Write a YAML file: ``config(a=["--delay", "1"])``."""

    def write(defaults: dict[str, Any] | None = None, **servers: list[str]) -> Path:
        base = {"backend": "command", "output_dir": str(tmp_path / "logs"), "startup_timeout": 30, "stop_timeout": 20}
        blocks = {name: {"launch_command": [*ENGINE, *arguments]} for name, arguments in servers.items()}
        path = tmp_path / "servers.yaml"
        path.write_text(yaml.safe_dump({"defaults": {**base, **(defaults or {})}, "servers": blocks}))
        return path

    return write


def get(url: str) -> None:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(url, timeout=30).close()


def test_the_profile_of_a_servers_life_is_named_at_its_end(
    config: Callable[..., Path], run: Callable[..., Session], tmp_path: Path
) -> None:
    profile = {"tool": "py-spy", "args": ["--idle"], "output_dir": str(tmp_path / "profiles")}
    session = run(config({"profile": profile}, a=[]))
    session.until(READY)
    session.signal(signal.SIGINT)
    assert session.end() == 0, session.text
    path = tmp_path / "profiles" / "a" / "server.svg"
    assert session.lines[-1] == f"  profile: {path} (opens in a browser)"
    assert path.read_text().rstrip().endswith("</svg>")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_two_servers_until_a_signal(
    config: Callable[..., Path], run: Callable[..., Session], tmp_path: Path, number: int
) -> None:
    file = config(
        {"env_vars": {"HF_TOKEN": "hf_0123456789"}},
        a=["--say", "hello from a", "--say", "token hf_0123456789"],
        b=["--say", "hello from b", "--stop-delay", "0.5"],
    )
    session = run(file)
    urls = dict(session.until(READY).groups() for _ in range(2))
    assert set(urls) == {"a", "b"}
    get(f"{urls['b']}/say?text=asked")
    session.until(r"^b \| asked$")
    session.signal(number)
    assert session.end() == 0, session.text
    assert f"\n  health: {urls['a']}/health\n" in session.text
    first = session.lines[:2]
    assert [line.partition(":")[0] for line in first] == ["a", "b"]
    assert all("HF_TOKEN=********" in line and "fake_engine.py" in line for line in first)
    assert "a | hello from a" in session.lines
    assert "a | token ********" in session.lines
    assert "b | hello from b" in session.lines
    assert f"  log: {tmp_path}/logs/b/server.log" in session.lines
    assert re.search(r"^a: stopped in \d\.\d s$", session.text, re.MULTILINE)
    assert re.search(r"^b: stopped in [0-9]\.[0-9] s$", session.text, re.MULTILINE)
    assert "hf_0123456789" not in session.text


def test_only_those_that_are_named(config: Callable[..., Path], run: Callable[..., Session]) -> None:
    session = run(config(a=[], b=[], c=[]), "c", "a", "c")
    assert {session.until(READY)[1] for _ in range(2)} == {"a", "c"}
    session.signal(signal.SIGINT)
    assert session.end() == 0
    assert not any(line.startswith("b") for line in session.lines)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("backend: vlm\nmodel: m\n", [], "infserver: {}:1:1: unknown backend 'vlm'; did you mean 'vllm'?"),
        ("servers: {abc: {backend: vllm, model: m}}\n", ["abd"], "infserver: {}: no server is called 'abd'"),
    ],
)
def test_configuration_error(
    tmp_path: Path, run: Callable[..., Session], text: str, name: list[str], message: str
) -> None:
    file = tmp_path / "servers.yaml"
    file.write_text(text)
    session = run(file, *name)
    assert session.end() == 4
    assert session.lines[0].startswith(message.format(file))


def test_start_that_fails_leaves_the_others_alone(config: Callable[..., Path], run: Callable[..., Session]) -> None:
    session = run(config(bad=["--say", "ValueError: no such model", "--exit", "3"], good=["--delay", "0.5"]))
    session.until(r"^bad \(command\) exited with code 3, before it was ready$")
    url = session.until(READY)[2]
    with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
        assert answer.status == 200
    session.signal(signal.SIGINT)
    assert session.end() == 1
    assert "  cause:   ValueError: no such model" in session.lines


def test_all_starts_fail(config: Callable[..., Path], run: Callable[..., Session]) -> None:
    session = run(config(a=["--exit", "3"], b=["--exit", "0"]))
    assert session.end() == 1


def test_death(config: Callable[..., Path], run: Callable[..., Session]) -> None:
    session = run(config(a=["--children", "1"], b=[]))
    urls = dict(session.until(READY).groups() for _ in range(2))
    get(f"{urls['a']}/exit?code=7&say=ValueError:+broken")
    session.until(r"^a \| ValueError: broken$")
    session.until(r"^a \(command\) exited with code 7, while it was in use$")
    get(f"{urls['b']}/kill?signal=9")
    session.until(r"^b \(command\) was killed by SIGKILL, while it was in use$")
    assert session.end() == 1


def test_interrupted_start(config: Callable[..., Path], run: Callable[..., Session]) -> None:
    session = run(config(a=["--delay", "600", "--say", "loading"], b=["--loading", "600"], c=[]))
    wanted = {"a | loading", "b: starting, 1 s", "c: ready"}
    while wanted:
        wanted.discard(session.until(r"^(a \| loading|b: starting, 1 s|c: ready)")[1])
    begin = time.monotonic()
    session.signal(signal.SIGINT)
    assert session.end() == 0
    assert time.monotonic() - begin < 15
    for name in ("a", "b"):
        assert re.search(rf"^{name}: its start was cancelled in \d+\.\d s$", session.text, re.MULTILINE)
    assert re.search(r"^c: stopped in", session.text, re.MULTILINE)


def test_second_interrupt_kills(config: Callable[..., Path], run: Callable[..., Session]) -> None:
    session = run(config({"stop_timeout": 600}, a=["--ignore-term", "--children", "2"]))
    session.until(READY)
    session.signal(signal.SIGINT)
    time.sleep(0.5)
    assert session.process.poll() is None
    session.signal(signal.SIGINT)
    assert session.end() == 1
    assert re.search(r"^a: killed in \d\.\d s$", session.text, re.MULTILINE)


def test_killed_itself(config: Callable[..., Path], run: Callable[..., Session]) -> None:
    session = run(config(a=["--children", "2", "--daemon"], b=["--delay", "600", "--say", "loading"]))
    for _ in range(2):
        session.until(rf"^b \| loading$|{READY}")
    below = psutil.Process(session.process.pid).children(recursive=True)
    assert len(below) >= 4
    session.signal(signal.SIGKILL)
    assert psutil.wait_procs(below, timeout=30)[1] == []


def test_flood(config: Callable[..., Path], run: Callable[..., Session]) -> None:
    session = run(config(a=["--flood-log", "--say-when-ready", "never mind"], b=[]))
    for _ in range(2):
        session.until(READY)
    time.sleep(1)
    session.signal(signal.SIGINT)
    assert session.end() == 0
    assert sum(line.startswith("a | [... too many lines") for line in session.lines) >= 1
    assert len(session.lines) < 6000


def test_leaks_are_errors(config: Callable[..., Path], run: Callable[..., Session], tmp_path: Path) -> None:
    session = run(config({"debug_mode": True}, a=["--leak-file", "left"], b=[]))
    for _ in range(2):
        session.until(READY)
    session.signal(signal.SIGTERM)
    assert session.end() == 1
    assert re.search(r"^a \(command\).*left", session.text, re.MULTILINE), session.text
    assert re.search(r"^b: stopped in", session.text, re.MULTILINE)


def test_attached(config: Callable[..., Path], run: Callable[..., Session], tmp_path: Path) -> None:
    first = run(config(a=[]))
    url = first.until(READY)[2]
    file = tmp_path / "remote.yaml"
    file.write_text(f"backend: remote\nurl: {url}\n")
    second = run(file)
    assert second.until(READY)[2] == url
    second.signal(signal.SIGINT)
    assert second.end() == 0
    assert second.lines[0] == f"remote: attach to {url}"
    urllib.request.urlopen(f"{url}/health", timeout=30).close()
    first.signal(signal.SIGINT)
    assert first.end() == 0


def test_reader_that_goes_away_ends_it(config: Callable[..., Path]) -> None:
    with subprocess.Popen([*COMMAND, str(config(a=[]))], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_without_a_standard_output(config: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = 'exec "$@" >&-'
    process = subprocess.Popen(["sh", "-c", command, "sh", *COMMAND, str(config({"port": port}, a=[]))])
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


# The lines of the log.


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


def add(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


def test_lines_are_given_when_they_are_complete(log: Path) -> None:
    follower = LogFollower(frozenset({"a-long-secret"}))
    assert follower.new_lines(log, 7) == []
    add(log, b"before\nfirst\n\n  indented \xff a-long-se")
    assert follower.new_lines(log, 7) == ["first"]
    add(log, b"cret\r10 %\r20 %\nlast")
    assert follower.new_lines(log, 7) == ["  indented \ufffd ********", "10 %", "20 %"]
    assert follower.new_lines(log, 7) == []
    assert follower.last_line() == ["last"]
    assert follower.last_line() == []


def test_escape_sequences_do_not_reach_the_terminal(log: Path) -> None:
    add(log, b"\x1b[31mred\x1b[0m\ttab \x07bell\x1b]0;title\n")
    assert LogFollower(frozenset()).new_lines(log, 0) == ["red tab  bell"]


def test_too_many_lines_are_left_out(log: Path) -> None:
    follower = LogFollower(frozenset(), burst=3, rate=20)
    add(log, b"".join(b"%d\n" % number for number in range(10)))
    note = f"[... too many lines to show all of them, see {log}]"
    assert follower.new_lines(log, 0) == ["0", "1", "2", note]
    add(log, b"10\n" * 10)
    assert len(follower.new_lines(log, 0)) < 5
    time.sleep(0.2)
    add(log, b"a\n")
    assert follower.new_lines(log, 0) == ["a"]
    add(log, b"b\n" * 10)
    assert follower.new_lines(log, 0)[-1] == note


def test_megabytes_between_two_looks(log: Path) -> None:
    follower = LogFollower(frozenset())
    add(log, b"x" * 1_000_000 + b"\nend\n")
    assert follower.new_lines(log, 0)[0] == "end"


def test_a_line_of_megabytes(log: Path) -> None:
    follower = LogFollower(frozenset())
    shown = []
    for _ in range(20):
        add(log, b"x" * 100_000)
        shown += follower.new_lines(log, 0)
    add(log, b"\nnext\n")
    shown += follower.new_lines(log, 0)
    assert [line[:4] for line in shown] == ["xxxx", "next"]
    assert len(shown[0]) < 5000


def test_log_that_is_truncated_or_replaced(log: Path, tmp_path: Path) -> None:
    follower = LogFollower(frozenset())
    add(log, b"first, long\n")
    assert follower.new_lines(log, 0) == ["first, long"]
    os.truncate(log, 0)
    add(log, b"second\n")
    assert follower.new_lines(log, 0) == ["second"]
    other = tmp_path / "other.log"
    other.write_bytes(b"old\nnew\n")
    assert follower.new_lines(other, 4) == ["new"]
