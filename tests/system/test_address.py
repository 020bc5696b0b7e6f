"""Where a server is reached, as URLs."""

from __future__ import annotations

import pytest

from pytest_infserver.system.http.address import Address, parse_address, request_target


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (Address(port=8000), "http://127.0.0.1:8000"),
        (Address("https", "host", 443), "https://host"),
        (Address(host="::1", port=1), "http://[::1]:1"),
        (Address(port=1, base_path="/a/b"), "http://127.0.0.1:1/a/b"),
        (Address("https", port=1, uds="/x.sock", base_path="/a"), "https://localhost/a"),
    ],
)
def test_the_url(address: Address, url: str) -> None:
    assert address.url == url
    assert address.covers(f"{url}/x")
    assert not address.covers("http://elsewhere:9/x")


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        (("/v1/models",), "/p/v1/models"),
        (("v1", "/models"), "/p/v1/models"),
        (("/v1/", "models?x=/p/y"), "/p/v1/models?x=/p/y"),
        (("/p/v1",), "/p/v1"),
        (("/p",), "/p"),
        (("/past",), "/p/past"),
        (("/", ""), "/p/"),
        ((), "/p/"),
        (("/v1/",), "/p/v1/"),
    ],
)
def test_a_path_below_the_base_path(parts: tuple[str, ...], path: str) -> None:
    assert Address(port=1, base_path="/p").url_for(*parts) == f"http://127.0.0.1:1{path}"


@pytest.mark.parametrize(
    ("path", "query", "target"),
    [
        ("", "", "/"),
        ("/a", "x=1&y=[2]", "/a?x=1&y=[2]"),
        ("/a b/\u00e9", "q=\u00e9", "/a%20b/%C3%A9?q=%C3%A9"),
        ("/a%20b/%C3%A9", "", "/a%20b/%C3%A9"),
        ("/a\n", "", "/a%0A"),
    ],
)
def test_what_a_request_names(path: str, query: str, target: str) -> None:
    assert request_target(path, query) == target


def test_a_url_is_taken_apart_and_put_together() -> None:
    for url in ("http://host:8000", "https://host/a/b", "http://bob:secret@host:1/x", "http://[::1]:9"):
        assert parse_address(url).url == url
    assert "secret" not in repr(parse_address("http://bob:secret@host:1/x"))


def test_another_port_has_no_base_path_and_the_same_key() -> None:
    address = Address(port=1, base_path="/p", ports={"metrics": 2}, api_key="key-of-mine")
    assert address.at("metrics").url == "http://127.0.0.1:2"
    assert address.at("metrics").headers == {"Authorization": "Bearer key-of-mine"}
    assert "key-of-mine" not in repr(address)
