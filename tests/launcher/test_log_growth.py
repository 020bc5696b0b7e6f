"""A log that becomes too long, or fills the disk, is told of before it has."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_infserver import CommandServer, ServerDiedError, ServerStartupError, ServerState
from pytest_infserver.launcher.health.log_growth import LogGrowth, Look, disk_text, limit_text, shown_size

pytestmark = pytest.mark.usefixtures("nothing_left")

FakeServer = Callable[..., CommandServer]
GB, MB = 1000**3, 1000**2


@pytest.mark.parametrize(
    ("size", "limit", "fail", "text"),
    [
        (899, 1000, False, None),
        (900, 1000, False, "its log has 900 bytes, and log_limit is 1 KB: it goes on (on_log_limit: warn)."),
        (9 * GB, 10 * GB, True, "its log has 9 GB, and log_limit is 10 GB: beyond that it is ended"),
        (10**15, 0, True, None),
        (0, 1, False, None),
    ],
)
def test_near_the_limit(size: int, limit: int, fail: bool, text: str | None) -> None:
    found = limit_text(size, limit, fail)
    assert found is None if text is None else (found or "").startswith(text)


@pytest.mark.parametrize(
    ("grown", "seconds", "free", "text"),
    [
        (MB, 10, 100 * GB, None),
        (100 * MB, 1, 50 * GB, "50 GB are free, full in 500 s as fast as its log grows"),
        (100 * MB, 1, 70 * GB, None),
        (1, 10, 100 * MB, "100 MB are free. Make room"),
        (0, 10, 0, None),
        (-5, 10, 0, None),
        (5, 10, None, None),
    ],
)
def test_the_disk(grown: int, seconds: float, free: int | None, text: str | None) -> None:
    found = disk_text(Look(1000, free, 5.0), Look(1000 + grown, free, 5.0 + seconds))
    assert found is None if text is None else text in (found or "")
    assert disk_text(None, Look(1000, free, 5.0)) is None


def test_each_warning_is_given_once() -> None:
    growth = LogGrowth(1000, False)
    given = [growth.note(Look(size, 100 * GB, at)) for at, size in enumerate([0, 500, 950, 960, 1001, 2000, 3000])]
    assert [len(one) for one in given] == [0, 0, 1, 0, 1, 0, 0]
    full = [growth.note(Look(4000 + at, 1000, 10.0 + at)) for at in range(3)]
    assert sum(map(len, full)) == 1


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KB"), (10 * GB, "10 GB"), (9.99 * MB, "9.99 MB")]
)
def test_sizes(size: int, text: str) -> None:
    assert shown_size(int(size)) == text


def say(server: CommandServer, count: int) -> None:
    for _ in range(count):
        urllib.request.urlopen(server.url_for("/say?text=" + "x" * 900), timeout=30).close()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_goes_on_beyond_its_limit_and_that_is_told(fake_server: FakeServer) -> None:
    server = fake_server(heartbeat_interval=0.05, log_limit=10_000)
    warnings: list[str] = []
    server.on_warning = warnings.append
    server.start()
    assert warnings == []
    say(server, 20)
    until(lambda: warnings)
    assert "log_limit is 10 KB: it goes on" in warnings[0]
    time.sleep(0.3)
    assert len([one for one in warnings if "log_limit" in one]) <= 2
    assert server.check_health()


def test_a_server_is_ended_beyond_its_limit_if_that_is_wanted(fake_server: FakeServer) -> None:
    server = fake_server(heartbeat_interval=0.05, log_limit=10_000, on_log_limit="fail").start()
    say(server, 8)
    time.sleep(0.3)
    assert server.check_health()
    say(server, 3)
    # It may be gone before it has answered.
    with contextlib.suppress(OSError):
        say(server, 1)
    assert server.wait_death(30)
    with pytest.raises(ServerDiedError, match=r"was killed: its log has \S+ KB, and log_limit is 10 KB"):
        server.raise_if_dead()
    assert server.state is ServerState.DIED


def test_a_start_with_a_log_that_is_too_long_fails(fake_server: FakeServer) -> None:
    server = fake_server("--say", "x" * 5000, "--delay", "60", log_limit=1000, on_log_limit="fail")
    with pytest.raises(ServerStartupError, match="was ended: its log has 5 KB, and log_limit is 1 KB"):
        server.start()
    assert server.state is ServerState.FAILED


def test_no_limit(tmp_path: Path) -> None:
    growth = LogGrowth(0, True)
    log = tmp_path / "server.log"
    log.write_bytes(b"x" * 1_000_000)
    assert growth.look(log) == []
    assert growth.reason_to_end(log) is None
    assert LogGrowth(1, True).look(tmp_path / "none") == []
