"""What a user sees while a server starts."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest._io import TerminalWriter

from pytest_infserver.reporting import waiting
from pytest_infserver.reporting.waiting import WaitingLine


class Reporter:
    """The part of pytest's terminal reporter that is used."""

    def __init__(self, isatty: bool, verbosity: int = 0) -> None:
        self.isatty = isatty
        self.verbosity = verbosity
        self.output = io.StringIO()
        self._tw = TerminalWriter(self.output)
        self._tw.fullwidth = 60

    def ensure_newline(self) -> None:
        self.output.write("<newline>")

    def write_line(self, text: str) -> None:
        self.output.write(text + "\n")

    def rewrite(self, line: str, erase: bool = False) -> None:
        self.output.write("\r" + line + (" " * (self._tw.fullwidth - len(line) - 1) if erase else ""))


class Server(SimpleNamespace):
    running = True
    start_seconds = 41.2

    def __str__(self) -> str:
        return "llama (vllm)"

    def __hash__(self) -> int:
        return id(self)


class Clock:
    """Time that passes only when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def show(reporter: Reporter, clock: Clock, *steps: tuple[float, str]) -> str:
    plugins = SimpleNamespace(get_plugin=lambda name: reporter if name == "terminalreporter" else None)
    line = WaitingLine(SimpleNamespace(pluginmanager=plugins))  # type: ignore[arg-type]
    server: Any = Server(phase="", starting_seconds=0.0)
    for seconds, phase in steps:
        clock.now = 1000.0 + seconds
        server.starting_seconds, server.phase = seconds, phase
        line(server)
    server.starting_seconds = None
    line(server)
    return reporter.output.getvalue()


def test_a_line_is_rewritten_and_erased_on_a_terminal(clock: Clock) -> None:
    text = show(Reporter(True), clock, (0.5, "importing"), (1.5, "importing"), (31.4, "loading weights 43 %"))
    lines = [part.rstrip() for part in text.split("\r")]
    assert lines == [
        "<newline>",
        "infserver: llama (vllm): importing, 2 s",
        "infserver: llama (vllm): loading weights 43 %, 31 s",
        "",
        "",
    ]
    assert all(len(part) <= 59 for part in text.split("\r"))


def test_a_long_line_does_not_wrap_and_keeps_the_time(clock: Clock) -> None:
    text = show(Reporter(True), clock, (2.0, "loading weights of many parts 7 %"), (3.0, "x" * 100))
    lines = text.split("\r")
    assert all(len(part) <= 59 for part in lines)
    assert lines[1].rstrip() == "2 s: loading weights of many parts 7 %"
    assert lines[2].startswith("3 s: xxx")


def test_a_quick_start_shows_nothing(clock: Clock) -> None:
    assert show(Reporter(True), clock, (0.3, "importing"), (0.9, "loading")) == ""
    assert show(Reporter(False), clock, (0.3, "importing"), (4.9, "loading")) == ""


def test_elsewhere_a_plain_line_for_a_new_phase_now_and_then(clock: Clock) -> None:
    steps = [(second / 4, "importing" if second < 80 else f"loading weights {second} %") for second in range(160)]
    steps.append((40.0, "warming up"))
    text = show(Reporter(False), clock, *steps)
    assert text.replace("<newline>", "").splitlines() == [
        "infserver: llama (vllm): importing, 5 s",
        "infserver: llama (vllm): loading weights 80 %, 20 s",
        "infserver: llama (vllm): warming up, 40 s",
        "infserver: llama (vllm): ready after 41 s",
    ]


def test_quiet_is_quiet(clock: Clock) -> None:
    for isatty in (True, False):
        assert show(Reporter(isatty, -1), clock, (2.0, "importing"), (20.0, "loading")) == ""


BACKEND = """
import re
from pathlib import Path
import sys
from pytest_infserver import InferenceServer
from pytest_infserver.launcher.phases import Phase

class Slow(InferenceServer):
    requires_model = False
    first_phase = "importing"
    phases = (Phase(re.compile(rb"weights (\\d+) of 9"), "loading weights {} %"),)

    def get_backend_name(self):
        return "slow"

    def get_binary_path(self):
        return sys.executable

    def get_launch_command(self):
        return [sys.executable, "-S", ENGINE, "--port", str(self.port), "--say", "weights 7 of 9", "--delay", "5.6"]
"""


def test_in_a_run_without_a_terminal(pytester: pytest.Pytester, run_pytest: Any) -> None:
    engine = Path(__file__).parent.parent / "fake_engine.py"
    pytester.makepyfile(slow=f"ENGINE = {str(engine)!r}\n{BACKEND}", test_it="def test_it(inference_server): pass\n")
    pytester.path.joinpath("servers.yaml").write_text("backend: slow:Slow\n")
    result = run_pytest("--infserver-config=servers.yaml")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r"infserver: slow: loading weights 7 %, 5 s", r"infserver: slow: ready after [56] s"])


@pytest.mark.parametrize("capture", ["capfd", "capsys"])
def test_a_start_inside_a_test_does_not_write_into_what_the_test_writes(
    pytester: pytest.Pytester, run_pytest: Any, capture: str
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
    result = run_pytest("--infserver-config=servers.yaml")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r".*infserver: slow: loading weights 7 %, 5 s"])
