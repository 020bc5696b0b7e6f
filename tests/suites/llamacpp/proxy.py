"""Passes requests on to two servers in turn: python proxy.py PORT URL URL."""

import itertools
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_turns = itertools.cycle(sys.argv[2:])
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Proxy(BaseHTTPRequestHandler):
    """Answers what one of the servers answers, and says which one that was."""

    def do_GET(self) -> None:
        """Pass a request on, or answer a health check."""
        self._answer(None if self.path == "/health" else next(_turns))

    def do_POST(self) -> None:
        """Pass a request on."""
        self._answer(next(_turns), self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, url: str | None, body: bytes | None = None) -> None:
        data = b"ok"
        if url is not None:
            request = urllib.request.Request(url + self.path, body, {"Content-Type": "application/json"})
            with _opener.open(request, timeout=30) as answer:
                data = answer.read()
        self.send_response(200)
        self.send_header("X-Server", str(url))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Proxy).serve_forever()
