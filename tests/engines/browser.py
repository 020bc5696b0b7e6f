"""A real headless Chromium, and a note of all that a page did: errors, dialogs, requests, breaches of its policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page, Request, sync_playwright

from . import chromium
from .provision import chromium_binary

_WATCH = """
window.breaches = [];
document.addEventListener("securitypolicyviolation", (event) => window.breaches.push(event.violatedDirective));
"""


@dataclass
class Watched:
    """What a page did."""

    page: Page
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def breaches(self) -> list[str]:
        """Return which parts of its policy it offended against."""
        found: list[str] = self.page.evaluate("window.breaches")
        return found

    def assert_quiet(self) -> None:
        """Assert that it ran no foreign code, said nothing and asked for nothing but itself."""
        assert self.page.evaluate("window.hit") is None
        assert self.errors == []
        assert self.dialogs == []
        assert self.breaches() == []
        assert [url for url in self.requests if not url.startswith("file:///")] == []
        assert len(self.requests) == 1


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium, with a profile of its own that is removed afterwards."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(chromium_binary()), args=list(chromium.FLAGS))
        try:
            yield running
        finally:
            running.close()


def watched(running: Browser, **settings: Any) -> Watched:
    """Open a page whose doings are noted, with playwright's settings for a context."""
    settings.setdefault("viewport", {"width": 1280, "height": 800})
    page = running.new_context(**settings).new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(_WATCH)
    seen = Watched(page)

    def request(one: Request) -> None:
        # Blobs and data are no requests that leave.
        seen.requests.append(one.url)

    def dialog(one: Any) -> None:
        seen.dialogs.append(one.message)
        one.dismiss()

    page.on("request", request)
    page.on("dialog", dialog)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "console", lambda message: seen.errors.append(message.text) if message.type in ("error", "warning") else None
    )
    return seen
