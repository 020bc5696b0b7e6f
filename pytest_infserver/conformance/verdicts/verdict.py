"""What became of a statement: a verdict, and the differences of engines that are known already."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

PASSES, FAILS, KNOWN, FIXED, NOT_OFFERED, NOT_ASKED = (
    "passes",
    "fails",
    "known",
    "passes now",
    "not offered",
    "not asked",
)
WORDS = {
    PASSES: "does what the statement says",
    FAILS: "does something else",
    KNOWN: "does something else, as the list of known differences says",
    FIXED: "passes, though the list of known differences says that it fails",
    NOT_OFFERED: "says that it does not offer this",
    NOT_ASKED: "could not be asked",
}
"""Each verdict, and what it means."""
ATTRIBUTE = "infserver_conformance"
"""Under which a test's report carries its verdict, as plain data."""


@dataclass(frozen=True)
class Verdict:
    """What a test has found out about a server.

    Attributes:
        area: The area, such as ``streaming``.
        name: The statement's name in the area.
        statement: The statement.
        source: Where it comes from.
        level: ``core`` or ``full``.
        server: The server's name.
        version: Its engine and version, as far as known.
        verdict: One of `WORDS`.
        reason: Why, in words; "" where it passes.
        curl: The command that asks for the answer that fails; "" otherwise.
        case: Which of several values was asked with; "" without them.
    """

    area: str
    name: str
    statement: str
    source: str
    level: str
    server: str
    version: str
    verdict: str
    reason: str = ""
    curl: str = ""
    case: str = ""

    def as_data(self) -> dict[str, str]:
        """Return it as plain data."""
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """How the list of known differences calls the statement."""
        return f"{self.area}.{self.name}"


def statement_of(test: Callable[..., object]) -> tuple[str, str]:
    """Return a test's statement and its source, from its docstring."""
    before, _, source = inspect.cleandoc(test.__doc__ or "").partition("Source:")
    return " ".join(before.split()), " ".join(source.split())


@dataclass(frozen=True)
class Difference:
    """A known difference.

    Attributes:
        test: The statement, ``area.name``.
        engine: With what the engine and its version begin, such as ``vllm 0.32``.
        reason: What the engine does instead, or why.
        file: Where that is written.
        sometimes: Whether it passes at times, which is not told then.
    """

    test: str
    engine: str
    reason: str
    file: str
    sometimes: bool = False

    def fits(self, verdict: Verdict) -> bool:
        """Return whether it is about this statement and this version of this engine."""
        version = verdict.version
        # vllm 0.3 is not vllm 0.32.
        goes_on = version[len(self.engine) : len(self.engine) + 1]
        return self.test == verdict.key and version.startswith(self.engine) and not goes_on.isalnum()


def shipped_differences() -> list[Difference]:
    """Return those that were measured with released engines."""
    return _differences((files(__package__) / "known.yaml").read_text(encoding="utf-8"), "known.yaml")


def read_differences(path: Path) -> list[Difference]:
    """Return those of a file of the user's.

    Raises:
        ValueError: It cannot be read; the text says what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    return _differences(text, str(path))


def _differences(text: str, file: str) -> list[Difference]:
    try:
        entries = yaml.safe_load(text) or []
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list):
        raise ValueError(f"{file}: expected a list of 'test', 'engine' and 'reason'")
    return [one for number, entry in enumerate(entries, 1) for one in _of_entry(entry, f"{file}: entry {number}", file)]


def _of_entry(entry: Any, where: str, file: str) -> list[Difference]:
    keys = ("test", "engine", "reason")
    fine = isinstance(entry, Mapping) and set(entry) - {"sometimes"} == set(keys)
    named: Any = entry["test"] if fine else None
    tests: list[Any] = named if isinstance(named, list) else [named]
    texts = [*tests, entry["engine"], entry["reason"]] if fine else [None]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{where}: expected 'test' (area.name, or a list), 'engine' (such as vllm 0.32) and 'reason'")
    return [Difference(test, entry["engine"], entry["reason"], file, entry.get("sometimes") is True) for test in tests]


def judged(verdict: Verdict, known: Iterable[Difference]) -> Verdict:
    """Return a verdict in view of what is known of the engine."""
    found = next((one for one in known if one.fits(verdict)), None)
    if found is None:
        return verdict
    if verdict.verdict == FAILS:
        return dataclasses.replace(verdict, verdict=KNOWN, reason=f"{found.reason} ({verdict.reason})")
    if verdict.verdict == PASSES and not found.sometimes:
        told = f"take it out of {found.file} ({found.reason})"
        return dataclasses.replace(verdict, verdict=FIXED, reason=told)
    return verdict
