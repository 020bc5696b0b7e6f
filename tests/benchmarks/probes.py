"""How long each kind of probe makes its users wait, in milliseconds, and what a heartbeat with it costs.

    python tests/benchmarks/probes.py [--runs 10] [--beats 200] [KIND ...]

The server writes down when it became ready and when it is about to be gone; the machine should be idle. The CPU time of
a heartbeat is that of this process alone, the threads of grpcio included.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_infserver import CommandServer

SERVER = """
import http.server, os, signal, socket, socketserver, ssl, sys, threading, time
kind, where, delay, note, certificate, key = sys.argv[1:7]
ready = threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if ready.is_set() else 503)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()
    def address_string(self): return "somebody"
    def log_message(self, *_): pass
class Unix(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
class Tcp(socketserver.ThreadingTCPServer):
    # Not that of http.server, which looks its own name up before it listens.
    daemon_threads = allow_reuse_address = True
def write(what):
    with open(note, "a") as file:
        file.write(f"{what} {time.time()}\\n")
def stop(*_):
    write("gone")
    os._exit(0)
def serve():
    if kind == "grpc":
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        check = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\\x08\\x01")
        handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check})
        server.add_generic_rpc_handlers((handler,))
        server.add_insecure_port(f"127.0.0.1:{where}")
        return server.start
    if kind == "uds":
        server = Unix(where, Handler)
    else:
        server = Tcp(("127.0.0.1", int(where)), Handler)
    if kind == "tls":
        server.socket = context.wrap_socket(server.socket, server_side=True)
    return threading.Thread(target=server.serve_forever, daemon=True).start
signal.signal(signal.SIGTERM, stop)
if kind == "grpc":
    import concurrent.futures, grpc
if kind == "tls":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
if kind in ("http 503", "request 503"):
    # It answers all the time.
    serve()()
    time.sleep(float(delay))
else:
    time.sleep(float(delay))
    ready.set()
    if kind not in ("command", "grpc"):
        write("ready")
    # It listens now, that of grpcio when it begins to serve; that one ends with the last name for it.
    begin = serve()
    if kind == "grpc":
        write("ready")
    begin()
if not ready.is_set() or kind == "command":
    write("ready")
    ready.set()
if kind == "log":
    print("it is ready", flush=True)
while True:
    # Not pause(): a signal that comes just before it would not be seen.
    time.sleep(0.05)
"""
REQUEST = {"request": {"path": "/v1/completions", "json": {"prompt": "hi"}}}


@dataclass(frozen=True)
class Kind:
    """One way to know that a server is ready."""

    settings: dict[str, Any] = field(default_factory=dict)
    on_socket: bool = False


KINDS = {
    "http": Kind(),
    "http 503": Kind(),
    "tcp": Kind({"ready": {"tcp": True}}),
    "log": Kind({"ready": {"log": "^it is ready"}}),
    "command": Kind({"ready": {"command": ["grep", "-q", "^ready", "{note}"]}}),
    "request": Kind({"ready": REQUEST, "health_endpoint": "/health"}),
    "request 503": Kind({"ready": REQUEST, "health_endpoint": "/health"}),
    "grpc": Kind({"ready": {"grpc": True}}),
    "uds": Kind(on_socket=True),
    "tls": Kind(),
}


def certificate(folder: Path) -> tuple[str, str]:
    """Make a certificate of its own authority."""
    try:
        import trustme
    except ImportError:
        return "", ""
    made = trustme.CA().issue_cert("127.0.0.1", not_after=datetime.datetime.now() + datetime.timedelta(days=1))
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    return str(folder / "cert.pem"), str(folder / "key.pem")


def make(name: str, folder: Path, delay: float) -> CommandServer:
    """Return a server that becomes ready after a delay."""
    kind, note = KINDS[name], folder / "note"
    cert, key = certificate(folder) if name == "tls" else ("", "")
    where = str(folder / "s.sock") if kind.on_socket else "{port}"
    flags = [] if name == "grpc" else ["-S"]
    command = [sys.executable, *flags, str(folder / "server.py"), name, where, str(delay), str(note), cert, key]
    settings = dict(kind.settings)
    if name == "command":
        settings["ready"] = {"command": ["grep", "-q", "^ready", str(note)]}
        note.touch()
    if kind.on_socket:
        settings["uds"] = where
    if name == "tls":
        settings["tls"] = {"ca": cert, "check_hostname": False}
    return CommandServer(launch_command=command, output_dir=folder / "logs", stop_timeout=10, **settings)


def noted(folder: Path, what: str) -> float:
    lines = [line.split() for line in (folder / "note").read_text().splitlines()]
    return next(float(when) for name, when in reversed(lines) if name == what)


def measure(name: str, delay: float, runs: int, beats: int) -> str:
    waits, stops, costs = [], [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="probes-") as path:
            folder = Path(path)
            (folder / "server.py").write_text(SERVER)
            server = make(name, folder, delay).start()
            waits.append(time.time() - noted(folder, "ready"))
            if len(costs) < 3 and beats:
                costs.append(cost_of_a_beat(server, beats))
            server.stop()
            stops.append(time.time() - noted(folder, "gone"))
    beat = f"   CPU of a heartbeat {statistics.median(costs) * 1000:5.2f} ms" if costs else ""
    return f"ready -> returned {shown(waits)}   gone -> stop returned {shown(stops)}{beat}"


def cost_of_a_beat(server: CommandServer, beats: int) -> float:
    """Return the CPU time of one heartbeat in seconds, with the server's own watch."""
    watch = server.runtime.watch
    first = watch.ask(10)
    assert first.ok, str(first)
    begin = time.process_time()
    for _ in range(beats):
        assert watch.ask(10).ok
    return (time.process_time() - begin) / beats


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:6.1f} ms (max {max(seconds) * 1000:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], default=[])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--beats", type=int, default=200)
    parser.add_argument("--delay", type=float, default=0.73, help="seconds until the server is ready")
    options = parser.parse_args()
    for name in options.kinds or KINDS:
        print(f"{name:12} {measure(name, options.delay, options.runs, options.beats)}", flush=True)


if __name__ == "__main__":
    main()
