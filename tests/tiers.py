"""Which tier a test belongs to: told by its folder and its fixtures, so that nobody has to remember a mark.

`pytest` runs the everyday tiers: pure, process, and of the others what bears the mark `promise`. `pytest -m ""` runs
all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TIERS = {
    "pure": "runs in this process alone",
    "process": "starts processes",
    "run": "runs a whole pytest, in a subprocess or in this process",
    "engine": "engine(*names): needs these of the engines of tests/engines/provision.py",
    "cluster": "needs a Ray cluster",
    "faults": "breaks things: kills, floods, full disks",
    "gpu": "needs a GPU, and torch: see tools/gpu_check.sh",
    "browser": "needs the browser of tests/engines/provision.py",
}
CHOICES = {
    "promise": "of a slow tier, and run every day: a promise of the pages",
    "nightly": "left to .ci/nightly: one more of a kind of which .ci/run has a sample",
}

_RAY = ("ray_nodes", "fragile_nodes", "on_cluster", "own_ray")
_RUN = ("run_pytest", "run_inline", "twin_project", "shared_project", "run_project", "arguments_for")
_PROCESS = ("nothing_left", "no_engine_left")
_SPAWNS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "pty.spawn"})


def tier_of(item: pytest.Item) -> str:
    """Return the tier of a test."""
    engines = {name for mark in item.iter_markers("engine") for name in mark.args}
    if "chromium" in engines:
        return "browser"
    for tier in ("process", "run", "cluster"):
        # A fixture's parameter says so, or a test that starts such a run by hand.
        if item.get_closest_marker(tier) is not None:
            return tier
    fixtures = getattr(item, "fixturenames", ())
    if engines or "inference_server" in fixtures:
        return "engine"
    if TESTS / "gpu" in item.path.parents:
        return "gpu"
    if any(name in fixtures for name in _RAY):
        return "cluster"
    if TESTS / "faults" in item.path.parents:
        return "faults"
    if any(name in fixtures for name in _RUN):
        return "run"
    return "process" if any(name in fixtures for name in _PROCESS) else "pure"


class SpawnWatch:
    """Notices when this process starts another one."""

    def __init__(self) -> None:
        """Watch from now on; an audit hook cannot be taken off."""
        self._seen: list[str] = []
        sys.addaudithook(self._note)

    def taken(self) -> list[str]:
        """Return what was started since the last call."""
        seen, self._seen = self._seen, []
        return seen

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in _SPAWNS:
            # xdist cannot send what is no text in a report.
            self._seen.append(ascii((event, *arguments[:2])))
