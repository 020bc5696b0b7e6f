"""The table of what .ci/run leaves out speaks of tests that there are."""

from __future__ import annotations

import re

import pytest
from left_to_nightly import LEFT_OUT
from tiers import TESTS


@pytest.mark.parametrize("file", LEFT_OUT)
def test_it_names_tests_that_there_are(file: str) -> None:
    # Some files import those of others, which then run in another way.
    assert set(LEFT_OUT[file]) <= set(re.findall(r"\btest_\w+", (TESTS / file).read_text()))
