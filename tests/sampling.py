"""Tables of tests of which .ci/run has a sample, and .ci/nightly all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest


def sampled(rows: Mapping[str, Any], *, nightly: Collection[str]) -> list[Any]:
    """Return the rows of a table as parameters, those for .ci/nightly alone with that mark.

    Args:
        rows: Id to the value, or to a tuple of the values.
        nightly: Ids of the rows of whose kind there is another one.
    """
    unknown = set(nightly) - set(rows)
    assert not unknown, f"no such rows: {unknown}"
    return [
        pytest.param(
            *(row if isinstance(row, tuple) else (row,)), id=name, marks=[pytest.mark.nightly] * (name in nightly)
        )
        for name, row in rows.items()
    ]
