"""How long the launcher makes its users wait, in milliseconds, beside peers measured in the same run.

    python tests/benchmarks/speed.py [--runs 20]

Peers: a poll loop of 0.5 s written here, and mirakuru if it is installed (pip install mirakuru). The server is a small
HTTP server that writes down when it became ready and when it is about to be gone; the machine should be idle.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_infserver import CommandServer, ServerStartupError

SERVER = """
import http.server, os, signal, sys, time
port, delay, exit_delay, note = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_GET
    def log_message(self, *_): pass
def stop(*_):
    time.sleep(exit_delay)
    write("gone")
    os._exit(0)
def write(what):
    with open(note, "a") as file:
        file.write(f"{what} {time.time()}\\n")
signal.signal(signal.SIGTERM, stop)
time.sleep(delay)
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
write("ready")
server.serve_forever()
"""


class Bench:
    """A folder with the server's script and its notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "server.py"
        self.script.write_text(SERVER)
        self.note = folder / "note"

    def argv(self, port: str, delay: float, exit_delay: float = 0.1) -> list[str]:
        return [sys.executable, "-S", str(self.script), port, str(delay), str(exit_delay), str(self.note)]

    def noted(self, what: str) -> float:
        lines = [line.split() for line in self.note.read_text().splitlines()]
        return next(float(when) for name, when in reversed(lines) if name == what)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ours(bench: Bench, delay: float) -> Iterator[None]:
    command = bench.argv("{port}", delay)
    with CommandServer(launch_command=command, output_dir=bench.folder / "logs", port=free_port()):
        yield


@contextlib.contextmanager
def poll_loop(bench: Bench, delay: float) -> Iterator[None]:
    port = free_port()
    process = subprocess.Popen(bench.argv(str(port), delay))
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            break
        time.sleep(0.5)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def mirakuru_http(bench: Bench, delay: float) -> Iterator[None]:
    from mirakuru import HTTPExecutor

    port = free_port()
    with HTTPExecutor(bench.argv(str(port), delay), f"http://127.0.0.1:{port}/health", timeout=60):
        yield


def measure(manager: Callable[[Bench, float], contextlib.AbstractContextManager[None]], delay: float, runs: int) -> str:
    waits, stops = [], []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for _ in range(runs):
            with manager(bench, delay):
                waits.append(time.time() - bench.noted("ready"))
            stops.append(time.time() - bench.noted("gone"))
    return f"ready -> returned {shown(waits)}   gone -> stop returned {shown(stops)}"


def early_exit(runs: int) -> str:
    waits = []
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "note"
        code = f"import time, os; time.sleep(0.3); open({str(note)!r}, 'w').write(str(time.time())); os._exit(1)"
        for _ in range(runs):
            server = CommandServer(
                launch_command=[sys.executable, "-S", "-c", code], port=free_port(), output_dir=folder
            )
            with contextlib.suppress(ServerStartupError):
                server.start()
            waits.append(time.time() - float(note.read_text()))
    return f"exit -> reported {shown(waits)}"


def plugin_load(runs: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_empty.py").touch()
        base = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", folder]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        times: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(runs + 1):
            for name, extra in (("without", []), ("with", ["-p", "pytest_infserver.plugin"])):
                begin = time.perf_counter()
                subprocess.run([*base, *extra], env=env, capture_output=True, check=False)
                times[name].append(time.perf_counter() - begin)
        differences = [after - before for before, after in zip(times["without"][1:], times["with"][1:], strict=True)]
    return f"plugin adds {shown(differences)} to pytest --collect-only ({shown(times['without'][1:])} without it)"


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:6.1f} ms (max {max(seconds) * 1000:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    managers = {"pytest-infserver": ours, "0.5 s poll loop": poll_loop}
    with contextlib.suppress(ImportError):
        import mirakuru  # noqa: F401

        managers["mirakuru"] = mirakuru_http
    for delay in (0.73, 3.3):
        for name, manager in managers.items():
            print(f"{name:17} ready after {delay} s: {measure(manager, delay, runs)}", flush=True)
    print(f"pytest-infserver  {early_exit(runs)}")
    print(f"pytest-infserver  {plugin_load(runs)}")


if __name__ == "__main__":
    main()
