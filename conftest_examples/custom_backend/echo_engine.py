"""The engine of this example: answers with the text that it gets."""

import argparse
import http.server


class Handler(http.server.BaseHTTPRequestHandler):
    shout = False

    def do_GET(self):
        self._reply(b"ok" if self.path == "/health" else b"")

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(text.upper() if self.shout else text)

    def _reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--shout", action="store_true")
    options = parser.parse_args()
    Handler.shout = options.shout
    print(f"serving {options.model} on port {options.port}", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
