"""A server that uses a GPU as its requests say, and leaves behind what they say.

python torch_server.py --port PORT   a server; with --mib it has that much memory from its start on
python torch_server.py --hold MIB    no server: holds memory until it is killed

Requests: /allocate?mib= /free /pin?mib= /child?mib=&how=child|daemon|orphan /fork /stubborn /hang /device /compute
/share?mib= (answers a handle) /open?handle= (of another server), /start_profile and /stop_profile (traces in $TRACES).
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.reduction import ForkingPickler
from urllib.parse import parse_qsl, urlsplit

import torch

HOW = {"child": 'exec "$@"', "daemon": '"$@" &', "orphan": '"$@" & wait'}
"""Shell programs that start a holder: as a child, as nobody's child, as the child of one that gets killed."""
kept: list[object] = []
profiler = None


def allocate(mib: int) -> None:
    kept.append(torch.empty(int(mib) << 20, dtype=torch.uint8, device=options.device))


def free() -> None:
    kept.clear()
    torch.cuda.empty_cache()


def pin(mib: int) -> None:
    kept.append(torch.empty(int(mib) << 20, dtype=torch.uint8, pin_memory=True))


def child(mib: int, how: str) -> int:
    words = [sys.executable, __file__, "--hold", str(mib), "--device", options.device]
    shell = subprocess.Popen(
        ["sh", "-c", HOW[how], "sh", *words], stdout=subprocess.PIPE, start_new_session=how == "daemon"
    )
    pid = int(shell.stdout.readline())  # when it has its memory
    if how == "orphan":
        shell.kill()
    if how != "child":
        shell.wait()
    return pid


def fork() -> int:
    pid = os.fork()
    while pid == 0:
        time.sleep(60)
    return pid


def share(mib: int) -> str:
    allocate(mib)
    return bytes(ForkingPickler.dumps(kept[-1])).hex()


def open_handle(handle: str) -> None:
    kept.append(pickle.loads(bytes.fromhex(handle)))


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def device() -> dict[str, object]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"pid": os.getpid(), "visible": visible, "count": torch.cuda.device_count()}


def compute() -> float:
    ones = torch.ones(1024, 1024, device=options.device)
    return float((ones @ ones).sum())


def start_profile() -> None:
    global profiler
    write = torch.profiler.tensorboard_trace_handler(os.environ["TRACES"], use_gzip=True)
    profiler = torch.profiler.profile(on_trace_ready=write)
    profiler.start()


def stop_profile() -> None:
    profiler.stop()


ACTIONS = {action.__name__: action for action in (allocate, free, pin, child, fork, share, stubborn, device, compute)}
ACTIONS |= {"open": open_handle, "health": lambda: "ok", "hang": lambda: time.sleep(3600)}
ACTIONS |= {"start_profile": start_profile, "stop_profile": stop_profile}


class Handler(BaseHTTPRequestHandler):
    """One request at a time, in the main thread: signals, forks and the profiler want that."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        action = ACTIONS.get(url.path.strip("/"))
        if action is None:
            return self.send_error(404)
        try:
            status, answer = 200, action(**dict(parse_qsl(url.query)))
        except Exception as error:
            traceback.print_exc()
            status, answer = 500, str(error)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    do_POST = do_GET


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, default in (("--port", 0), ("--mib", 0), ("--hold", 0)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.mib or options.hold:
        allocate(options.mib or options.hold)
    if options.hold:
        print(os.getpid(), flush=True)
        time.sleep(3600)
    HTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
