"""How xdist's workers get the tests: one by one, but whole files or folders where tests share something."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent
SHARING = ("tests/engines", "tests/cluster")
"""Folders whose tests share engines, or a cluster."""


class Together(LoadScopeScheduling):
    """xdist's scheduling by scope, whose `loadgroup` does not know the ids of pytest 9."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = next((name for name in SHARING if file.startswith(f"{name}/")), None)
        return folder or (file if shares_fixtures(file) else nodeid)


@functools.cache
def shares_fixtures(file: str) -> bool:
    """Return whether tests of a file, named from the project's root, share a fixture of their module."""
    return re.search(r'scope="module"|shared_project', (ROOT / file).read_text()) is not None
