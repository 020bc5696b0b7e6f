"""The owner of a server, as its supervisor sees it."""

from __future__ import annotations

import os
import subprocess

import pytest
from descriptors import open_descriptors

from pytest_infserver.system.processes.owner import Owner

pytestmark = pytest.mark.usefixtures("hard_limit", "nothing_left")


def test_an_owner_that_was_gone_before_we_looked_leaves_no_descriptor() -> None:
    """Its number may be that of another process, of which a handle can be had."""
    before = open_descriptors()
    owners = [Owner(os.getpid(), is_parent=True) for _ in range(3)]
    assert [owner.handle for owner in owners] == [None] * 3
    assert all(owner.is_gone() for owner in owners)
    assert open_descriptors() == before


def test_an_owner_that_nobody_has_any_more_leaves_no_descriptor() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    before = open_descriptors()
    owner = Owner(child.pid, is_parent=False)
    assert owner.handle is None
    assert owner.is_gone()
    assert open_descriptors() == before


def test_an_owner_that_is_forgotten_leaves_no_descriptor() -> None:
    before = open_descriptors()
    owner = Owner(os.getppid())
    assert not owner.is_gone()
    owner.forget()
    owner.forget()
    assert open_descriptors() == before
