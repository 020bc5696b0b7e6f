"""The suites are run as projects of their own, by test_suites.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines.conftest import require_engines

HERE = Path(__file__).parent
collect_ignore_glob = ["*/dropin/*", "*/own/*"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Look at the tests of this folder."""
    require_engines(config, [item for item in items if HERE in item.path.parents])
