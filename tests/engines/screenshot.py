"""Takes the README's picture of a report.

    python -m tests.engines.screenshot docs/report.png server_logs/report.html
    python -m tests.engines.screenshot docs/report.png                          of a sample

It needs Chromium: `python -m tests.engines.provision chromium`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from pytest_infserver.reporting.timeline.html import render_html

from . import provision
from .browser import browser, watched

SIZE = {"width": 1240, "height": 740}


def take(report: Path, picture: Path) -> None:
    """Show the upper part of a report, with the details of the first test that failed, if there is one."""
    with browser() as running:
        page = watched(running, viewport=SIZE, device_scale_factor=1).page
        page.goto(report.resolve().as_uri())
        failed = page.locator("#timeline rect.hit.o-failed, #timeline rect.hit.o-error")
        if failed.count():
            failed.first.hover()
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=picture)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engines.screenshot", description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("report", type=Path, nargs="?", help="a report.html (default: one of a sample)")
    arguments = parser.parse_args()
    problem = provision.missing(provision.CHROMIUM)
    if problem is not None:
        parser.error(f"there is no Chromium; {problem}")
    with tempfile.TemporaryDirectory() as folder:
        report = arguments.report
        if report is None:
            sys.path.insert(0, str(Path(__file__).parent.parent))
            from reporting.timeline.records import sample_excerpt, sample_record

            record = sample_record()
            report = Path(folder) / "report.html"
            report.write_text(render_html(record, sample_excerpt(record)), encoding="utf-8")
        take(report, arguments.picture)
    print(f"{arguments.picture}: {arguments.picture.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
