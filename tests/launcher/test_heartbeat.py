"""Whether a server that hangs is found out, and one that only pauses is left alone."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from pytest_infserver import CommandServer, RemoteServer, ServerDiedError, ServerState
from pytest_infserver.launcher.health.heartbeat import Heartbeat, Pulse
from pytest_infserver.system.http.probe import Answer

pytestmark = pytest.mark.usefixtures("hard_limit")

FakeServer = Callable[..., CommandServer]
GOOD = Answer(200, "", 0.001)
BAD = Answer(503, "", 0.001)


class Patient:
    def __init__(self) -> None:
        self.answer = GOOD
        self.asked = threading.Semaphore(0)
        self.hangs: list[float] = []
        self.hung = threading.Event()

    def check(self) -> Answer:
        self.asked.release()
        return self.answer

    def on_hang(self, seconds: float) -> None:
        self.hangs.append(seconds)
        self.hung.set()

    def wait_checks(self, count: int) -> None:
        for _ in range(count):
            assert self.asked.acquire(timeout=30)


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.fixture
def watch(patient: Patient) -> Iterator[Callable[..., Heartbeat]]:
    made: list[Heartbeat] = []

    def make(
        interval: float = 0.01, hang_timeout: float = 0.2, check: Callable[[], Answer] = patient.check
    ) -> Heartbeat:
        heartbeat = Heartbeat(check, interval=interval, hang_timeout=hang_timeout, on_hang=patient.on_hang)
        made.append(heartbeat)
        heartbeat.start()
        return heartbeat

    yield make
    for heartbeat in made:
        heartbeat.end()
        heartbeat._thread.join(30)
        assert not heartbeat._thread.is_alive()


def test_busy_server_is_not_asked_and_its_time_does_not_run(patient: Patient) -> None:
    busy = threading.Event()
    busy.set()
    patient.answer = BAD
    heartbeat = Heartbeat(patient.check, interval=0.01, hang_timeout=0.3, on_hang=patient.on_hang, is_busy=busy.is_set)
    heartbeat.start()
    try:
        assert not patient.asked.acquire(timeout=0.5)
        busy.clear()
        patient.wait_checks(2)
        busy.set()
        assert not patient.hung.wait(0.5)
        busy.clear()
        # From now on only.
        assert patient.hung.wait(30)
        assert patient.hangs[0] >= 0.3
    finally:
        heartbeat.end()


def test_good_answers_are_noted(patient: Patient, watch: Callable[..., Heartbeat]) -> None:
    heartbeat = watch()
    patient.wait_checks(3)
    assert heartbeat.last is GOOD
    assert {seconds for _, seconds in heartbeat.samples} == {0.001}
    assert not patient.hung.is_set()


def test_check_that_raises_is_a_failed_answer(watch: Callable[..., Heartbeat], patient: Patient) -> None:
    def broken() -> Answer:
        raise RuntimeError("no idea")

    heartbeat = watch(check=broken, hang_timeout=0.1)
    assert patient.hung.wait(30)
    assert "no idea" in str(heartbeat.last)


def test_hang_is_reported_once_with_its_length(patient: Patient, watch: Callable[..., Heartbeat]) -> None:
    patient.answer = BAD
    watch(hang_timeout=0.1)
    assert patient.hung.wait(30)
    time.sleep(0.2)
    assert len(patient.hangs) == 1
    assert patient.hangs[0] > 0.1


def test_one_failure_is_no_hang_however_rare_the_checks(patient: Patient, watch: Callable[..., Heartbeat]) -> None:
    patient.answer = BAD
    watch(interval=0.4, hang_timeout=0.3)
    patient.wait_checks(1)
    patient.answer = GOOD
    patient.wait_checks(2)
    assert not patient.hung.is_set()


def test_no_check_and_no_hang_during_a_pause(patient: Patient, watch: Callable[..., Heartbeat]) -> None:
    heartbeat = watch(hang_timeout=0.15)
    heartbeat.pause()
    heartbeat.pause()
    patient.answer = BAD
    time.sleep(0.3)
    heartbeat.resume()
    time.sleep(0.3)
    assert not patient.hung.is_set()
    heartbeat.resume()
    assert patient.hung.wait(30)
    assert patient.hangs[0] < 30


def test_resume_without_pause_is_harmless(patient: Patient, watch: Callable[..., Heartbeat]) -> None:
    heartbeat = watch()
    heartbeat.resume()
    patient.wait_checks(2)


def test_check_that_began_before_a_pause_does_not_count(watch: Callable[..., Heartbeat], patient: Patient) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> Answer:
        inside.set()
        go_on.wait(30)
        return BAD

    heartbeat = Heartbeat(slow, interval=0.01, hang_timeout=0.05, on_hang=patient.on_hang)
    heartbeat.start()
    assert inside.wait(30)
    heartbeat.pause()
    time.sleep(0.1)
    heartbeat.resume()
    heartbeat._interval = 100
    go_on.set()
    heartbeat._thread.join(0.3)
    heartbeat.end()
    heartbeat._thread.join(30)
    assert heartbeat.last is None
    assert not patient.hung.is_set()


def test_hung_server_is_killed_and_its_requests_end(fake_server: FakeServer) -> None:
    server = fake_server(heartbeat_interval=0.1, heartbeat_timeout=0.2, hang_timeout=0.5).start()
    os.kill(server.pid or 0, signal.SIGSTOP)
    with pytest.raises(OSError):
        urllib.request.urlopen(server.url_for("/v1/models"), timeout=60)
    assert server.wait_death(30)
    with pytest.raises(ServerDiedError, match=r"hung and was killed.*health check has failed"):
        server.raise_if_dead()
    server.start()
    assert server.check_health()
    assert server.why_died() is None


def test_sick_server_counts_as_hung(fake_server: FakeServer) -> None:
    server = fake_server(heartbeat_interval=0.05, hang_timeout=0.2, debug_mode=True).start()
    urllib.request.urlopen(server.url_for("/sick"), timeout=30).close()
    assert server.wait_death(30)
    assert "answered 503" in str(server.why_died())
    server.stop()
    assert server.state is ServerState.STOPPED


def test_paused_server_is_left_alone(fake_server: FakeServer) -> None:
    server = fake_server(heartbeat_interval=0.05, heartbeat_timeout=0.3, hang_timeout=0.7).start()
    server.pause_heartbeat()
    os.kill(server.pid or 0, signal.SIGSTOP)
    assert not server.wait_death(1.5)
    os.kill(server.pid or 0, signal.SIGCONT)
    server.resume_heartbeat()
    assert not server.wait_death(0.4)
    assert server.check_health()


def test_attached_server_is_never_killed(fake_server: FakeServer) -> None:
    server = fake_server(heartbeat_interval=100).start()
    remote = RemoteServer(url=server.server_url, heartbeat_interval=0.05, hang_timeout=0.1).start()
    urllib.request.urlopen(server.url_for("/sick"), timeout=30).close()
    time.sleep(0.4)
    assert server.state is ServerState.READY
    remote.stop()


def test_what_a_pulse_still_says_later() -> None:
    good, bad = Answer(200, "", 0.1), Answer(None, "refused the connection", 0.1)
    pulse = Pulse(good, 1.0, 1.0, None, 5.0, 300.0)
    assert pulse.later(2.5) == Pulse(good, 3.5, 3.5, None, 5.0, 300.0)
    assert Pulse(bad, 1.0, None, 4.0, 5.0, 300.0, True).later(1.0) == Pulse(bad, 2.0, None, 5.0, 5.0, 300.0, True)
    assert Pulse(None, None, None, None, 5.0, 300.0).later(9.0) == Pulse(None, None, None, None, 5.0, 300.0)
