"""The head of our HTML pages: a policy lets no other style or script in, and no request out."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from importlib.resources import files


@cache
def resource(name: str) -> str:
    """Return the text of a file beside this one, such as ``report.css``."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def document_head(title: str, style: str, script: str | None = None) -> str:
    """Return all of a page before its body.

    Args:
        title: Its title, as text.
        style: Its only style sheet.
        script: Its only script, which the caller puts into the body; None for a page without one.
    """
    script_policy = "" if script is None else f"script-src 'sha256-{_hash(script)}'; "
    policy = (
        f"default-src 'none'; {script_policy}style-src 'sha256-{_hash(style)}'; base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
"""


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
