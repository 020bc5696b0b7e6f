"""A router for this example: each request goes to the next worker, and the answer says which one that was."""

import http.server
import itertools
import sys
import urllib.error
import urllib.request

host, port, *workers = sys.argv[1:]
turns = itertools.cycle(workers)
# It passes requests on within this machine, whatever proxy the environment names.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Router(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.pass_on()

    def do_POST(self):
        self.pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def pass_on(self, body=None):
        worker = next(turns)
        request = urllib.request.Request(worker + self.path, body, {"Content-Type": "application/json"})
        try:
            with opener.open(request, timeout=60) as answer:
                status, data = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, data = error.code, error.read()
        except OSError as error:
            status, data = 502, str(error).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Worker", worker)
        self.end_headers()
        self.wfile.write(data)


http.server.ThreadingHTTPServer((host, int(port)), Router).serve_forever()
