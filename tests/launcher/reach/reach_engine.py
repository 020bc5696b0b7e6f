"""A small server for tests of how servers are reached: TLS, unix socket, key, a prefix, and an answer that is late."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import socket
import socketserver
import ssl
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("words", nargs="*")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=int(os.environ.get("REACH_PORT", "0")))
parser.add_argument("--uds")
parser.add_argument("--ssl-certfile")
parser.add_argument("--ssl-keyfile")
parser.add_argument("--api-prefix", "--root-path", dest="prefix", default="")
parser.add_argument("--key", default=os.environ.get("REACH_KEY"))
parser.add_argument("--second-port", type=int)
parser.add_argument("--refuse-for", type=float, default=0)
parser.add_argument("--slow", type=float, default=0, help="seconds that each answer takes")
parser.add_argument("--redirect", help="where GET is sent on to")
parser.add_argument("--post", help="body of the answers to POST")
parser.add_argument("--chunked", action="store_true", help="answers come in chunks, and the connection stays open")
settings, _ = parser.parse_known_args()
begin = time.monotonic()


class Handler(http.server.BaseHTTPRequestHandler):
    paths = ("/health", "/v1/models")

    def do_GET(self) -> None:
        if settings.redirect:
            self.send_response(307)
            self.send_header("Location", settings.redirect)
            self.end_headers()
            return
        self.answer(200 if self.path in [settings.prefix + path for path in self.paths] else 404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.answer(200 if time.monotonic() - begin >= settings.refuse_for else 503, settings.post)

    def answer(self, status: int, said: str | None = None) -> None:
        time.sleep(settings.slow)
        if settings.key and self.headers.get("Authorization") != f"Bearer {settings.key}":
            status = 401
        body = (said or json.dumps({"status": status, "why": "the model is not loaded"})).encode()
        self.send_response(status)
        self.send_header(
            *(("Transfer-Encoding", "chunked") if settings.chunked else ("Content-Length", str(len(body))))
        )
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if settings.chunked else body)
        if settings.chunked:
            time.sleep(1000)

    def address_string(self) -> str:
        return "somebody"

    def log_message(self, *_: object) -> None:
        pass


class Unix(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class Second(Handler):
    paths = ("/metrics", "/second")


if settings.second_port:
    second = http.server.ThreadingHTTPServer((settings.host, settings.second_port), Second)
    threading.Thread(target=second.serve_forever, daemon=True).start()
if ":" in settings.host:
    http.server.ThreadingHTTPServer.address_family = socket.AF_INET6
if settings.uds:
    settings.uds = f"\0{settings.uds[1:]}" if settings.uds.startswith("@") else settings.uds
    server: socketserver.BaseServer = Unix(settings.uds, Handler)
else:
    server = http.server.ThreadingHTTPServer((settings.host, settings.port), Handler)
if settings.ssl_certfile:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
    server.socket = context.wrap_socket(server.socket, server_side=True)
print("the server listens", flush=True)
server.serve_forever()
