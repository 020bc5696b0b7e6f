"""The changelog keeps the form of Keep a Changelog, which tools and people know how to read."""

from __future__ import annotations

import re

from pages import ROOT

GROUPS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def sections(mark: str, text: str) -> list[tuple[str, str]]:
    """Return title and text of each section whose heading begins with the mark."""
    parts = re.split(rf"^{mark} (.+)\n", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_each_change_stands_in_a_group_of_a_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = sections("##", text)
    assert versions[0][0] == "[Unreleased]"
    assert text.count("\n- ") == sum(
        changes.count("\n- ") for _, version in versions for _, changes in sections("###", version)
    )
    for title, version in versions:
        assert re.fullmatch(r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d|not published)", title)
        groups = [group for group, _ in sections("###", version)]
        assert groups == [group for group in GROUPS if group in groups], title
        assert all(changes.startswith("\n- ") for _, changes in sections("###", version)), title
