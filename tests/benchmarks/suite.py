"""How long a whole test suite takes with this plugin and with its peers, side by side in one run.

    python -m venv bench && bench/bin/pip install -e '.[xdist]' mirakuru pytest-xprocess
    bench/bin/python tests/benchmarks/suite.py [--runs 3] [--only ours,session] [--workers 0,2] [--max-servers 1]
    bench/bin/python tests/benchmarks/suite.py --keep      # a second run that takes over the servers of the first
    bench/bin/python tests/benchmarks/suite.py --lease     # milliseconds that a test pays for `inference_server`

The suite: 4 configurations whose server needs 4 s to start; 6 modules; 80 tests of 50 ms, of which 20 need no server
and 60 are spread evenly over configurations and modules, mixed in each module. Peers: a module-scoped and a
session-scoped fixture with a poll loop of 0.5 s, written here, and mirakuru and pytest-xprocess where they are
installed. The machine should be idle.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

CONFIGURATIONS = ("a", "b", "c", "d")
MODULES = 6
SERVER_TESTS = 60
PLAIN_TESTS = 20
TEST_SECONDS = 0.05
START_SECONDS = 4.0
STOP_SECONDS = 0.1
LEASE_TESTS = (400, 1600)
LIMIT = 900
"""Seconds after which one run of pytest counts as hung."""

SERVER = """
import http.server, os, signal, sys, time
port, name, delay, exit_delay, folder = int(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:5]), sys.argv[5]
# Not the file itself: one that the command names counts for what is kept, and this one changes.
note = folder + "/note"
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_GET
    def log_message(self, *_): pass
def write(what):
    with open(note, "a") as file:
        file.write(f"{what} {name} {time.time()} {os.getpid()}\\n")
def stop(*_):
    time.sleep(exit_delay)
    write("gone")
    os._exit(0)
write("start")
signal.signal(signal.SIGTERM, stop)
time.sleep(delay)
# As real engines have it: with the 5 of http.server, connections of a busy moment wait a second for their second try.
http.server.ThreadingHTTPServer.request_queue_size = 128
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
print("ready", flush=True)
server.serve_forever()
"""

COMMON = """
import contextlib, pathlib, signal, socket, subprocess, sys, time, urllib.request
import pytest

NAMES = {names!r}

def argv(port, name):
    return [sys.executable, "-S", {script!r}, str(port), name, "{start}", "{stop}", {folder!r}]

def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]

def poll_loop(name):
    port = free_port()
    process = subprocess.Popen(argv(port, name))
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{{port}}/health", timeout=5):
            break
        time.sleep(0.5)
    yield f"http://127.0.0.1:{{port}}"
    process.send_signal(signal.SIGTERM)
    process.wait()
"""

FIXTURES = {
    "ours": "",
    "module": """
@pytest.fixture(scope="module", params=NAMES)
def server(request):
    yield from poll_loop(request.param)
""",
    "session": """
@pytest.fixture(scope="session", params=NAMES)
def server(request):
    yield from poll_loop(request.param)
""",
    "mirakuru": """
from mirakuru import HTTPExecutor

@pytest.fixture(scope="session", params=NAMES)
def server(request):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with HTTPExecutor(argv(port, request.param), url + "/health", timeout=60):
        yield url
""",
    "xprocess": """
from xprocess import ProcessStarter

@pytest.fixture(scope="session", params=NAMES)
def server(request, xprocess):
    port = free_port()

    class Starter(ProcessStarter):
        pattern = "ready"
        args = argv(port, request.param)
        timeout = 60

    # Each worker has its own: they would take over each other's server and stop it.
    worker = getattr(request.config, "workerinput", {}).get("workerid", "")
    xprocess.ensure(request.param + worker, Starter)
    yield f"http://127.0.0.1:{port}"
    xprocess.getinfo(request.param + worker).terminate()
""",
}
LABELS = {
    "ours": "pytest-infserver",
    "second": "pytest-infserver, second run",
    "module": "module fixture, 0.5 s polls",
    "session": "session fixture, 0.5 s polls",
    "mirakuru": "mirakuru, session fixture",
    "xprocess": "pytest-xprocess, session fixture",
}
NEEDS = {"mirakuru": "mirakuru", "xprocess": "xprocess"}
HANDED_OUT = """
import time
def pytest_runtest_logstart(nodeid, location):
    with open({note!r}, "a") as file: file.write(f"asked {{nodeid}} {{time.time()}}\\n")
"""


class RunFailed(Exception):
    """A run of pytest did not pass."""


@dataclass(frozen=True)
class Result:
    """One run of the suite.

    Attributes:
        seconds: Wall time.
        starts: How many servers were started.
        idle: Seconds between the first start and the last stop in which no server process ran.
    """

    seconds: float
    starts: int
    idle: float


def modules() -> dict[str, str]:
    """Return the suite's files: name to text, with ``{marker:NAME}`` and ``{fixture}`` to be filled in."""
    names = [f"test_{number}" for number in range(MODULES)]
    bodies: dict[str, list[str]] = {name: [] for name in names}
    # One test of each configuration in turn, so that no module has those of one together.
    for number in range(SERVER_TESTS // len(CONFIGURATIONS)):
        bodies[names[number % MODULES]].append(f"SERVER {number}")
    for number in range(PLAIN_TESTS):
        bodies[names[number % MODULES]].append(f"PLAIN {number}")
    texts = {}
    for name, entries in bodies.items():
        lines = ["import time", ""]
        for entry in sorted(entries, key=lambda entry: (int(entry.split()[1]), entry)):
            kind, number = entry.split()
            argument = "FIXTURE" if kind == "SERVER" else ""
            lines.append(f"def test_{kind.lower()}_{number}({argument}): time.sleep({TEST_SECONDS})")
        texts[f"{name}.py"] = "\n".join(lines) + "\n"
    return texts


def write_suite(folder: Path, manager: str, url: str | None = None) -> Path:
    """Write the suite, and return the file in which the servers note when they start and stop."""
    note, script = folder / "note", folder / "server.py"
    script.write_text(SERVER)
    note.touch()
    (folder / "pytest.ini").write_text("[pytest]\n")
    values = {"names": CONFIGURATIONS, "script": str(script), "note": str(note), "folder": str(folder)}
    common = textwrap.dedent(COMMON).format(**values, start=START_SECONDS, stop=STOP_SECONDS)
    (folder / "conftest.py").write_text(common + FIXTURES[manager])
    command = [sys.executable, "-S", str(script), "{port}", "NAME", str(START_SECONDS), str(STOP_SECONDS), str(folder)]
    servers = {
        name: {"launch_command": [name if word == "NAME" else word for word in command]} for name in CONFIGURATIONS
    }
    document = {"defaults": {"backend": "command"}, "servers": servers}
    (folder / "servers.yaml").write_text(yaml.safe_dump(document))
    fixture = "inference_server" if manager == "ours" else "server"
    for name, text in modules().items():
        (folder / name).write_text(text.replace("FIXTURE", fixture))
    return note


def run_pytest(folder: Path, *arguments: str) -> float:
    """Run pytest in a folder; return the seconds that it took.

    Raises:
        RunFailed: A test failed, so that the numbers mean nothing.
    """
    begin = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False)
    seconds = time.monotonic() - begin
    if result.returncode != 0:
        raise RunFailed(f"{' '.join(command)} failed:\n{result.stdout[-5000:]}{result.stderr[-2000:]}")
    return seconds


def knows_option(option: str) -> bool:
    """Return whether the installed plugin has an option."""
    command = [sys.executable, "-m", "pytest", "--help", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False)
    return re.search(rf"{re.escape(option)}\b", result.stdout) is not None


def measure(manager: str, workers: int, extra: list[str]) -> Result:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        is_second = manager == "second"
        manager = "ours" if is_second else manager
        note = write_suite(folder, manager)
        ours = ["--infserver-config", "servers.yaml", *extra] if manager == "ours" else []
        seconds = run_pytest(folder, *xdist(workers), *ours)
        if is_second:
            note.write_text("")
            seconds = run_pytest(folder, *xdist(workers), *ours)
        # Some managers do not wait for the end of what they stop.
        time.sleep(2 * STOP_SECONDS)
        entries = [line.split() for line in note.read_text().splitlines()]
    starts = sum(entry[0] == "start" for entry in entries)
    return Result(seconds, starts, idle_seconds([(entry[0], float(entry[2])) for entry in entries]))


def idle_seconds(entries: list[tuple[str, float]]) -> float:
    running, idle, since = 0, 0.0, None
    for what, when in sorted(entries, key=lambda entry: entry[1]):
        if what == "start":
            if running == 0 and since is not None:
                idle += when - since
            running += 1
        elif what == "gone":
            running -= 1
            since = when
    return idle


def xdist(workers: int) -> list[str]:
    return ["-n", str(workers)] if importlib.util.find_spec("xdist") is not None else []


def bound(workers: int) -> float:
    """Return the seconds that no scheduling can beat."""
    parallel = max(1, workers)
    with_server = START_SECONDS + SERVER_TESTS * TEST_SECONDS / parallel
    return max(with_server, (SERVER_TESTS + PLAIN_TESTS) * TEST_SECONDS / parallel)


def compare(managers: list[str], worker_counts: list[int], runs: int, max_servers: int | None) -> None:
    extra = [] if max_servers is None else ["--infserver-max-servers", str(max_servers)]
    if extra and not knows_option(extra[0]):
        print(f"this version has no {extra[0]}: it is left out", flush=True)
        extra = []
    for workers in worker_counts:
        limit = bound(workers)
        print(f"\n-n {workers}: bound {limit:.1f} s (medians of {runs})")
        print(f"{'':34}{'wall':>8}  {'starts':>6}  {'/ bound':>7}  {'no server runs':>14}")
        for manager in managers:
            try:
                results = [measure(manager, workers, extra) for _ in range(runs)]
            except RunFailed as error:
                print(f"{LABELS[manager]:34}failed: {error}", flush=True)
                continue
            seconds = statistics.median(result.seconds for result in results)
            starts = statistics.median(result.starts for result in results)
            idle = statistics.median(result.idle for result in results)
            print(
                f"{LABELS[manager]:34}{seconds:6.1f} s  {starts:6.0f}  {seconds / limit:7.2f}  {idle:12.1f} s",
                flush=True,
            )


def keep() -> None:
    """Print how long the tests of a second run wait for servers that the first one has kept."""
    option = "--infserver-keep"
    if not knows_option(option):
        print(f"this version has no {option}: nothing to measure")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        note = write_suite(folder, "ours")
        asked = HANDED_OUT.format(note=str(folder / "asked"))
        conftest = folder / "conftest.py"
        conftest.write_text(conftest.read_text() + asked)
        for name_of_module in modules():
            path = folder / name_of_module
            text = path.read_text().replace(
                ": time.sleep", f": note({str(folder / 'asked')!r}, inference_server.name); time.sleep"
            )
            # Tests without a server have nothing to note.
            text = re.sub(r"(def test_plain.*\(\)): note\(.*?\); ", r"\1: ", text)
            helper = (
                "def note(path, name):\n    with open(path, 'a') as file: file.write(f'got {name} {time.time()}\\n')\n"
            )
            path.write_text(text.replace("import time\n", f"import time\n{helper}"))
        try:
            for number in (1, 2):
                (folder / "asked").write_text("")
                before = note.read_text().count("start ")
                room = f"--infserver-max-servers={len(CONFIGURATIONS)}"
                seconds = run_pytest(folder, "--infserver-config", "servers.yaml", room, option, "60s")
                starts = note.read_text().count("start ") - before
                waits = first_waits((folder / "asked").read_text())
                shown = ", ".join(f"{server} {wait * 1000:.0f} ms" for server, wait in waits.items())
                print(f"run {number}: {seconds:.1f} s, {starts} starts; asked -> handed out: {shown}", flush=True)
        finally:
            end_servers(note)


def end_servers(note: Path) -> None:
    """End the servers that the note says have started and not ended."""
    entries = [line.split() for line in note.read_text().splitlines()]
    gone = {entry[3] for entry in entries if entry[0] == "gone"}
    for entry in entries:
        if entry[3] not in gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry[3]), signal.SIGTERM)


def first_waits(text: str) -> dict[str, float]:
    """Return for each server how long the first test that got it had waited, in seconds."""
    waits: dict[str, float] = {}
    asked = 0.0
    for line in text.splitlines():
        what, *middle, when = line.split()
        if what == "asked":
            asked = float(when)
        else:
            waits.setdefault(middle[0], float(when) - asked)
    return waits


def lease(runs: int, worker_counts: list[int]) -> None:
    """Print what a test pays for taking `inference_server` rather than a session fixture that returns a constant.

    That is the difference between two suites of different lengths: start and stop of the server are in both.
    """
    constant = "import pytest\n@pytest.fixture(scope='session')\ndef constant(): return 1\n"
    server = [sys.executable, "-S", "server.py", "{port}", "a", "0", "0", "."]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server.py").write_text(SERVER)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "conftest.py").write_text(constant)
        started = {"backend": "command", "launch_command": server}
        (folder / "started.yaml").write_text(yaml.safe_dump(started))
        port = free_port()
        (folder / "attached.yaml").write_text(yaml.safe_dump({"backend": "remote", "url": f"http://127.0.0.1:{port}"}))
        cases = {"constant": [], "attached": ["--infserver-config", "attached.yaml"]}
        cases["started"] = ["--infserver-config", "started.yaml"]
        running = subprocess.Popen([word.format(port=port) for word in server], cwd=folder)
        try:
            for workers in worker_counts:
                costs: dict[str, list[float]] = {case: [] for case in cases}
                for _ in range(runs + 1):
                    for case, arguments in cases.items():
                        fixture = "constant" if case == "constant" else "inference_server"
                        seconds = []
                        for count in LEASE_TESTS:
                            lines = [f"def test_{number}({fixture}): pass\n" for number in range(count)]
                            (folder / "test_lease.py").write_text("".join(lines))
                            seconds.append(run_pytest(folder, *xdist(workers), *arguments))
                        costs[case].append((seconds[1] - seconds[0]) / (LEASE_TESTS[1] - LEASE_TESTS[0]) * 1000)
                # The first ones compile what the others find compiled.
                medians = {case: statistics.median(values[1:]) for case, values in costs.items()}
                base = medians.pop("constant")
                for case, cost in medians.items():
                    print(
                        f"-n {workers}: a test on a server that was {case} {cost:.2f} ms, on a constant {base:.2f} ms:"
                        f" {cost - base:.2f} ms for the lease",
                        flush=True,
                    )
        finally:
            running.terminate()
            running.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default=",".join(LABELS), help=f"of {','.join(LABELS)}")
    parser.add_argument("--workers", default="0,2")
    parser.add_argument("--max-servers", type=int, help="given to ours as --infserver-max-servers")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--lease", action="store_true")
    options = parser.parse_args()
    workers = [int(count) for count in options.workers.split(",")]
    if importlib.util.find_spec("xdist") is None:
        print("pytest-xdist is not installed: only -n 0 is measured")
        workers = [0]
    if options.keep:
        keep()
    elif options.lease:
        lease(options.runs, workers)
    else:
        managers = []
        for manager in options.only.split(","):
            if manager in NEEDS and importlib.util.find_spec(NEEDS[manager]) is None:
                print(f"{manager} is not installed: pip install {manager.replace('xprocess', 'pytest-xprocess')}")
            else:
                managers.append(manager)
        compare(managers, workers, options.runs, options.max_servers)


if __name__ == "__main__":
    main()
