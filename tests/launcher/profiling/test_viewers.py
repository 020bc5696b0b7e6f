"""What opens a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_infserver.launcher.profiling.profiler import tail
from pytest_infserver.launcher.profiling.profilers.py_spy import _SUFFIXES
from pytest_infserver.launcher.profiling.viewers import viewer_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a.nsys-rep", "Nsight Systems"),
        ("a.speedscope.json", "speedscope.app"),
        ("rank0.1.pt.trace.json.gz", "ui.perfetto.dev"),
        ("1-TP-0.trace.json.gz", "ui.perfetto.dev"),
        ("a.trace.json", "ui.perfetto.dev"),
        ("x/1_results.pftrace", "ui.perfetto.dev"),
        ("a.svg", "a browser"),
        ("a.db", "ROCm"),
    ],
)
def test_viewer(name: str, part: str) -> None:
    assert part in (viewer_of(name) or "")
    assert viewer_of(Path("/some/where") / name) == viewer_of(name)


@pytest.mark.parametrize("name", ["a.txt", "results.csv", "svg", "a.json", ""])
def test_text_needs_none(name: str) -> None:
    assert viewer_of(name) is None


def test_every_format_of_py_spy_but_its_text_has_one() -> None:
    assert [form for form, suffix in _SUFFIXES.items() if viewer_of(f"a{suffix}") is None] == ["raw"]


def test_tail() -> None:
    assert tail("") == []
    assert tail("a\r\nb\n\n") == ["a", "b"]
    # A line that a tool has rewritten counts as it stands at last.
    assert tail("[0%]\r[50%]\r[100%]\nGenerated:\n") == ["[100%]", "Generated:"]
    assert tail("\n".join(map(str, range(100))), 3) == ["97", "98", "99"]
