"""The page of errors has errors that there are: what it quotes is in the package's texts."""

from __future__ import annotations

import re

import pytest
from pages import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "pytest_infserver").rglob("*.py")))
# Texts that are put together from pieces stand there in pieces; a line of source may end between two words.
SOURCE = re.sub(r'"\s*\n\s*f?"', "", SOURCES)
PHRASES = {
    "unknown-key": "unknown key",
    "unset-variable": "is not set; set it, or write",
    "unknown-option": "has no ",
    "no-server-fits": "no configured server fits",
    "leaves-no-server": "leaves no server; configured are:",
    "too-few-gpus": "and this run has",
    "binary-not-found": "is not on PATH",
    "exited-before-ready": "before it was ready",
    "not-ready-in-time": "was not ready after",
    "port-taken": "Stop that process, or choose another port, or leave 'port' out to get a free one.",
    "gpus-are-taken": "and too few are free",
    "cannot-be-attached": "cannot be attached",
    "log-cannot-be-written": "Set 'output_dir' to a place that can.",
    "died-in-use": "while it was in use",
    "died-too-often": "times and is not restarted any more",
    "shared-server": "is shared with other tests: a test must not stop it",
    "left-behind": "left behind",
}
WITHOUT_A_QUOTE = {"gpu-memory-is-not-back", "hangs", "profile-errors", "user-code-error"}


@pytest.mark.parametrize(("section", "phrase"), PHRASES.items(), ids=PHRASES)
def test_what_a_section_quotes_is_said(section: str, phrase: str) -> None:
    assert phrase in SECTIONS[section]
    assert phrase in SOURCE


def test_each_section_that_quotes_is_looked_at() -> None:
    assert set(SECTIONS) == set(PHRASES) | WITHOUT_A_QUOTE
    assert {name for name, text in SECTIONS.items() if "```text" not in text} == WITHOUT_A_QUOTE
