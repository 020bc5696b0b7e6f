"""What is being profiled, in a file that several processes read and change."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from stand_ins import wait_for

from pytest_infserver.launcher.profiling import ledger as module
from pytest_infserver.launcher.profiling.ledger import Entry, Ledger, Stretch, this_process
from pytest_infserver.system.disk.locks import take_lock
from pytest_infserver.system.processes.table import read_process

pytestmark = pytest.mark.usefixtures("nothing_left")


def stretch(**changes: Any) -> Stretch:
    pid, start = this_process()
    values = {"tool": "nsys", "name": "a", "target": "/a", "automatic": False, "phase": "running"}
    return Stretch(**{**values, "pid": pid, "start": start, **changes})


def test_nothing_is_said_at_first(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "not" / "there")
    assert not ledger.exists()
    assert ledger.read() == Entry()
    assert not (tmp_path / "not").exists()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = stretch(running={"pid": 7, "notes": "ä"}, resume=True)
    with Ledger(tmp_path).changed() as entry:
        entry.place, entry.stretch = {"scratch": "/x"}, written
    assert Ledger(tmp_path).read() == Entry({"scratch": "/x"}, written)


def test_file_of_nothing_is_removed(tmp_path: Path) -> None:
    with Ledger(tmp_path).changed() as entry:
        entry.stretch = stretch()
    assert Ledger(tmp_path).exists()
    with Ledger(tmp_path).changed() as entry:
        entry.stretch = None
    assert not Ledger(tmp_path).exists()


def test_failed_change_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.changed() as entry:
        entry.stretch = stretch()

    def fail() -> None:
        with ledger.changed() as entry:
            entry.stretch = None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ledger.read().stretch == stretch()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"place": null}', '{"place": null, "stretch": {}}', '{"place": 1, "stretch": 2}'],
)
def test_what_cannot_be_understood_is_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "profile.json").write_text(text)
    assert Ledger(tmp_path).read() == Entry()
    (tmp_path / "profile.json").write_bytes(b"\xff\xfe")
    assert Ledger(tmp_path).read() == Entry()


def count(folder: str, times: int) -> None:
    for _ in range(times):
        with Ledger(Path(folder)).changed() as entry:
            number = int((entry.place or {"n": "0"})["n"])
            entry.place = {"n": str(number + 1)}


def test_no_change_is_lost_among_processes_and_threads(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=count, args=(str(tmp_path), 50)) for _ in range(3)]
    threads = [threading.Thread(target=count, args=(str(tmp_path), 50)) for _ in range(2)]
    # Processes first: a fork takes no threads along.
    for process in processes:
        process.start()
    for thread in threads:
        thread.start()
    for process in processes:
        process.join(60)
    for thread in threads:
        thread.join(60)
    assert Ledger(tmp_path).read().place == {"n": "250"}


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".profile.lock")], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
        with Ledger(tmp_path).changed() as entry:
            entry.stretch = stretch()
    assert Ledger(tmp_path).read().stretch is not None


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", fail)
    with Ledger(tmp_path).changed() as entry:
        entry.stretch = stretch()
    assert Ledger(tmp_path).read().stretch is not None


def test_what_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), Ledger(tmp_path / "file").changed():
        pytest.fail("not reached")


def test_living_process_has_not_abandoned_it() -> None:
    assert not stretch().is_abandoned
    # Its pid may have been given to another one.
    assert stretch(start="1").is_abandoned


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_dead_process_has_abandoned_it() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        found = read_process(process.pid)
        assert found is not None
        one = stretch(pid=process.pid, start=found.start)
        assert not one.is_abandoned
        process.kill()
        # Also while nobody has reaped it.
        wait_for(lambda: one.is_abandoned)
    assert one.is_abandoned


def test_system_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_process", lambda pid: None)
    assert this_process() == (os.getpid(), "")
    assert not stretch(start="").is_abandoned
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert stretch(pid=process.pid, start="").is_abandoned


@pytest.mark.parametrize(
    ("phase", "alive", "possible"),
    [
        ("beginning", True, False),
        ("running", True, True),
        ("ending", True, False),
        ("beginning", False, True),
        ("ending", False, True),
    ],
)
def test_who_is_about_to_do_something_is_left_alone(phase: str, alive: bool, possible: bool) -> None:
    one = stretch(phase=phase) if alive else stretch(phase=phase, start="1")
    assert one.can_be_ended is possible


def test_who_ends_it_is_noted() -> None:
    other = stretch(pid=1, start="1", resume=True, running={"x": 1})
    ours = other.ended_here()
    assert (ours.pid, ours.start) == this_process()
    assert (ours.phase, ours.resume, ours.running) == ("ending", True, {"x": 1})


@pytest.mark.usefixtures("hard_limit")
def test_pipes_and_links_in_its_place_are_neither_read_nor_written(tmp_path: Path) -> None:
    ledger, precious = Ledger(tmp_path), tmp_path / "precious"
    precious.write_text("precious")
    os.mkfifo(tmp_path / "profile.json")
    (tmp_path / "profile.new").symlink_to(precious)
    assert ledger.read() == Entry()
    with ledger.changed() as entry:
        entry.place = {"session": "x"}
    assert ledger.read().place == {"session": "x"}
    assert precious.read_text() == "precious"
    (tmp_path / ".profile.lock").unlink()
    (tmp_path / ".profile.lock").symlink_to(precious)
    with pytest.raises(OSError, match=r"\.profile\.lock is a link"), ledger.changed():
        pass


def test_a_lock_that_is_never_given_back_is_waited_for_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_LIMIT", 0.1)
    lock = take_lock(tmp_path / ".profile.lock")
    assert lock is not None
    with pytest.raises(OSError, match=r"has held .*\.profile\.lock for more than 0\.1 s"), Ledger(tmp_path).changed():
        pass
    os.close(lock)
