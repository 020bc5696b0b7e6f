"""What the pool says of those who wait."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pool_fakes import FakeServer, eventually, in_thread, places

from pytest_infserver.launcher.devices import Demand, Device, DeviceClaim, Visible
from pytest_infserver.launcher.keeping import kept
from pytest_infserver.pool import pool as pool_module
from pytest_infserver.pool.planning.decisions import Request, Sleep, Start
from pytest_infserver.pool.planning.planner import Planner
from pytest_infserver.pool.pool import Pool
from pytest_infserver.pool.room import MachineRoom
from pytest_infserver.pool.servers.policy import Hooks, Policy
from pytest_infserver.pool.wait_report import WaitReport, causes, wait_report_on

pytestmark = pytest.mark.usefixtures("hard_limit")


@pytest.fixture
def make_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pool]]:
    monkeypatch.setattr(kept, "kept_servers", list)
    monkeypatch.setattr(pool_module, "notice_death", lambda server: None)
    monkeypatch.setattr("pytest_infserver.launcher.factory.create_from_config", FakeServer)
    made: list[Pool] = []

    def make(count: int, *names: str, prelaunch: bool = True) -> Pool:
        hooks = Hooks(lambda server: None, lambda server: None, lambda server: None)
        configs: Any = {name: name for name in names}
        pool = Pool(configs, places(count, names), hooks, Policy(prelaunch=prelaunch))
        made.append(pool)
        return pool

    yield make
    for pool in made:
        for server in pool.servers:
            server.gate.set()  # type: ignore[attr-defined]
        pool.close()


def fake(pool: Pool, name: str) -> FakeServer:
    server: Any = pool.server(name)
    return server


def said(wait_report: WaitReport) -> list[tuple[str, str]]:
    return [(wait.name, wait.doing if wait.is_hindered else "") for wait in wait_report.waits]


def test_nobody_waits(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(2, "a", "b")
    fake(pool, "a").gate.clear()
    pool.plan({"1": ["a"]})
    eventually(lambda: fake(pool, "a").launches == 1)
    first, second = pool.wait_report(), pool.wait_report()
    assert said(first) == said(second) == []
    assert second.number > first.number


def test_all_that_start_are_told_of_those_that_are_waited_for_first(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(3, "a", "b", "c")
    for name in "abc":
        fake(pool, name).gate.clear()
    pool.plan({"1": ["a"], "2": ["b"], "3": ["c"]})
    told: list[WaitReport] = []
    result = in_thread(lambda: pool.acquire("c1", ["b"], test="2", waiting=told.append))
    eventually(lambda: len(told) > 2)
    assert said(told[-1]) == [("b", ""), ("a", ""), ("c", "")]
    assert 0 <= told[0].waits[0].seconds <= told[-1].waits[0].seconds < 20
    fake(pool, "b").gate.set()
    result()
    # The end is told, although others start still.
    assert said(told[-1]) == []
    assert [one.number for one in told] == sorted({one.number for one in told})


def test_who_waits_for_room_is_told_who_has_it(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(2, "a", "b", "c", prelaunch=False)
    pool.acquire("c1", ["a"])
    fake(pool, "b").gate.clear()
    starting = in_thread(lambda: pool.acquire("c2", ["b"]))
    eventually(lambda: fake(pool, "b").launches == 1)
    in_thread(lambda: pool.acquire("c3", ["c"]))
    eventually(lambda: len(said(pool.wait_report())) == 2)
    assert said(pool.wait_report()) == [("b", ""), ("c", "waits for room (a runs, b starts)")]
    fake(pool, "b").gate.set()
    starting()
    assert said(pool.wait_report()) == [("c", "waits for room (a runs, b runs)")]
    pool.refuse()
    assert said(pool.wait_report()) == []


def test_a_stop_that_makes_room_is_told_itself(make_pool: Callable[..., Pool], monkeypatch: Any) -> None:
    pool = make_pool(1, "a", "b", prelaunch=False)
    (lease,) = pool.acquire("c1", ["a"])
    pool.pin("a")
    gate = SimpleNamespace(open=False)
    monkeypatch.setattr(fake(pool, "a"), "stop", lambda: eventually(lambda: gate.open))
    waiting = in_thread(lambda: pool.acquire("c2", ["b"]))
    pool.release(lease.ticket)
    eventually(lambda: said(pool.wait_report()) == [("b", "waits for room (a stops)"), ("a", "stopping")])
    # Who comes back for it waits for the same stop.
    again = in_thread(lambda: pool.acquire("c1", ["a"]))
    eventually(lambda: said(pool.wait_report()) == [("b", "waits for room (a stops)"), ("a", "stopping")])
    fake(pool, "a").state = "stopped"
    gate.open = True
    waiting()
    pool.leave("c2")
    again()


def test_a_user_who_has_a_server_alone_is_named(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(1, "a")
    pool.acquire("c1", ["a"], test="test_kill", exclusive=True)
    waiting = in_thread(lambda: pool.acquire("c2", ["a"], test="test_next"))
    eventually(lambda: said(pool.wait_report()) == [("a", "waits for test_kill to give it back")])
    pool.leave("c1")
    waiting()


def test_who_wants_it_alone_is_told_of_its_users(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(1, "a")
    for client in ("c1", "c2"):
        pool.acquire(client, ["a"], test=f"test_{client}")
    waiting = in_thread(lambda: pool.acquire("c3", ["a"], exclusive=True))
    eventually(lambda: said(pool.wait_report()) == [("a", "waits for test_c1 and 1 more to give it back")])
    pool.leave("c1")
    pool.leave("c2")
    waiting()


def test_an_interrupted_wait_is_told_to_be_over(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(1, "a")
    fake(pool, "a").gate.clear()
    told: list[WaitReport] = []

    def interrupt(wait_report: WaitReport) -> None:
        told.append(wait_report)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.acquire("c1", ["a"], waiting=interrupt)
    assert said(told[-1]) == []
    assert pool._tickets._asked == {}


def test_gpus_that_others_hold_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    room = MachineRoom(None, (), {"a": Demand(2, "gpus: 2"), "b": Demand(1, "gpus: 1")}, Visible("", (), "none"))
    monkeypatch.setattr(room, "claim", lambda name, beyond=False: False)
    monkeypatch.setattr(room, "fits", lambda name, without: True)
    for name, text in (
        ("a", "waits for 2 GPUs that other processes hold"),
        ("b", "waits for a GPU that another process holds"),
    ):
        planner = Planner(room)
        planner.join("c1")
        planner.ask(Request(1, "c1", (name,)))
        assert not any(isinstance(one, Start) for one in planner.decide(0.0))
        assert list(causes(planner, room, {})) == [(name, text, 1)]


def test_who_holds_a_gpu_that_a_server_could_get(monkeypatch: pytest.MonkeyPatch) -> None:
    room = MachineRoom(None, ("far",), {name: Demand(1, "gpus: 1") for name in "abc"}, Visible("", (), "none"))
    monkeypatch.setattr(room, "candidates", lambda name: {"a": {"0", "1"}, "b": {"1"}, "c": {"2"}}[name])
    claim = DeviceClaim()
    claim.devices = (SimpleNamespace(key="1"),)  # type: ignore[assignment]
    room._claims["x"] = claim
    assert (room.holders("a"), room.holders("b"), room.holders("c")) == ({"x"}, {"x"}, set())
    assert room.taken("a") == "waits for a GPU that another process holds"


def test_more_than_three_who_have_the_room_are_counted(make_pool: Callable[..., Pool]) -> None:
    names = ["a", "b", "c", "d", "e"]
    pool = make_pool(5, *names, "z", prelaunch=False)
    for name in names:
        pool.acquire(name, [name])
    in_thread(lambda: pool.acquire("last", ["z"]))
    text = "waits for room (a runs, b runs, c runs and 2 more)"
    eventually(lambda: said(pool.wait_report()) == [("z", text)])


def test_the_start_of_one_server_alone() -> None:
    server: Any = SimpleNamespace(
        name="a", backend_name="fake", model="", starting_seconds=2.5, start_seconds=None, running=False
    )
    server.runtime = server.status = server
    server.first_phase = server.phase = "importing"
    server.log_path = Path("/logs/a.factory-1/server.log")
    report = wait_report_on(server)
    assert [(one.name, one.seconds, one.doing, one.is_hindered) for one in report.waits] == [
        ("a.factory-1", 2.5, "importing", False)
    ]
    assert (report.starting, report.ready) == ({"a.factory-1"}, {})
    server.starting_seconds, server.start_seconds, server.running = None, 3.0, True
    report = wait_report_on(server)
    assert (report.waits, report.starting, report.ready) == ((), frozenset(), {"a.factory-1": 3.0})


def test_many_waits_at_once_are_told_without_a_gap(make_pool: Callable[..., Pool]) -> None:
    names = [f"s{number}" for number in range(6)]
    pool = make_pool(3, *names)
    pool.plan({f"{name}-{number}": [name] for name in names for number in range(5)})
    told: list[WaitReport] = []

    def use(client: str) -> None:
        for name in names:
            for number in range(5):
                (lease,) = pool.acquire(client, [name], waiting=told.append)
                pool.release(lease.ticket, f"{name}-{number}")

    for result in [in_thread(lambda client=client: use(client) or "done") for client in ("c1", "c2", "c3")]:
        assert result() == "done"
    last = max(told, key=lambda one: one.number)
    assert last.waits == ()
    assert len({one.number for one in told}) == len(told)
    assert all(
        re.fullmatch(r"|stopping|waits for .*", wait.doing if wait.is_hindered else "")
        for one in told
        for wait in one.waits
    )


def test_who_sleeps_and_who_falls_asleep_are_told() -> None:
    device = Device("0", "gpu-0", 0)
    room = MachineRoom(1, (), {name: Demand(1, "one") for name in "ab"}, Visible("GPUS", (device,), "none"))
    planner = Planner(room, prelaunch=False, may_sleep=lambda name, other: True)
    for name in "ab":
        planner.want(name)
    planner.ask(Request(1, "c1", ("a",)))
    assert planner.decide(0) == [Start("a")]
    planner.started("a", 0)
    planner.decide(0)
    planner.give_back(1, 0)
    planner.ask(Request(2, "c2", ("b",)))
    assert planner.decide(5) == [Sleep("a", "b")]
    assert list(causes(planner, room, {})) == [
        ("b", "waits for room (a falls asleep)", 2),
        ("a", "falling asleep", None),
    ]
    planner.slept("a")
    assert planner.decide(5) == [Start("b")]
    planner.started("b", 5)
    planner.decide(5)
    planner.ask(Request(3, "c1", ("a",)))
    assert planner.decide(5) == []
    assert list(causes(planner, room, {})) == [("a", "asleep, waits for room (b runs)", 3)]
    room.release("a")
    room.release("b")
