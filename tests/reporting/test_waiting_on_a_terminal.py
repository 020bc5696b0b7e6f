"""Real runs on a terminal: what is shown while a server starts, and that nothing of it stays."""

from __future__ import annotations

import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import without_a_trace
from pty_runs import InlineRun, PtyRun, pytest_options

pytestmark = pytest.mark.usefixtures("nothing_left", "hard_limit")

ENGINE = Path(__file__).parent.parent / "fake_engine.py"
SLOW = """
import os
import re
import sys
from pytest_infserver import InferenceServer
from pytest_infserver.launcher.startup.phases import Phase

class Slow(InferenceServer):
    requires_model = False
    first_phase = "importing"
    phases = (Phase(re.compile(rb"weights (.+) of"), "loading weights {} %"),)

    def get_backend_name(self):
        return "slow"

    def get_binary_path(self):
        return sys.executable

    def get_launch_command(self):
        say = ["--say", os.environ.get("SLOW_SAY", "weights 43 of 100")]
        return [sys.executable, "-S", ENGINE, "--port", str(self.port), *say, *self.config["words"]]
"""
TESTS = """
import sys, threading, time
import pytest

@pytest.mark.parametrize("number", range(3))
def test_before(number):
    print("printed", number)
    sys.stdout.write("unfinished ")

@pytest.mark.parametrize("number", range(3))
def test_it(inference_server, number):
    print("on", inference_server.name)
    if number == 1:
        pytest.skip("for a reason")

def test_fails(inference_server):
    assert 0
"""
Start = Callable[..., PtyRun]
Inline = Callable[..., InlineRun]
Servers = dict[str, list[str] | dict[str, Any]]
"""What each server gets: the fake engine's arguments, or another one's block of the YAML."""


@pytest.fixture
def arguments_for(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Make a project with slow servers, and the arguments of pytest for it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("NO_COLOR")
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(slow=f"ENGINE = {str(ENGINE)!r}\n{SLOW}", test_suite=TESTS)
    ports: dict[str, int] = {}

    def port(name: str) -> int:
        # The same in all runs of a test, which are compared.
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return ports.setdefault(name, one.getsockname()[1])

    def arguments_for(*arguments: str, servers: Servers | None = None, cache: bool = False) -> list[str]:
        blocks = {
            name: words
            if isinstance(words, dict)
            else {"backend": "slow:Slow", "port": port(name), "config": {"words": words}}
            for name, words in (servers or {"llama": ["--delay", "2.6"]}).items()
        }
        (pytester.path / "servers.yaml").write_text(yaml.safe_dump({"servers": blocks}))
        plugins = ["pytest_infserver.plugin", *(["xdist"] if "-n2" in arguments else [])]
        chosen = [word for name in plugins for word in ("-p", name)]
        where = [] if cache else ["-p", "no:cacheprovider"]
        return pytest_options(*chosen, *where, *arguments)

    return arguments_for


@pytest.fixture
def start_on_terminal(arguments_for: Callable[..., list[str]], pytester: pytest.Pytester) -> Iterator[Start]:
    """Run pytest on a terminal, as a process of its own: it can be resized and interrupted."""
    runs: list[PtyRun] = []

    def start(
        *arguments: str,
        servers: Servers | None = None,
        columns: int = 80,
        lines: int = 24,
        cache: bool = False,
        **env: str,
    ) -> PtyRun:
        argv = [sys.executable, "-m", "pytest", *arguments_for(*arguments, servers=servers, cache=cache)]
        runs.append(PtyRun(argv, pytester.path, columns=columns, lines=lines, env=env))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.fixture
def inline(arguments_for: Callable[..., list[str]], pytester: pytest.Pytester) -> Inline:
    """Run pytest on a terminal, in this process, to its end: quick."""

    def inline(
        *arguments: str,
        servers: Servers | None = None,
        columns: int = 80,
        lines: int = 24,
        cache: bool = False,
        **env: str,
    ) -> InlineRun:
        words = arguments_for(*arguments, servers=servers, cache=cache)

        def run() -> int:
            with without_a_trace():
                return int(pytester.inline_run(*words, no_reraise_ctrlc=True).ret)

        return InlineRun(run, columns=columns, lines=lines, env=env)

    return inline


def comparable(text: str, *, in_any_order: bool = False) -> list[str]:
    """Return what was shown without times; of a line that is filled up, whatever the time's length makes of it."""
    text = re.sub(r"=+ (.*) in [\d.]+s(?: \([\d:]+\))? =+", r"\1", text)
    text = re.sub(r"(\d (?:passed|failed|skipped).*) in [\d.]+s", r"\1", text)
    text = re.sub(r"\bgw\d", "gw", re.sub(r"\[ *\d+%\]", "[%]", text) if in_any_order else text)
    text = re.sub(r"127\.0\.0\.1:\d+|pid[= ]\d+|up [\d.]+ s", "", text)
    # How slow a server is stands in its command, which may be wrapped anywhere.
    text = re.sub(r"^command: .*?^(?=[-=_]{3})", "", text, flags=re.M | re.S)
    if not in_any_order:
        return text.splitlines()
    # Of a line of letters the order is chance, too.
    return sorted("".join(sorted(line)) if line.strip()[:1] in ".sF" else line for line in text.splitlines())


SLOWLY = {"llama": ["--delay", "2.6"], "llama-longer": ["--delay", "3.2"]}
AT_ONCE: dict[str, list[str]] = {"llama": [], "llama-longer": []}
LIVE = re.compile(
    r"^llama \(slow\) +loading weights 43 % +\d+ s$\n^llama-longer \(slow\) +loading weights 43 % +\d+ s$", re.M
)


def check_that_nothing_is_left_of_the_lines(run: Callable[..., Any], *arguments: str, columns: int, lines: int) -> None:
    size = {"columns": columns, "lines": lines}
    slow = run(*arguments, servers=SLOWLY, **size)
    assert slow.finish() == 1
    quick = run(*arguments, servers=AT_ONCE, **size)
    assert quick.finish() == 1
    assert any(LIVE.search(frame) for frame in slow.frames), slow.frames
    # Two workers take turns as they please.
    in_any_order = "-n2" in arguments
    assert comparable(slow.text, in_any_order=in_any_order) == comparable(quick.text, in_any_order=in_any_order)


def names_of(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


@pytest.mark.parametrize(
    ("arguments", "columns", "lines"),
    [
        ([], 80, 40),
        (["-v"], 80, 40),
        (["-s", "--infserver-log=failed"], 80, 40),
        (["-s", "--infserver-log=failed", "-vv"], 80, 9),
        (["--color=yes"], 80, 8),
        (["--color=no", "-rA"], 60, 12),
    ],
    ids=names_of,
)
def test_it_is_as_if_the_lines_had_never_been_there(
    inline: Inline, arguments: list[str], columns: int, lines: int
) -> None:
    check_that_nothing_is_left_of_the_lines(inline, *arguments, columns=columns, lines=lines)


@pytest.mark.parametrize(
    ("arguments", "columns", "lines"),
    [
        (["-n2"], 80, 7),
        *(pytest.param(*row, marks=pytest.mark.nightly) for row in [(["-n2"], 80, 40), (["-n2", "-v"], 60, 10)]),
    ],
    ids=names_of,
)
def test_it_is_as_if_the_lines_of_a_run_on_workers_had_never_been_there(
    start_on_terminal: Start, arguments: list[str], columns: int, lines: int
) -> None:
    check_that_nothing_is_left_of_the_lines(start_on_terminal, *arguments, columns=columns, lines=lines)


def test_no_color_is_respected(inline: Inline) -> None:
    run = inline(NO_COLOR="1")
    assert run.finish() == 1
    assert any(re.search(r"^llama \(slow\)  loading weights 43 %  \d+ s$", frame, re.M) for frame in run.frames)
    assert not re.search(rb"\x1b\[[\d;]*\d+m", run.raw)


def check_that_nothing_is_shown(run: Any) -> None:
    run.finish()
    assert not any("loading" in frame or "infserver:" in frame for frame in run.frames)
    assert b"\x1bD" not in run.raw
    assert "Traceback" not in run.text


@pytest.mark.parametrize("arguments", [["-q"], ["-p", "no:terminal"]], ids=" ".join)
def test_quiet_shows_nothing(inline: Inline, arguments: list[str]) -> None:
    check_that_nothing_is_shown(inline(*arguments))


def test_quiet_workers_show_nothing(start_on_terminal: Start) -> None:
    check_that_nothing_is_shown(start_on_terminal("-q", "-n2"))


@pytest.mark.parametrize("arguments", [[], ["-s"]], ids=" ".join)
def test_a_dumb_terminal_and_one_of_no_size_get_plain_lines(inline: Inline, arguments: list[str]) -> None:
    run = inline(*arguments, servers={"llama": ["--delay", "6.5"]}, TERM="dumb")
    assert run.finish() == 1
    assert re.search(r"^infserver: llama \(slow\): loading weights 43 %, \d+ s$", run.text, re.M)
    assert re.search(r"^infserver: llama \(slow\): ready after \d+ s$", run.text, re.M)
    assert b"\x1b" not in run.raw


def test_workers_whose_output_is_not_captured_leave_plain_lines(start_on_terminal: Start) -> None:
    run = start_on_terminal("-n2", "-s", servers={"llama": ["--delay", "6.5"]})
    assert run.finish() == 1
    # What the workers write themselves may stand before it.
    assert len(re.findall(r"infserver: llama \(slow\): loading weights 43 %, \d+ s$", run.text, re.M)) == 1
    assert b"\x1bD" not in run.raw


def test_a_pipe_gets_plain_lines_whatever_the_colours(
    arguments_for: Callable[..., list[str]], run_inline: Callable[..., pytest.RunResult]
) -> None:
    result = run_inline(*arguments_for("--color=yes", servers={"llama": ["--delay", "6.5"]}))
    text = "\n".join(result.outlines)
    assert re.search(r"^infserver: llama \(slow\): loading weights 43 %, \d+ s$", text, re.M)
    assert "\x1bD" not in text
    assert "\x1b7" not in text


def test_a_narrow_terminal_cuts_the_lines(inline: Inline) -> None:
    run = inline(columns=24, lines=30)
    assert run.finish() == 1
    assert any(re.search(r"^llama\.\.\.  loadi\.\.\.  \d s$", frame, re.M) for frame in run.frames)
    assert "loadi" not in run.text


@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["alone", "n2"])
def test_a_resized_terminal_is_left_clean(start_on_terminal: Start, arguments: list[str]) -> None:
    run = start_on_terminal(*arguments, servers=SLOWLY, columns=100, lines=20)
    run.until(LIVE.search)
    for columns, lines in ((60, 14), (90, 9), (70, 25), (50, 12)):
        run.resize(columns, lines)
        deadline = time.monotonic() + 0.35
        while time.monotonic() < deadline:
            assert run.read()
    assert run.finish() == 1
    assert "loading" not in run.text
    assert not re.search(r"\) +\w+ .*\d s$", run.text, re.M)
    assert re.search(r"2 failed, 7 passed, 2 skipped", run.text)


@pytest.mark.parametrize(
    "arguments", [[], ["-v"], ["-s", "--infserver-log=failed"], ["-n2"], ["-n2", "-v"]], ids=" ".join
)
def test_an_interrupt_leaves_the_screen_clean(start_on_terminal: Start, arguments: list[str]) -> None:
    run = start_on_terminal(*arguments, servers={"llama": ["--delay", "60"]}, lines=12)
    run.until(lambda frame: "loading weights" in frame)
    run.type("\x03")
    assert run.finish() == 2
    assert "loading" not in run.text
    assert "KeyboardInterrupt" in run.text
    assert re.search(r"=+ .*3 passed.* in .*=+$", run.text.splitlines()[-1])
    assert (run.screen.cursor.x, run.screen.display[run.screen.cursor.y].strip()) == (0, "")


def test_an_interrupt_by_a_signal_to_pytest_alone(start_on_terminal: Start) -> None:
    run = start_on_terminal(servers={"llama": ["--delay", "60"]}, lines=12)
    run.until(lambda frame: "loading weights" in frame)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 2
    assert "loading" not in run.text


def test_a_failed_start_and_a_crash_leave_the_screen_clean(inline: Inline, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_infserver_server_started(server): raise RuntimeError('in a hook')")
    run = inline(servers={"llama": ["--delay", "2"]})
    assert run.finish() == 1
    assert any("loading weights" in frame for frame in run.frames)
    assert "RuntimeError: in a hook" in run.text
    assert "loading weights" not in run.text
    pytester.makeconftest("def pytest_infserver_server_started(server): raise SystemExit(7)")
    run = inline(servers={"llama": ["--delay", "2"]})
    run.finish()
    assert any("loading weights" in frame for frame in run.frames)
    assert "loading weights" not in run.text


def test_keys_that_are_pressed_leave_nothing_of_the_lines(start_on_terminal: Start) -> None:
    run = start_on_terminal(servers={name: ["--delay", "8"] for name in SLOWLY})
    run.until(LIVE.search)
    for _ in range(3):
        run.type("\r")
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            run.read()
    assert run.finish() == 1
    assert "loading" not in run.text


def test_a_flood_of_output_stays_whole(start_on_terminal: Start, pytester: pytest.Pytester) -> None:
    flood = """
        import sys, threading, time
        def write(file, name, enough):
            for number in range(enough):
                file.write(f"{name} {number} {'x' * (number % 60)}\\n")
                if number % 2 == 0:
                    file.flush()
                time.sleep(0.0005)
        def test_begin():
            for file, name in ((sys.stdout, "out"), (sys.stderr, "err")):
                threading.Thread(target=write, args=(file, name, 3000)).start()
        def test_it(inference_server): pass
    """
    pytester.makepyfile(test_suite=flood)
    run = start_on_terminal("-s", "--infserver-log=failed")
    assert run.finish() == 0
    # It was shown, if only until the next word of the flood.
    assert b"loading weights 43 %" in run.raw
    for name in ("out", "err"):
        # Words of two threads may share a line, but none is lost, and nothing of ours is among them.
        assert [int(number) for number in re.findall(rf"{name} (\d+)", run.text)] == list(range(3000))
    assert "loading" not in run.text
    assert "(slow)" not in run.text.replace("servers.yaml: llama (slow)", "")


def test_what_a_log_says_does_no_harm(inline: Inline) -> None:
    run = inline(SLOW_SAY="weights \x1b[2J\x1b[31mred\x1b]0;title\x07\x9b2J\x1bc of")
    assert run.finish() == 1
    assert any("llama (slow)  loading weights red" in frame for frame in run.frames)
    assert "test session starts" in run.text
    assert b"\x1b[2J" not in run.raw
    assert b"\x1bc" not in run.raw


LAST_TIME = re.compile(r"^llama \(slow\)  loading weights 43 %  \d+ s \(last time \d+ s\)$", re.M)


def test_the_last_time_is_remembered(inline: Inline, pytester: pytest.Pytester) -> None:
    first_run = inline("-k", "test_it", cache=True)
    assert first_run.finish() == 0, first_run.text
    file = pytester.path / ".pytest_cache" / "v" / "infserver" / "start_seconds"
    first = file.read_text()
    assert re.search(r'"llama slow": \d+\.\d', first)
    run = inline("-k", "test_it", cache=True)
    assert run.finish() == 0
    assert any(LAST_TIME.search(frame) for frame in run.frames)
    file.write_text("[" * 100_000)
    run = inline("-k", "test_it", cache=True)
    assert run.finish() == 0
    assert "last time" not in run.text + "".join(run.frames)
    assert re.search(r'"llama slow": \d+\.\d', file.read_text())


def test_the_last_time_is_remembered_for_workers(inline: Inline, start_on_terminal: Start) -> None:
    assert inline("-k", "test_it", cache=True).finish() == 0
    run = start_on_terminal("-n2", "-k", "test_it", cache=True)
    assert run.finish() == 0
    assert any(LAST_TIME.search(frame) for frame in run.frames)


def test_a_start_inside_a_test_is_shown_too(inline: Inline, pytester: pytest.Pytester) -> None:
    tests = """
        def test_it(inference_server_factory, capfd):
            inference_server_factory("llama")
            print("hello")
            assert capfd.readouterr().out == "hello\\n"
        def test_end(): pass
    """
    pytester.makepyfile(test_suite=tests)
    run = inline("-v")
    assert run.finish() == 0
    assert any(
        re.search(r"test_suite.py::test_it *\nllama \(slow\)  loading weights 43 %  \d s", f) for f in run.frames
    )
    assert re.search(
        r"^test_suite.py::test_it PASSED +\[ 50%\]\ntest_suite.py::test_end PASSED +\[100%\]$", run.text, re.M
    )


def check_that_a_wait_for_room_is_shown(run_on_terminal: Callable[..., Any], *arguments: str) -> None:
    servers = {"first": ["--stop-delay", "3"], "second": ["--delay", "2.5"]}
    run = run_on_terminal(*arguments, "--infserver-max-servers=1", "-k", "test_it", servers=servers)
    assert run.finish() == 0
    told = [frame for frame in run.frames if "second (slow)  waits for room (first stops)" in frame]
    assert any(re.search(r"^first \(slow\) +stopping +\d s$", frame, re.M) for frame in told)
    assert any("second (slow)  loading weights 43 %" in frame for frame in run.frames)
    assert "(slow)" not in run.text.replace("first (slow), second (slow)", "")


def test_a_server_that_waits_for_room_says_so(inline: Inline) -> None:
    check_that_a_wait_for_room_is_shown(inline)


def test_a_server_of_workers_that_waits_for_room_says_so(start_on_terminal: Start) -> None:
    check_that_a_wait_for_room_is_shown(start_on_terminal, "-n2")


def test_the_real_llama_cpp(inline: Inline, pytester: pytest.Pytester) -> None:
    pytest.importorskip("xllamacpp")
    wrapper = pytester.path / "slow-llama-server"
    command = [sys.executable, "-m", "pytest_infserver.embedded_llamacpp.server"]
    wrapper.write_text(
        f"#!{sys.executable}\nimport os, sys, time\ntime.sleep(2.5)\n"
        f"os.execv({sys.executable!r}, [*{command!r}, *sys.argv[1:]])\n"
    )
    wrapper.chmod(0o755)
    block = {"backend": "llamacpp", "model": "builtin:tiny", "binary_path": str(wrapper)}
    run = inline("-v", "-k", "test_it", servers={"tiny": block})
    assert run.finish() == 0
    assert any(re.search(r"^tiny \(llamacpp\)  \w.* +\d s$", frame, re.M) for frame in run.frames)
    assert "(llamacpp)  " not in run.text
    assert run.text.count("PASSED") == 2
