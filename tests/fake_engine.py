"""A stand-in for an engine: a small HTTP server whose faults are switched on by its arguments.

Only the standard library, and few imports: it must start quickly. Run as ``python -S fake_engine.py --port N``.
Unknown arguments are accepted, as if the engine knew them; ``/argv`` gives all of them back.
"""

import argparse
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse


def parse():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--port", type=int, required=True)
    add("--host", default="127.0.0.1")
    add("--delay", type=float, default=0.0, help="seconds before it listens")
    add("--loading", type=float, default=0.0, help="seconds of 503 after it listens")
    add("--say", action="append", default=[], help="print this line first")
    add("--say-when-ready", default="")
    add("--exit", type=int, default=None, help="exit with this code instead of listening")
    add("--die-of", type=int, default=None, help="kill itself with this signal instead of listening")
    add("--ignore-term", action="store_true")
    add("--stop-delay", type=float, default=0.0, help="seconds from SIGTERM to the exit")
    add("--children", type=int, default=0)
    add("--say-children", action="store_true", help="print a line when the children are there")
    add("--stubborn-children", action="store_true", help="the children ignore SIGTERM")
    add("--forget-children", action="store_true", help="do not end the children at the stop")
    add("--daemon", action="store_true", help="leave a double-forked child in a session of its own")
    add("--fork-chain", type=int, default=0, help="at SIGTERM: so many generations, each forks the next and ends")
    add("--fork-tree", type=int, default=0, help="at SIGTERM: so many children, all of which stay and ignore it")
    add("--headless", action="store_true", help="end the first thread at SIGTERM and live on in another")
    add("--mute", action="store_true", help="accept connections and never answer")
    add("--garbage", action="store_true", help="answer what is not HTTP")
    add("--drip", action="store_true", help="answer one byte a second")
    add("--need-key", default="", help="answer 401 to who does not bring this key")
    add("--openapi", default="", help="comma-separated paths of /openapi.json")
    add("--version", action="store_true")
    return parser.parse_known_args()[0]


CHILD = """
import signal, sys, time
if {stubborn}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('child', flush=True)
time.sleep(600)
"""


class Handler(http.server.BaseHTTPRequestHandler):
    options = None
    ready_at = 0.0
    sick = False

    def log_message(self, *_):
        pass

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        if self.options.need_key and self.headers.get("Authorization") != f"Bearer {self.options.need_key}":
            self.reply(401, {})
        elif parts.path == "/health":
            loading = time.monotonic() < Handler.ready_at
            self.reply(503 if loading or Handler.sick else 200, {})
        elif parts.path == "/argv":
            self.reply(200, {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()})
        elif parts.path == "/v1/models":
            self.reply(200, {"data": [{"id": "fake"}]})
        elif parts.path == "/openapi.json" and self.options.openapi:
            self.reply(200, {"paths": {path: {} for path in self.options.openapi.split(",")}})
        elif parts.path == "/say":
            print(query["text"], flush=True)
            self.reply(200, {})
        elif parts.path == "/sick":
            Handler.sick = True
            self.reply(200, {})
        elif parts.path == "/flood":
            line = "x" * 99 + "\n"
            for _ in range(int(query["bytes"]) // 100_000):
                sys.stdout.write(line * 1000)
            self.reply(200, {})
        elif parts.path == "/exit":
            print(query.get("say", ""), flush=True)
            os._exit(int(query["code"]))
        elif parts.path == "/kill":
            os.kill(os.getpid(), int(query["signal"]))
            # Another thread may get the signal: the client must not hear of the end before it has come.
            time.sleep(1)
        else:
            self.reply(404, {})

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length) or b"{}")
        if self.path == "/v1/completions":
            self.reply(200, {"choices": [{"text": body.get("prompt", "")[::-1]}]})
        elif self.path == "/v1/chat/completions":
            text = body["messages"][-1]["content"]
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text[::-1]}}
            self.reply(
                200, {"id": "1", "object": "chat.completion", "created": 1, "model": "fake", "choices": [choice]}
            )
        else:
            self.reply(404, {})


def bad_listener(options):
    listener = socket.create_server((options.host, options.port))
    kept = []
    while True:
        connection, _ = listener.accept()
        kept.append(connection)
        if options.garbage:
            connection.sendall(b"\xff\x00garbage\n" * 10)
            connection.close()
        elif options.drip:
            threading.Thread(target=drip, args=(connection,), daemon=True).start()


def drip(connection):
    try:
        for byte in b"HTTP/1.1 200 OK\r\n" * 10:
            connection.sendall(bytes([byte]))
            time.sleep(1)
    except OSError:
        pass


def fork_chain(generations):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(generations):
        if os.fork():
            os._exit(0)
    time.sleep(600)


def fork_tree(count):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(600)
    time.sleep(600)


def end_first_thread():
    import ctypes

    threading.Thread(target=time.sleep, args=(600,)).start()
    # SYS_exit ends the calling thread only, unlike exit().
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)


def main():
    options = Handler.options = parse()
    if options.version:
        print("fake 1.0")
        return
    for line in options.say:
        print(line, flush=True)
    children = []
    for _ in range(options.children):
        code = CHILD.format(stubborn=options.stubborn_children)
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
        children.append(child)
    if options.say_children:
        print("child", flush=True)
    if options.daemon and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)

    def stop(*_):
        time.sleep(options.stop_delay)
        if options.fork_chain:
            fork_chain(options.fork_chain)
        if options.fork_tree:
            fork_tree(options.fork_tree)
        if options.headless:
            end_first_thread()
        if not options.forget_children:
            for child in children:
                child.kill()
                child.wait()
        os._exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.ignore_term else stop)
    time.sleep(options.delay)
    if options.exit is not None:
        os._exit(options.exit)
    if options.die_of is not None:
        os.kill(os.getpid(), options.die_of)
    if options.mute or options.garbage or options.drip:
        bad_listener(options)
    Handler.ready_at = time.monotonic() + options.loading
    if ":" in options.host:
        http.server.ThreadingHTTPServer.address_family = socket.AF_INET6
    server = http.server.ThreadingHTTPServer((options.host, options.port), Handler)
    if options.say_when_ready:
        print(options.say_when_ready, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
