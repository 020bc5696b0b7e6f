"""The stand-in's HTTP."""

from __future__ import annotations

import contextlib
import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from .model import Wrong

MAX_BODY = 4 << 20


class Http(BaseHTTPRequestHandler):
    """Reads requests and sends answers; which ones says a subclass."""

    protocol_version = "HTTP/1.1"
    # Head and body are written apart: the second one would wait for the first to be acknowledged.
    disable_nagle_algorithm = True
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def has(self, wrong: str) -> bool:
        """Return whether the server does this wrong."""
        return wrong in self.server.wrong

    def get(self) -> None:
        """Answer a GET."""
        raise NotImplementedError

    def post(self, data: bytes) -> None:
        """Answer a POST."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer(self.get)

    def do_HEAD(self) -> None:
        self.answer(self.get)

    def do_OPTIONS(self) -> None:
        self.send_response(204)
        self.send_header("Access-Control-Allow-Origin", "http://elsewhere" if self.has("origin") else "*")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        data = self.read_body()
        if self.has("text/plain") and self.headers.get("Content-Type") == "text/plain":
            self.error(500, "no JSON")
        elif data is not None:
            self.answer(lambda: self.post(data))

    def read_body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            if self.has("chunked"):
                self.close_connection = True
                self.json({"error": "length required"}, 411)
                return None
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        length = int(self.headers.get("Content-Length", 0))
        if length > MAX_BODY:
            self.close_connection = True
            self.error(500 if self.has("huge") else 413, "too large")
            return None
        return self.rfile.read(length)

    def answer(self, make: Any) -> None:
        path = self.path.partition("?")[0]
        try:
            if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
                if self.has("no key") and "Authorization" not in self.headers:
                    pass
                else:
                    raise Wrong(401, "a key is needed")
            if path.startswith(self.server.missing or ("//",)):
                raise Wrong(404, "Not Found")
            make()
        except Wrong as error:
            self.error(error.status, str(error))

    def error(self, status: int, text: str) -> None:
        told: dict[str, Any] = {"message": text, "type": "invalid_request_error", "code": None, "param": None}
        if self.has("error shape"):
            del told["param"]
        body: dict[str, Any] = {"error": told}
        if self.path.startswith("/v1/messages") and not self.has("anthropic error"):
            body["type"] = "error"
        self.json({"detail": text} if self.has("detail") else body, status)

    def json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if self.has("content type") else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Access-Control-Allow-Origin", "http://elsewhere" if self.has("origin") else "*")
        if self.has("closes"):
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def events(self, events: list[tuple[str, Any]], *, done: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain" if self.has("stream type") else "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        lines = [(f"event: {name}\n" if name else "") + f"data: {json.dumps(value)}\n\n" for name, value in events]
        if done and not self.has("no done"):
            lines.append("data: [DONE]\n\n")
        with contextlib.suppress(ConnectionError):
            for line in lines:
                self.wfile.write(f"{len(line.encode()):x}\r\n{line}\r\n".encode())
            self.wfile.write(b"0\r\n\r\n")
