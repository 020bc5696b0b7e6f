"""SysV shared memory: which segments are the server's, and that all others stay."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator

import pytest

from pytest_infserver.launcher.leaks import sysv as module
from pytest_infserver.launcher.leaks.sysv import SysVSharedMemory
from pytest_infserver.leak_finding import Finding

from .holders import BECOME_NOBODY, Holder, linux_only, root_only

pytestmark = [linux_only, pytest.mark.usefixtures("hard_limit")]

Start = Callable[..., Holder]
LIBC = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
"""
CREATE = f"""{LIBC}
number = libc.shmget(0, 10000, 0o1600)
assert number >= 0
say(number)
"""
ATTACH = "place = libc.shmat({}, None, 0)\nassert place != 2**64 - 1"
DETACH = "wait()\nassert libc.shmdt(place) == 0"


@pytest.fixture
def create(start: Start) -> Iterator[Callable[..., tuple[Holder, int]]]:
    """Start a process that makes a segment; return it and the segment's number."""
    made: list[int] = []

    def make(before: str = "", after: str = "", looked_at: SysVSharedMemory | None = None) -> tuple[Holder, int]:
        if looked_at is None:
            holder = start(f"{LIBC}{before}{CREATE}{after}")
        else:
            holder = start(f"say('up')\n{LIBC}{before}{CREATE}{after}")
            looked_at.look([holder.holdings], None)
            holder.go_on(until="up")
        made.append(int(holder.said[0]))
        return holder, made[-1]

    yield make
    left = set(made) & numbers()
    for number in left:
        remove(number)
    assert not left


Create = Callable[..., "tuple[Holder, int]"]


def numbers() -> set[int]:
    return {segment.number for segment, _ in module._segments()}


def remove(number: int) -> None:
    assert ctypes.CDLL(None).shmctl(number, module._IPC_RMID, None) == 0


def left(watch: SysVSharedMemory, *segments: int) -> list[Finding]:
    """Return what is found of this test's segments: others come and go all the time."""
    names = {f"shmid {number}" for number in segments}
    return [finding for finding in watch.left() if finding.name in names]


@pytest.mark.parametrize("after", ["", ATTACH.format("number")])
def test_segment_of_the_server_is_found_and_removed(create: Create, after: str) -> None:
    watch = SysVSharedMemory()
    server, number = create(after=after)
    watch.look([server.holdings], None)
    command = server.holdings.command
    server.end()
    [finding] = left(watch, number)
    expected = Finding("sysv", f"shmid {number}", "10000 bytes", server.pid, command, finding.age, True, True)
    assert finding == expected
    assert finding.age is not None
    assert 0 <= finding.age < 100
    assert number not in numbers()


def test_segment_that_was_made_after_the_last_look_is_found(create: Create) -> None:
    watch = SysVSharedMemory()
    server, number = create(before="wait()\n", looked_at=watch)
    server.end()
    assert [(finding.pid, finding.removed) for finding in left(watch, number)] == [(server.pid, True)]


@pytest.mark.parametrize(("born", "last_seen"), [(100, 200), (-200, -100)], ids=["before it", "after it"])
def test_segment_of_another_process_that_had_the_same_pid_stays(create: Create, born: float, last_seen: float) -> None:
    watch = SysVSharedMemory()
    server, number = create()
    watch._seen[server.pid] = module._Creator(time.time() + born, time.time() + last_seen, "command")
    server.end()
    assert left(watch, number) == []
    remove(number)


def test_segment_that_the_server_removes_is_none(create: Create) -> None:
    watch = SysVSharedMemory()
    server, number = create()
    watch.look([server.holdings], None)
    remove(number)
    server.end()
    assert left(watch, number) == []


def test_segment_that_ends_with_its_last_user_is_none(create: Create) -> None:
    watch = SysVSharedMemory()
    server, number = create(after=f"{ATTACH.format('number')}\nassert libc.shmctl(number, 0, None) == 0")
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, number) == []


def test_segment_that_was_there_before_stays(create: Create) -> None:
    server, number = create()
    watch = SysVSharedMemory()
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, number) == []
    remove(number)


@pytest.mark.parametrize("attached", [True, False])
def test_segment_of_somebody_else_stays_even_if_the_server_uses_it(
    create: Create, start: Start, attached: bool
) -> None:
    watch = SysVSharedMemory()
    other, number = create()
    server = start(f"{LIBC}{ATTACH.format(number) if attached else ''}")
    watch.look([server.holdings], other.holdings)
    server.end()
    other.end()
    assert left(watch, number) == []
    remove(number)


def test_segment_that_somebody_is_attached_to_stays_as_long(create: Create, start: Start) -> None:
    watch = SysVSharedMemory()
    server, number = create()
    other = start(f"{LIBC}{ATTACH.format(number)}\nsay('up')\n{DETACH}\nsay('detached')")
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, number) == []
    assert number in numbers()
    other.go_on(until="detached")
    assert [finding.removed for finding in left(watch, number)] == [True]


@root_only
def test_segment_of_a_server_that_has_become_another_user(create: Create) -> None:
    watch = SysVSharedMemory()
    server, number = create(before=BECOME_NOBODY.replace("os.setgroups", "import ctypes\nos.setgroups"))
    watch.look([server.holdings], None)
    server.end()
    assert [finding.removed for finding in left(watch, number)] == [True]


def test_system_without_sysv_has_no_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *rest, **more: real(f"/nonexistent{path}", *rest, **more))
    assert SysVSharedMemory().left() == []


def test_age_counts_from_the_creation(create: Create) -> None:
    watch = SysVSharedMemory()
    begin = time.time()
    server, number = create()
    watch.look([server.holdings], None)
    server.end()
    time.sleep(1.1)
    [finding] = left(watch, number)
    assert finding.age is not None
    # The kernel counts in whole seconds.
    assert 1 <= finding.age <= time.time() - begin + 1
