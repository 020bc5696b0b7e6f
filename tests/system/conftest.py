"""What tests of files have around them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import open_descriptors


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a folder that every user of the machine can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="infs-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def no_descriptor_left() -> Iterator[None]:
    """Make sure that the test closes what it opens."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before
