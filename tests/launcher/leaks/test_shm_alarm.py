"""The alarm that rings when somebody makes an object in /dev/shm."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_infserver.launcher.leaks import shm_alarm as module
from pytest_infserver.launcher.leaks.shm_alarm import open_alarm, quiet_alarm
from pytest_infserver.launcher.leaks.temporary_files import new_path
from pytest_infserver.launcher.leaks.tracker import Tracker

from .holders import linux_only

pytestmark = [linux_only, pytest.mark.usefixtures("hard_limit")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of this test's own in place of /dev/shm, where others make objects all the time."""
    monkeypatch.setattr(module, "FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def alarm(folder: Path) -> Iterator[int]:
    descriptor = open_alarm()
    if descriptor is None:
        pytest.skip("this user has no inotify instance left")
    yield descriptor
    os.close(descriptor)


def rings(alarm: int, limit: float = 0.0) -> bool:
    poller = select.poll()
    poller.register(alarm, select.POLLIN)
    return bool(poller.poll(limit * 1000))


def test_new_object_rings_until_it_is_made_quiet(alarm: int, folder: Path) -> None:
    assert not rings(alarm)
    (folder / "new").write_text("")
    assert rings(alarm, 30)
    quiet_alarm(alarm)
    assert not rings(alarm)
    (folder / "another").write_text("")
    assert rings(alarm, 30)


def test_nothing_else_rings(alarm: int, folder: Path) -> None:
    path = folder / "old"
    path.write_text("")
    quiet_alarm(alarm)
    path.write_text("more")
    path.read_text()
    path.chmod(0o600)
    path.unlink()
    assert not rings(alarm)


def test_folder_rings_but_what_is_in_it_does_not(alarm: int, folder: Path) -> None:
    (folder / "sub").mkdir()
    assert rings(alarm, 30)
    quiet_alarm(alarm)
    (folder / "sub" / "new").write_text("")
    assert not rings(alarm)


def test_flood_is_made_quiet_too(alarm: int, folder: Path) -> None:
    for number in range(1000):
        os.close(os.open(folder / str(number), os.O_CREAT | os.O_WRONLY))
    quiet_alarm(alarm)
    assert not rings(alarm)


def test_quiet_alarm_can_be_made_quiet(alarm: int) -> None:
    quiet_alarm(alarm)
    assert not rings(alarm)


def test_no_folder_is_no_alarm_and_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(module, "FOLDER", "/nonexistent")
    assert open_alarm() is None
    assert os.listdir("/proc/self/fd") == before


def test_programs_do_not_inherit_it(alarm: int) -> None:
    assert not os.get_inheritable(alarm)


def test_look_makes_it_quiet(folder: Path) -> None:
    tracker = Tracker(os.getpid(), new_path(str(folder)))
    if tracker.alarm is None:
        pytest.skip("this user has no inotify instance left")
    # Its temporary directory, which is not in /dev/shm usually.
    tracker.prepare()
    (folder / "new").write_text("")
    assert rings(tracker.alarm, 30)
    tracker.prepare()
    assert not rings(tracker.alarm)
    tracker.finish([])
    os.close(tracker.alarm)
