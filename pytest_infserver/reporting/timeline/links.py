"""Addresses that a report links to: relative paths, files and web pages, and never a script."""

from __future__ import annotations

import re
from urllib.parse import quote

_WEB = re.compile(r"https?://[^\s\x00-\x20]", re.IGNORECASE)


def link(target: object) -> str | None:
    """Return the address of a path or URL for use in `href`, None if there is none.

    Only what begins with ``http://`` or ``https://`` counts as a URL. All else is a path, whatever it looks like, and
    is quoted so that a browser takes it for one: ``javascript:x`` becomes ``./javascript%3Ax``.
    """
    if not isinstance(target, str) or not target:
        return None
    # A path's undecodable bytes are there as halves of surrogate pairs.
    data = target.encode("utf-8", "surrogateescape" if _escaped(target) else "replace")
    if _WEB.match(target):
        return quote(data, safe="%/:?#[]@!$&'()*+,;=~-._")
    quoted = quote(data, safe="/~-._")
    if quoted.startswith("/"):
        # Two slashes at the beginning would name a host.
        return f"file:///{quoted.lstrip('/')}"
    return quoted if quoted.startswith(("./", "../")) else f"./{quoted}"


def _escaped(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udc7f" or "\udd00" <= letter <= "\udfff" for letter in text)
