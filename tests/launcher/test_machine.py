"""The machine's size, as containers see it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from pytest_infserver.system import machine


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 16 << 20, "SC_PAGE_SIZE": 4 << 10}.__getitem__)
    for folder in ("cpu", "memory"):
        (tmp_path / folder).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, 8),
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1.5),
        ("1600000 100000\n", 8),
        ("", 8),
        ("nonsense", 8),
    ],
)
def test_cores_of_a_cgroup(cgroup: Path, text: str | None, expected: float) -> None:
    if text is not None:
        (cgroup / "cpu.max").write_text(text)
    assert machine.cores() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1", "100000", 8), ("300000", "100000", 3), ("50000", "100000", 0.5), ("300000", None, 8), ("x", "100000", 8)],
)
def test_cores_of_an_old_cgroup(cgroup: Path, quota: str, period: str | None, expected: float) -> None:
    (cgroup / "cpu/cpu.cfs_quota_us").write_text(quota)
    if period is not None:
        (cgroup / "cpu/cpu.cfs_period_us").write_text(period)
    assert machine.cores() == expected


def test_cores_without_affinity(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, 64 << 30),
        ("max\n", 64 << 30),
        (f"{8 << 30}\n", 8 << 30),
        # What version 1 says without a limit.
        ("9223372036854771712\n", 64 << 30),
        ("", 64 << 30),
    ],
)
def test_memory_of_a_cgroup(cgroup: Path, file: str, text: str | None, expected: int) -> None:
    if text is not None:
        (cgroup / file).write_text(text)
    assert machine.memory() == expected


def test_the_machine_that_this_runs_on_has_a_size() -> None:
    assert 0 < machine.cores() <= (os.cpu_count() or 1)
    assert 1 << 20 < machine.memory() <= psutil.virtual_memory().total
