"""What the tests of leaks share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .holders import Holder


@pytest.fixture
def start(nothing_left: None) -> Iterator[Callable[..., Holder]]:
    """Start processes that hold things: ``start(code, *arguments)``."""
    made: list[Holder] = []

    def make(*arguments: object, **options: object) -> Holder:
        made.append(Holder(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for holder in made:
        holder.end()


@pytest.fixture
def shm() -> Iterator[str]:
    """Return how the names of this test's objects in /dev/shm begin; they must be gone in the end."""
    token = f"infs-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    yield token
    left = [path for path in Path("/dev/shm").rglob("*") if token in path.name]
    for path in sorted(left, reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    assert not left
