"""Groups and annotations for the CI services that say by their variables that they run the job."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

_OF_A_SERVER = re.compile(r"(?P<name>\S+): (?:log during |state)|inference server died")
_LOG = re.compile(r"\S+: log during ")
_MAX_MESSAGE = 4000


@contextlib.contextmanager
def grouped_logs(reports: Iterable[Any], environ: Mapping[str, str] | None = None) -> Iterator[None]:
    """Let servers' logs in reports be groups of a CI service, which can be folded, while pytest prints them.

    Args:
        reports: Reports of tests.
        environ: The environment; this process's if None.
    """
    frame = _frame(os.environ if environ is None else environ)
    changed = []
    for report in reports if frame is not None else ():
        sections = getattr(report, "sections", None)
        if isinstance(sections, list) and any(_LOG.match(title) for title, _ in sections):
            changed.append((sections, list(sections)))
            sections[:] = [_framed(title, text, frame) for title, text in sections]
    try:
        yield
    finally:
        for sections, before in changed:
            sections[:] = before


def _frame(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return what a group begins with, and what ends it."""
    if environ.get("GITHUB_ACTIONS") == "true":
        return "::group::{}", "::endgroup::"
    if environ.get("BUILDKITE") == "true":
        # A section ends where the next one begins; this one is shown unfolded.
        return "--- {}", "+++ pytest"
    return None


def _framed(title: str, text: str, frame: tuple[str, str] | None) -> tuple[str, str]:
    if frame is None or not _LOG.match(title):
        return title, text
    begin, end = frame
    return title, "\n".join([begin.format(title), text.rstrip("\n"), end])


def annotation_lines(
    failed: Iterable[Any],
    errors: Sequence[str],
    warnings: Sequence[str],
    rootdir: Path,
    environ: Mapping[str, str] | None = None,
) -> list[str]:
    """Return lines with which GitHub Actions marks what went wrong with servers; none anywhere else.

    Args:
        failed: Reports of failed tests; those that tell of a server count.
        errors: What went wrong and belongs to no test.
        warnings: What is worth a word.
        rootdir: Where the tests' paths begin.
        environ: The environment; this process's if None.
    """
    environ = os.environ if environ is None else environ
    if environ.get("GITHUB_ACTIONS") != "true":
        return []
    lines = [line for report in failed for line in _annotation(report, rootdir, environ.get("GITHUB_WORKSPACE"))]
    lines += [_command("error", {"title": "infserver"}, text) for text in errors]
    return [*lines, *(_command("warning", {"title": "infserver"}, text) for text in warnings)]


def _annotation(report: Any, rootdir: Path, workspace: str | None) -> Iterator[str]:
    sections = dict(getattr(report, "sections", ()))
    if not any(_OF_A_SERVER.match(title) for title in sections):
        return
    died = next((text for title, text in sections.items() if title.startswith("inference server died")), None)
    names = dict.fromkeys(match["name"] for match in map(_OF_A_SERVER.match, sections) if match and match["name"])
    path, line, _ = report.location
    place = rootdir / path
    if workspace is not None and place.is_relative_to(workspace):
        path = str(place.relative_to(workspace))
    where = {"file": path, "line": str((line or 0) + 1), "title": f"{report.nodeid} ({', '.join(names)})"}
    yield _command("error", where, died or _message(report))


def _message(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(report.longrepr if crash is None else crash.message)


def _command(kind: str, properties: Mapping[str, str], text: str) -> str:
    words = ",".join(f"{key}={_escaped(value, ',:')}" for key, value in properties.items())
    return f"::{kind} {words}::{_escaped(text[:_MAX_MESSAGE])}"


def _escaped(text: str, more: str = "") -> str:
    """Return a text as GitHub's commands take it: percent signs, ends of lines and what separates are numbers."""
    return "".join(f"%{ord(one):02X}" if one in f"%\r\n{more}" else one for one in text)


class CiServices:
    """A plugin of pytest that does both at the end of a run."""

    def __init__(self, config: pytest.Config, problems: Callable[[], tuple[Sequence[str], Sequence[str]]]) -> None:
        """Do nothing yet.

        Args:
            config: pytest's configuration.
            problems: Returns what went wrong and belongs to no test, and what is worth a word.
        """
        self._config = config
        self._problems = problems

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, object, object]:
        """Group what pytest prints, and annotate what went wrong."""
        failed = [report for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())]
        with grouped_logs(failed):
            result = yield
        for line in annotation_lines(failed, *self._problems(), self._config.rootpath):
            terminalreporter.write_line(line)
        return result
