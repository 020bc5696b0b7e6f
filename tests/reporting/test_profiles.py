"""Where the traces are named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver.launcher.profiling.viewers import viewer_of, with_viewer
from pytest_infserver.reporting.profiles import add_profiles, paths_of, show_profiles, shown


def report(when: str = "call") -> Any:
    return SimpleNamespace(when=when, nodeid="test.py::test_1", sections=[], user_properties=[("other", "x")])


class Terminal:
    """Takes what is shown."""

    def __init__(self, *reports: Any) -> None:
        self.stats = {"passed": list(reports), "warnings": [SimpleNamespace(message="no report of a test")]}
        self.lines: list[str] = []
        self.ensure_newline = lambda: None
        self.section = lambda title: self.lines.append(f"= {title}")
        self.write_line = self.lines.append


def test_a_trace_is_a_property_and_a_section_of_the_phase_that_made_it_and_a_property_of_the_later_ones() -> None:
    item: Any = SimpleNamespace(user_properties=[])
    setup, call = report("setup"), report()
    add_profiles(setup, item, [])
    add_profiles(call, item, [Path("/p/a.svg"), Path("/p/b.nsys-rep")])
    assert (setup.sections, paths_of(setup), item.user_properties) == ([], [], call.user_properties[1:])
    assert paths_of(call) == ["/p/a.svg", "/p/b.nsys-rep"]
    [(title, text)] = call.sections
    assert title == "infserver profile"
    assert text.splitlines() == [
        "/p/a.svg (opens in a browser)",
        "/p/b.nsys-rep (opens in Nsight Systems, or 'nsys stats')",
    ]


def test_the_summary_names_each_trace_once_with_who_asked_for_it() -> None:
    item: Any = SimpleNamespace(user_properties=[])
    one = report()
    add_profiles(one, item, [Path("/p/a.svg")])
    terminal = Terminal(one, one)
    show_profiles(terminal, {"/p/server.svg": "llama", "/p/a.svg": "llama"})
    assert terminal.lines == [
        "= infserver profiles",
        "llama: /p/server.svg (opens in a browser)",
        "test.py::test_1: /p/a.svg (opens in a browser)",
    ]
    quiet = Terminal(report())
    show_profiles(quiet, {})
    assert quiet.lines == []


def test_a_path_is_shown_as_one_would_type_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(str(tmp_path / "profiles" / "a.csv")) == "profiles/a.csv"
    assert shown("/elsewhere/a.csv") == "/elsewhere/a.csv"


@pytest.mark.parametrize(
    ("name", "viewer"),
    [
        ("a.nsys-rep", "Nsight"),
        ("a.svg", "browser"),
        ("a.speedscope.json", "speedscope"),
        ("rank0.1.pt.trace.json.gz", "perfetto"),
        ("a.trace.json", "perfetto"),
        ("12_results.pftrace", "perfetto"),
        ("12_results.db", "rocpd"),
        ("12_kernel_trace.csv", None),
    ],
)
def test_what_opens_it(name: str, viewer: str | None) -> None:
    found = viewer_of(Path("/folder.svg") / name)
    assert found is None if viewer is None else viewer in str(found)
    assert with_viewer(name) == (name if found is None else f"{name} (opens in {found})")
