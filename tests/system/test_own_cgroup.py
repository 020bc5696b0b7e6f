"""A cgroup holds all that a process starts, and only those that ended processes of ours have left are swept away."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_infserver.system.processes import own_cgroup
from pytest_infserver.system.processes.own_cgroup import (
    cgroup_made_by,
    enter_cgroup,
    is_in_cgroup,
    kill_cgroup,
    make_cgroup,
    remove_cgroup,
    start_of,
)

FORKS_AWAY = ["sh", "-c", "setsid sleep 600 & exec sleep 600"]


@pytest.fixture
def cgroup(needs_cgroup: None, nothing_left: None) -> Iterator[str]:
    folder = make_cgroup()
    assert folder is not None
    yield folder
    kill_cgroup(folder, 10)
    assert not Path(folder).exists()


def pids(folder: str) -> list[int]:
    return [int(line) for line in Path(folder, "cgroup.procs").read_text().split()]


def started(folder: str) -> subprocess.Popen[bytes]:
    """Start a process in a cgroup that has another one in a session of its own."""
    process = subprocess.Popen(FORKS_AWAY, preexec_fn=functools.partial(enter_cgroup, folder))
    deadline = time.monotonic() + 30
    while len(pids(folder)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_nothing_that_was_started_in_it_is_left(cgroup: str) -> None:
    process = started(cgroup)
    assert not remove_cgroup(cgroup)
    assert kill_cgroup(cgroup, 10)
    assert process.wait(10) == -9
    assert not Path(cgroup).exists()
    assert not kill_cgroup(cgroup, 10)
    assert remove_cgroup(cgroup)


def test_it_is_found_by_who_has_made_it(cgroup: str) -> None:
    start = start_of(os.getpid())
    assert cgroup_made_by(os.getpid(), start) == cgroup
    assert cgroup_made_by(os.getpid(), start[:-1]) is None
    assert cgroup_made_by(os.getppid(), start_of(os.getppid())) is None


def test_whether_a_process_has_got_in(cgroup: str) -> None:
    process = started(cgroup)
    assert is_in_cgroup(process.pid, cgroup)
    assert not is_in_cgroup(os.getpid(), cgroup)
    assert not is_in_cgroup(process.pid, f"{cgroup}/below")
    kill_cgroup(cgroup, 10)
    process.wait(10)


def test_those_below_it_go_with_it(cgroup: str) -> None:
    below = Path(cgroup, "a", "b")
    below.mkdir(parents=True)
    process = started(str(below))
    assert kill_cgroup(cgroup, 10)
    assert process.wait(10) == -9
    assert not Path(cgroup).exists()


def test_of_one_that_is_not_there_nobody_says_that_all_has_ended(tmp_path: Path) -> None:
    assert not kill_cgroup(str(tmp_path / "none"), 1.0)
    assert remove_cgroup(str(tmp_path / "none"))


def test_a_process_that_cannot_enter_goes_on_outside(tmp_path: Path) -> None:
    before = Path("/proc/self/cgroup").read_text() if sys.platform == "linux" else ""
    enter_cgroup(str(tmp_path / "none"))
    assert (Path("/proc/self/cgroup").read_text() if sys.platform == "linux" else "") == before


NOBODY = "99999999"
"""A process id beyond all."""


def test_what_ended_processes_have_left_is_swept_away_and_nothing_else(
    cgroup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a place of its own: the supervisors of other tests sweep, too.
    monkeypatch.setattr(own_cgroup, "_own_folders", lambda: iter([cgroup]))
    parent, me, prefix = Path(cgroup), f"{os.getpid()}-{start_of(os.getpid())}", own_cgroup._prefix()
    left = [f"{NOBODY}-5", f"{os.getpid()}-1", f"{NOBODY}-5-{NOBODY}-6"]
    # Somebody is there; nobody can tell; of another pid namespace; not ours.
    others = [f"{NOBODY}-5-{me}", f"{me}-{NOBODY}-5", f"{NOBODY}-x", NOBODY]
    gone = [parent / f"{prefix}{name}" for name in left]
    staying = [parent / f"{prefix}{name}" for name in others]
    staying += [parent / f"infserver-1-{NOBODY}-5", parent / "somebody-else"]
    for folder in (*gone, *staying):
        folder.mkdir()
    process = started(str(gone[0]))
    assert make_cgroup() == str(parent / f"{prefix}{me}")
    assert process.wait(10) == -9
    # Whoever was killed may go a moment later: the next sweep removes it.
    remove_cgroup(str(gone[0]))
    assert [folder for folder in gone if folder.exists()] == []
    assert [folder for folder in staying if not folder.exists()] == []


@pytest.mark.parametrize("error", [PermissionError, OSError(24, "too many open files"), InterruptedError])
def test_who_cannot_be_looked_at_lives(error: OSError | type[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(os, "open", refuse)
    ended = own_cgroup._has_ended(str(os.getpid()), "1")
    monkeypatch.undo()
    assert not ended


def test_who_is_hidden_and_has_its_number_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def hide(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", hide)
    ended = own_cgroup._has_ended(str(os.getpid()), "1"), own_cgroup._has_ended(NOBODY, "1")
    monkeypatch.undo()
    assert ended == (False, True)


def test_an_end_in_the_middle_of_a_sweep_keeps_nobody_from_one(cgroup: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        name = f"{own_cgroup._prefix()}{NOBODY}-5"
        path = "/nowhere"

        def stat(self, **_: object) -> None:
            raise FileNotFoundError

    scan = os.scandir
    remove_cgroup(cgroup)
    monkeypatch.setattr(os, "scandir", lambda path: [Gone(), *scan(path)])
    made = make_cgroup()
    monkeypatch.undo()
    assert made == cgroup


def test_none_is_made_where_proc_is_of_another_pid_namespace(
    needs_cgroup: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "readlink", lambda path: "1")
    made = make_cgroup()
    monkeypatch.undo()
    assert made is None


def test_it_can_be_switched_off(needs_cgroup: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(own_cgroup.SWITCH, "0")
    assert make_cgroup() is None


@pytest.mark.parametrize(
    ("mountinfo", "of_process", "folders"),
    [
        ("1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/a/b", ["/sys/fs/cgroup/a/b"]),
        ("1 2 0:3 / /sys/fs/cgroup rw shared:1 - cgroup2 cgroup2 rw", "4:memory:/m\n0::/", ["/sys/fs/cgroup"]),
        ("1 2 0:3 /a /here rw - cgroup2 cgroup2 rw", "0::/a/b", ["/here/b"]),
        # Neither above what is mounted nor beside it.
        ("1 2 0:3 /a /here rw - cgroup2 cgroup2 rw", "0::/ab", []),
        ("1 2 0:3 / /here rw - cgroup2 cgroup2 rw", "0::/../other", []),
        ("1 2 0:3 / /here rw - cgroup cgroup rw,memory", "4:memory:/m", []),
        ("garbage\n1 2 - cgroup2", "0::/", []),
        ("", "", []),
    ],
)
def test_where_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mountinfo: str, of_process: str, folders: list[str]
) -> None:
    texts = {"/proc/self/mountinfo": mountinfo, "/proc/self/cgroup": of_process}
    monkeypatch.setattr(own_cgroup, "_lines", lambda path: texts[path].splitlines())
    assert list(own_cgroup._own_folders()) == folders
