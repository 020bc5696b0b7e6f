"""The pages that users read, and their blocks. A comment in front of a block says how it is tested.

`python tests/docs/pages.py PAGE FOLDER` writes the files of a page there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(
    r"^(?:<!-- (?P<how>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)\n?```$", re.MULTILINE | re.DOTALL
)
_HOW = re.compile(
    r"file: (?P<file>[\w.-]+)|(?P<run>run)(?:, exit status (?P<status>\d+))?"
    r"|tested by: (?P<test>\S+)|not run: (?P<reason>.+)"
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        page: The page.
        line: Where it begins.
        language: What stands behind the fence.
        text: Its lines.
        file: The file that it is written to, in the folder of its page.
        status: With which exit status it ends when it is run there; None if it is not.
        test: The test that it has of its own.
        reason: Why it cannot be run.
    """

    page: Path
    line: int
    language: str
    text: str
    file: str | None = None
    status: int | None = None
    test: str | None = None
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_checked_alone(self) -> bool:
        """Whether no comment says how it is tested."""
        return self.test is None and self.reason is None


def blocks_of(page: Path) -> Iterator[Block]:
    """Return the blocks of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        block = Block(page, line, match["language"], match["text"])
        if match["how"] is None:
            yield block
            continue
        how = _HOW.fullmatch(match["how"])
        assert how is not None, f"{block}: what is {match['how']!r}?"
        status = None if how["run"] is None else int(how["status"] or 0)
        yield Block(page, line, match["language"], match["text"], how["file"], status, how["test"], how["reason"])


BLOCKS = tuple(block for page in PAGES for block in blocks_of(page))


def write_files(page: Path, folder: Path) -> None:
    """Write the files of a page."""
    folder.mkdir(parents=True, exist_ok=True)
    for block in blocks_of(page):
        if block.file is not None:
            (folder / block.file).write_text(f"{block.text}\n", encoding="utf-8")


if __name__ == "__main__":
    write_files(*map(Path, sys.argv[1:]))
