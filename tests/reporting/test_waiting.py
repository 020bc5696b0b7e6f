"""What a user sees while somebody waits for a server."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest._io import TerminalWriter
from screens import Tty

from pytest_infserver.pool.wait_report import WaitReport, wait_of, wait_report
from pytest_infserver.reporting.terminal import live_lines, plain_lines, waiting
from pytest_infserver.reporting.terminal.waiting import Waiting

pytestmark = pytest.mark.usefixtures("hard_limit")


class Pipe(Tty):
    """A file that is no terminal; it is read on a very wide one."""

    def __init__(self) -> None:
        super().__init__(200, 4)

    def isatty(self) -> bool:
        return False


class Reporter:
    """The part of pytest's terminal reporter that is used."""

    def __init__(self, file: Tty, verbosity: int = 0) -> None:
        self.isatty = file.isatty()
        self.verbosity = verbosity
        self._tw = TerminalWriter(file)
        self.ensure_newline = lambda: None
        self.write = self._tw.write


class Server(SimpleNamespace):
    running = False
    awake = True
    attached = False
    start_seconds = None
    starting_seconds = None
    first_phase = "importing"
    backend_name = "vllm"
    model = None
    secrets = frozenset({"hunter2-hunter2"})

    def __init__(self, name: str = "llama", phase: str = "importing") -> None:
        super().__init__(name=name, phase=phase)
        self.runtime = self.status = self

    def begin(self, seconds: float, phase: str) -> None:
        self.starting_seconds, self.phase = seconds, phase

    def ready(self, seconds: float) -> None:
        self.starting_seconds, self.start_seconds, self.running = None, seconds, True

    def __str__(self) -> str:
        return f"{self.name} (vllm)"

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class Bench:
    """A `Waiting`, and time that passes only when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Tty, verbosity: int = 0, **options: Any) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        for module in (waiting, plain_lines, live_lines):
            monkeypatch.setattr(module, "time", clock)
        for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
            monkeypatch.setattr(live_lines.sys, name, None)
        self.file = file
        self.reporter: Reporter | None = Reporter(file, verbosity)
        self.last: dict[str, float] = {}
        self.known: dict[str, Any] = {}
        self.plugins: set[str] = set(options.pop("plugins", ()))
        manager = SimpleNamespace(
            get_plugin=lambda name: self.reporter if name == "terminalreporter" else None,
            hasplugin=self.plugins.__contains__,
        )
        config: Any = SimpleNamespace(pluginmanager=manager, getoption=lambda name, default: options.get(name, "fd"))
        times: Any = SimpleNamespace(last=lambda kind: self.last.get(kind.split()[0]))
        self.waiting = Waiting(config, times)
        self.size: os.terminal_size | None = os.terminal_size((file.screen.columns, file.screen.lines))
        monkeypatch.setattr(waiting, "terminal_size", lambda file: self.size)

    def show(self, seconds: float, *servers: Server, hindered: dict[Server, str] | None = None) -> list[str]:
        """Let time pass; show what these servers do now."""
        self.now = 1000.0 + seconds
        waits: list[Any] = []
        for server in servers:
            since = seconds if server.runtime.starting_seconds is None else server.runtime.starting_seconds
            waits.append(wait_of(server, since, (hindered or {}).get(server, "")))  # type: ignore[arg-type]
            self.known[server.name] = server
        self.waiting(wait_report(tuple(waits), self.known.values()))
        return self.file.lines


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch, Tty(60, 10))


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch, Pipe())


# On a terminal.


def test_one_line_per_server_is_rewritten_and_erased_on_a_terminal(bench: Bench) -> None:
    one, two = Server("llama-tp1"), Server("sgl")
    bench.last["llama-tp1"] = 52.3
    one.begin(0.5, "importing")
    assert bench.show(0.5, one) == []
    one.begin(31.4, "loading weights 43 %")
    two.begin(4.0, "importing")
    assert bench.show(31.4, one, two) == [
        "",
        "llama-tp1 (vllm)  loading weights 43 %  31 s",
        "sgl (vllm)        importing              4 s",
    ]
    bench.size = os.terminal_size((80, 10))
    one.begin(32.0, "warming up")
    bench.show(32.0, one, two)
    assert "llama-tp1 (vllm)  warming up  32 s (last time 52 s)" in bench.file.writes[-1]
    one.ready(40.0)
    assert bench.show(41.0, two) == ["", "sgl (vllm)  importing  4 s"]
    assert bench.show(42.0) == []
    assert bench.show(43.0) == []


def test_it_is_drawn_four_times_a_second_and_at_once_when_there_are_others(bench: Bench) -> None:
    one, two = Server("one"), Server("two")
    for step in range(1000):
        one.begin(1 + step / 500, "importing")
        bench.show(1 + step / 500, one)
    assert 8 <= len(bench.file.writes) <= 11
    before = len(bench.file.writes)
    bench.show(3.0, one, two)
    assert len(bench.file.writes) == before + 1


def test_a_quick_start_shows_nothing(bench: Bench, pipe: Bench) -> None:
    for one, last in ((bench, 0.9), (pipe, 4.9)):
        server = Server()
        for seconds in (0.3, last):
            server.begin(seconds, "importing")
            one.show(seconds, server)
        server.ready(last)
        one.show(last)
        assert one.file.writes == []


def test_the_second_wait_of_a_run_is_as_patient_as_the_first(bench: Bench) -> None:
    server = Server()
    server.begin(2.0, "importing")
    assert bench.show(2.0, server)
    assert bench.show(3.0) == []
    server.begin(0.5, "importing")
    assert bench.show(4.0, server) == []


def test_why_a_server_does_not_start_is_shown(bench: Bench) -> None:
    one, two = Server("a"), Server("b")
    assert bench.show(3.0, one, two, hindered={one: "waits for room (b stops)", two: "stopping"}) == [
        "",
        "a (vllm)  waits for room (b stops)  3 s",
        "b (vllm)  stopping                  3 s",
    ]


def test_what_a_log_says_harms_no_terminal_and_tells_no_secret(bench: Bench) -> None:
    server = Server("a\x1b[2Jb")
    server.begin(2.0, "loading \x1b[31mred\x1b]0;title\x07 hunter2-hunter2\n\u202eevil \udc80")
    (_, line) = bench.show(2.0, server)
    assert line.startswith("ab (vllm)  loading red ********  evil")
    assert "hunter2" not in "".join(bench.file.writes)
    assert "\u202e" not in "".join(bench.file.writes)
    assert bench.show(3.0) == []


def test_what_the_terminal_cannot_write_is_replaced(bench: Bench) -> None:
    bench.file.encoding = "ascii"
    server = Server("模型")
    server.begin(2.0, "импорт")
    assert bench.show(2.0, server) == ["", "?? (vllm)  ??????  2 s"]


def test_before_its_launch_and_in_hooks_a_server_is_on_its_way(bench: Bench) -> None:
    server = Server(phase="of the start before")
    assert bench.show(2.0, server) == ["", "llama (vllm)  starting  2 s"]
    server.running = True
    assert bench.show(3.0, server) == ["", "llama (vllm)  nearly ready  3 s"]


def test_a_backend_that_cannot_tell_its_secrets_is_shown_without_its_phase(bench: Bench) -> None:
    class Broken(Server):
        @property
        def secrets(self) -> frozenset[str]:
            raise RuntimeError("no command")

    server = Broken()
    server.begin(2.0, "loading hunter2-hunter2")
    assert bench.show(2.0, server) == ["", "llama (vllm)  starting  2 s"]


def test_more_servers_than_half_of_the_terminal_are_counted(bench: Bench) -> None:
    servers = [Server(f"server-{number}") for number in range(20)]
    lines = bench.show(2.0, *servers)
    assert len(lines) == 6
    assert lines[-1] == "... and 16 more"
    bench.size = os.terminal_size((60, 1))
    assert bench.show(3.0, *servers) == []


def test_an_outlook_that_comes_too_late_is_not_shown(bench: Bench) -> None:
    server: Any = Server()
    server.begin(2.0, "importing")
    late = wait_report((wait_of(server, 2.0),))
    assert bench.show(2.0, server)
    assert bench.show(3.0) == []
    bench.waiting(late)
    assert bench.file.lines == []


def test_after_the_end_nothing_is_shown(bench: Bench) -> None:
    server = Server()
    server.begin(2.0, "importing")
    assert bench.show(2.0, server)
    bench.waiting.close()
    assert bench.file.lines == []
    assert bench.show(9.0, server) == []
    assert "write" not in vars(bench.file)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("I/O operation on closed file")])
def test_a_terminal_that_goes_away_keeps_nobody_from_a_server(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    server = Server()
    server.begin(2.0, "importing")
    assert bench.show(2.0, server)

    def gone(file: Tty, text: str) -> int:
        raise error

    monkeypatch.setattr(Tty, "write", gone)
    bench.file.write = lambda text: gone(bench.file, text)  # type: ignore[method-assign]
    bench.show(3.0, server)
    bench.show(4.0)
    bench.waiting.close()


def test_quiet_is_quiet_and_without_a_terminal_plugin_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (Tty(), Pipe()):
        for reporter in (True, False):
            bench = Bench(monkeypatch, file, verbosity=-1)
            if not reporter:
                bench.reporter = None
            server = Server()
            for seconds in (2.0, 20.0):
                server.begin(seconds, "importing")
                bench.show(seconds, server)
            bench.show(21.0)
            bench.waiting.close()
            assert file.writes == []


def test_a_terminal_that_cannot_be_drawn_on_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Tty(100, 10))
    bench.size = None
    server = Server()
    server.begin(6.0, "importing")
    assert bench.show(6.0, server) == ["infserver: llama (vllm): importing, 6 s"]


@pytest.mark.parametrize(("capture", "live"), [("no", False), ("fd", True)])
def test_workers_that_write_on_the_terminal_themselves_leave_no_room_for_live_lines(
    monkeypatch: pytest.MonkeyPatch, capture: str, live: bool
) -> None:
    bench = Bench(monkeypatch, Tty(100, 10), plugins=["dsession"], capture=capture)
    server = Server()
    server.begin(6.0, "importing")
    assert (bench.show(6.0, server) == ["infserver: llama (vllm): importing, 6 s"]) is not live


def test_threads_that_end_their_waits_at_once_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Tty(60, 10))
    server: Any = Server()
    server.begin(2.0, "importing")
    lock, waiters = threading.Lock(), 8

    def wait() -> None:
        nonlocal waiters
        for _ in range(200):
            with lock:
                now: WaitReport = wait_report((wait_of(server, 2.0),))
            bench.now += 0.1
            bench.waiting(now)
        with lock:
            waiters -= 1
            now = wait_report((wait_of(server, 2.0),) if waiters else ())
        bench.waiting(now)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(waiters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert any("importing" in text for text in bench.file.writes)
    assert bench.file.lines == []
    assert "write" not in vars(bench.file)


# Elsewhere.


def test_elsewhere_a_plain_line_for_a_new_phase_now_and_then(pipe: Bench) -> None:
    server = Server()
    steps = [(second / 4, "importing" if second < 80 else f"loading weights {second} %") for second in range(160)]
    for seconds, phase in [*steps, (40.0, "warming up")]:
        server.begin(seconds, phase)
        pipe.show(seconds, server)
    server.ready(41.2)
    assert pipe.show(41.2) == [
        "infserver: llama (vllm): importing, 5 s",
        "infserver: llama (vllm): loading weights 80 %, 20 s",
        "infserver: llama (vllm): warming up, 40 s",
        "infserver: llama (vllm): ready after 41 s",
    ]
    # It is seen at once, also where pytest's output is buffered.
    assert pipe.file.flushes == 4


def test_several_servers_share_a_line_and_its_fifteen_seconds(pipe: Bench) -> None:
    one, two, three = Server("a"), Server("b"), Server("c")
    pipe.last["a"] = 30.0
    for step in range(160):
        seconds = step / 4
        one.begin(seconds, "importing" if seconds < 7 else f"phase {step} of many")
        two.begin(seconds, "importing")
        shown = [one, two]
        if seconds > 3:
            three.begin(seconds - 3, "compiling")
            shown.append(three)
        pipe.show(seconds, *shown)
    assert pipe.file.lines == [
        "infserver: a (vllm): importing, 5 s (last time 30 s); b (vllm): importing, 5 s",
        "infserver: a (vllm): phase 80 of many, 20 s (last time 30 s); c (vllm): compiling, 17 s",
        "infserver: a (vllm): phase 140 of many, 35 s (last time 30 s)",
    ]
    two.ready(40.4)
    one.begin(41.0, "ending")
    assert pipe.show(41.0, one, three)[3:] == ["infserver: b (vllm): ready after 40 s"]
    # Nobody waits for those that still start.
    assert len(pipe.show(42.0)) == 4
    one.ready(47.0)
    three.starting_seconds = None
    assert pipe.show(49.0)[4:] == ["infserver: a (vllm): ready after 47 s"]
    assert len(pipe.show(50.0)) == 5


def test_a_wait_for_room_is_told_and_one_for_a_running_server_is_not_called_ready(pipe: Bench) -> None:
    one, two = Server("a"), Server("b")
    two.ready(3.0)
    hindered = {one: "waits for room (b runs)", two: "waits for test_x to give it back"}
    for seconds in (4.0, 6.0, 30.0, 60.0):
        pipe.show(seconds, one, two, hindered=hindered)
    one.begin(1.0, "importing")
    pipe.show(62.0, one)
    one.ready(2.0)
    assert pipe.show(64.0) == [
        "infserver: a (vllm): waits for room (b runs), 6 s; b (vllm): waits for test_x to give it back, 6 s",
        "infserver: a (vllm): ready after 2 s",
    ]


# In a run.


BACKEND = """
import re
from pathlib import Path
import sys
from pytest_infserver import InferenceServer
from pytest_infserver.launcher.startup.phases import Phase

class Slow(InferenceServer):
    requires_model = False
    first_phase = "importing"
    phases = (Phase(re.compile(rb"weights (\\d+) of 9"), "loading weights {} %"),)

    def get_backend_name(self):
        return "slow"

    def get_binary_path(self):
        return sys.executable

    def get_launch_command(self):
        return [sys.executable, "-S", ENGINE, "--port", str(self.port), "--say", "weights 7 of 9", "--delay", "6.5"]
"""


def test_in_a_run_without_a_terminal(pytester: pytest.Pytester, run_inline: Any) -> None:
    engine = Path(__file__).parent.parent / "fake_engine.py"
    pytester.makepyfile(slow=f"ENGINE = {str(engine)!r}\n{BACKEND}", test_it="def test_it(inference_server): pass\n")
    pytester.path.joinpath("servers.yaml").write_text("backend: slow:Slow\n")
    result = run_inline("--infserver-config=servers.yaml")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines(
        [r"infserver: slow: loading weights 7 %, \d+ s", r"infserver: slow: ready after \d+ s"]
    )


@pytest.mark.parametrize("capture", ["capfd", "capsys"])
def test_a_start_inside_a_test_does_not_write_into_what_the_test_writes(
    pytester: pytest.Pytester, run_inline: Any, capture: str
) -> None:
    engine = Path(__file__).parent.parent / "fake_engine.py"
    tests = f"""
        def test_it(inference_server_factory, {capture}):
            inference_server_factory("slow")
            print("hello")
            assert {capture}.readouterr().out == "hello\\n"
    """
    pytester.makepyfile(slow=f"ENGINE = {str(engine)!r}\n{BACKEND}", test_it=tests)
    pytester.path.joinpath("servers.yaml").write_text("backend: slow:Slow\n")
    result = run_inline("--infserver-config=servers.yaml")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r".*infserver: slow: loading weights 7 %, \d+ s"])
