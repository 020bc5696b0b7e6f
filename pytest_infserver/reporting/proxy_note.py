"""Whether a test's own requests to a server on this machine would go to a proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from pytest_infserver.launcher.startup.ports import is_loopback

_PROXIES = {"http": ("http_proxy", "all_proxy"), "https": ("https_proxy", "all_proxy")}


def proxy_note(url: str, env: Mapping[str, str]) -> str | None:
    """Return a line about the proxy that requests to a URL on this machine would be sent to, or None.

    Args:
        url: The URL of a server.
        env: The environment of the test.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    names = {name.lower(): (name, value) for name, value in sorted(env.items()) if value}
    found = next((names[name] for name in _PROXIES.get(parts.scheme, ()) if name in names), None)
    if found is None or not is_loopback(host):
        return None
    exempt = names.get("no_proxy", ("", ""))[1]
    if any(_exempts(entry.strip(), host, parts.port) for entry in exempt.split(",")):
        return None
    return (
        f"proxy: {found[0]} is set and NO_PROXY does not exempt {host}: requests of your own go to the proxy. Set"
        f" NO_PROXY=localhost,127.0.0.1, or use inference_client or inference_session, which use none"
    )


def _exempts(entry: str, host: str, port: int | None) -> bool:
    """Return whether an entry of NO_PROXY is about a host, as most clients understand it."""
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name = entry.removesuffix(f":{port}").strip("[]").lstrip(".").lower()
    return bool(name) and (host == name or host.endswith(f".{name}"))
