"""Whether it is said that a proxy would swallow a test's own requests."""

from __future__ import annotations

import pytest

from pytest_infserver.reporting.proxy_note import proxy_note

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("url", "env", "variable"),
    [
        (URL, {}, None),
        (URL, {"http_proxy": "http://proxy:1"}, "http_proxy"),
        (URL, {"HTTP_PROXY": "http://proxy:1"}, "HTTP_PROXY"),
        (URL, {"https_proxy": "http://proxy:1"}, None),
        (URL, {"ALL_PROXY": "http://proxy:1"}, "ALL_PROXY"),
        (URL, {"http_proxy": ""}, None),
        (URL, {"http_proxy": "http://proxy:1", "no_proxy": "localhost,127.0.0.1"}, None),
        (URL, {"http_proxy": "http://proxy:1", "NO_PROXY": "*"}, None),
        (URL, {"http_proxy": "http://proxy:1", "NO_PROXY": "10.0.0.0/8, 127.0.0.0/8"}, None),
        (URL, {"http_proxy": "http://proxy:1", "NO_PROXY": "127.0.0.1:8000"}, None),
        (URL, {"http_proxy": "http://proxy:1", "NO_PROXY": "example.org"}, "http_proxy"),
        ("https://localhost:1", {"HTTPS_PROXY": "http://proxy:1"}, "HTTPS_PROXY"),
        ("http://gpu-box:8000", {"http_proxy": "http://proxy:1"}, None),
    ],
)
def test_a_proxy_for_this_machine_is_told(url: str, env: dict[str, str], variable: str | None) -> None:
    note = proxy_note(url, env)
    assert (note is None) == (variable is None)
    if note is not None:
        assert note.startswith(f"proxy: {variable} is set and NO_PROXY does not exempt ")
