"""The pool alone, with servers that are only objects."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pool_fakes import LIMIT, FakeServer, eventually, in_thread, places

from pytest_infserver.errors import (
    ConfigError,
    InferenceServerError,
    LeakError,
    ServerDiedError,
    ServerStartupError,
    ServerStartupTimeout,
)
from pytest_infserver.launcher.health.liveness import notice_death
from pytest_infserver.launcher.keeping import kept
from pytest_infserver.pool import pool as pool_module
from pytest_infserver.pool import threads
from pytest_infserver.pool.lease import Problem
from pytest_infserver.pool.member import LocalMember, Plan
from pytest_infserver.pool.pool import Pool
from pytest_infserver.pool.servers import executor
from pytest_infserver.pool.servers.policy import MAX_RESTARTS, Hooks, Policy
from pytest_infserver.pool.wait_report import WaitReport
from pytest_infserver.system.http.address import Address

pytestmark = pytest.mark.usefixtures("hard_limit")


class Tellers:
    """The hooks: they note what they are told, and raise what a test wants them to."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.errors: dict[str, BaseException] = {}

    def hook(self, word: str) -> Callable[[Any], None]:
        def tell(server: FakeServer) -> None:
            self.events.append(f"{word} {server.name} {server.state}")
            if word in self.errors:
                raise self.errors[word]

        return tell


@pytest.fixture
def tellers() -> Tellers:
    return Tellers()


@pytest.fixture
def kept_by_others(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(kept, "kept_servers", lambda: list(found))
    return found


@pytest.fixture
def make_pool(
    monkeypatch: pytest.MonkeyPatch, tellers: Tellers, kept_by_others: list[Any]
) -> Iterator[Callable[..., Pool]]:
    monkeypatch.setattr("pytest_infserver.launcher.factory.create_from_config", FakeServer)
    monkeypatch.setattr(pool_module, "notice_death", lambda server: None)
    made: list[Pool] = []

    def make(limit: int | None = 3, **policy: Any) -> Pool:
        configs: Any = {name: name for name in "abcd"}
        hooks = Hooks(*(tellers.hook(word) for word in ("started", "stopping", "stopped")))
        made.append(Pool(configs, places(limit, configs), hooks, Policy(**policy)))
        made[-1].join("c1")
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def pool(make_pool: Callable[..., Pool]) -> Pool:
    return make_pool()


def fake(pool: Pool, name: str = "a") -> Any:
    return pool.server(name)


def closed(pool: Pool) -> None:
    in_thread(pool.close)()


# Starts and stops.


def test_a_server_starts_once_for_all_and_stops_after_its_last_test(pool, tellers) -> None:
    pool.plan({"1": ["a"], "2": ["a"]})
    leases = [in_thread(lambda test=test: pool.acquire(f"c{test}", ["a"], test=test)) for test in "12"]
    (first,), (second,) = leases[0](), leases[1]()
    assert first.server is second.server is pool.server("a")
    assert (first.error, first.launch, first.log_start) == (None, 1, 100)
    assert tellers.events == ["started a ready"]
    pool.release(first.ticket, "1")
    assert pool.is_ready("a")
    pool.release(second.ticket, "2")
    eventually(lambda: len(tellers.events) == 3)
    assert tellers.events == ["started a ready", "stopping a ready", "stopped a stopped"]
    assert not pool.is_ready("a")
    assert pool.take_problems() == []


def test_servers_start_ahead_of_the_tests_and_at_the_same_time(pool) -> None:
    for name in "ab":
        fake(pool, name).gate.clear()
    pool.plan({"1": ["a"], "2": ["b"]})
    eventually(lambda: fake(pool).launches == fake(pool, "b").launches == 1)
    assert not pool.is_ready("a")
    for name in "ab":
        fake(pool, name).gate.set()
    eventually(lambda: pool.is_ready("a") and pool.is_ready("b"))
    assert pool.servers == [fake(pool), fake(pool, "b")]


def test_without_prelaunch_nothing_starts_before_it_is_asked_for(make_pool) -> None:
    pool = make_pool(prelaunch=False)
    pool.plan({"1": ["a"], "2": ["b"]})
    pool.acquire("c1", ["a"], test="1")
    assert (fake(pool).launches, fake(pool, "b").launches) == (1, 0)


def test_more_servers_together_than_the_user_allows_are_an_error_before_anything_starts(make_pool) -> None:
    pool = make_pool(1)
    with pytest.raises(ConfigError, match=r"^2: needs 2 servers at the same time \(a, b\), and"):
        pool.plan({"1": ["a"], "2": ["a", "b"]})
    assert pool.servers == []


def test_a_test_may_not_stop_a_server_that_is_shared_or_has_been_stopped(pool) -> None:
    (lease,) = pool.acquire("c1", ["a"])
    assert "shared with other tests" in fake(pool).stop_refusal
    pool.release(lease.ticket)
    eventually(lambda: fake(pool).state == "stopped")
    eventually(lambda: "has been stopped" in (fake(pool).stop_refusal or ""))


def test_a_pinned_server_runs_to_the_end(pool, tellers) -> None:
    pool.pin("a")
    (lease,) = pool.acquire("c1", ["a"])
    pool.release(lease.ticket)
    assert pool.is_ready("a")
    closed(pool)
    assert tellers.events[-1] == "stopped a stopped"


def test_an_eviction_is_told_once_with_how_often(make_pool) -> None:
    pool = make_pool(1)
    pool.plan({str(number): ["ab"[number % 2]] for number in range(6)})
    for number in range(6):
        (lease,) = pool.acquire("c1", ["ab"[number % 2]], test=str(number))
        assert lease.error is None
        pool.release(lease.ticket, str(number))
    closed(pool)
    closed(pool)
    assert sorted(pool.incidents) == [
        "a was stopped 2 times to make room for b",
        "b was stopped 2 times to make room for a",
    ]


def test_an_eviction_is_told_only_when_it_has_come_to_that(make_pool, monkeypatch) -> None:
    pool = make_pool(1)
    pool.plan({"1": ["a"], "2": ["b"], "3": ["a"]})
    (lease,) = pool.acquire("c1", ["a"], test="1")
    with monkeypatch.context() as patch:
        patch.setattr(fake(pool), "stop", lambda: None)
        patch.setattr(fake(pool), "release_port", lambda: None)
        pool.release(lease.ticket, "1")
        assert pool.acquire("c1", ["b"], test="2")[0].error is None
    closed(pool)
    assert pool.incidents == []


def test_why_a_server_must_not_be_stopped_is_what_is_so_now(make_pool) -> None:
    pool = make_pool(1, prelaunch=False)
    pool.plan({"1": ["a"], "2": ["b"], "3": ["a"]})
    (lease,) = pool.acquire("c1", ["a"], test="1")
    pool.release(lease.ticket, "1")
    (lease,) = pool.acquire("c1", ["b"], test="2")
    assert "has been stopped: it is started again for the next test" in fake(pool).stop_refusal
    pool.release(lease.ticket, "2")
    (lease,) = pool.acquire("c1", ["a"], test="3")
    assert (lease.launch, fake(pool).state) == (2, "ready")
    assert "is shared with other tests" in fake(pool).stop_refusal
    pool.release(lease.ticket, "3")
    eventually(lambda: "no later test of this run was known to want it" in (fake(pool).stop_refusal or ""))


def test_a_server_that_has_failed_is_not_said_to_be_shared(pool) -> None:
    fake(pool).start_error = ServerStartupError("no")
    pool.plan({"1": ["a"], "2": ["a"]})
    pool.acquire("c1", ["a"], test="1")
    assert "does not run: it has failed" in fake(pool).stop_refusal


def test_each_line_is_told_once_however_many_wait(pool) -> None:
    lines = [str(number) for number in range(20_000)]
    told: list[str] = []
    over = threading.Event()

    def take() -> None:
        while not over.is_set():
            told.extend(pool._handles.take_lines())

    takers = [in_thread(take) for _ in range(3)]
    for line in lines:
        fake(pool).on_progress(line)
    over.set()
    for taker in takers:
        taker()
    told.extend(pool._handles.take_lines())
    assert sorted(told, key=int) == lines


# What goes wrong inside.


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    # What the system answers when there are too many.
    monkeypatch.setattr(threads, "_start", start)


def ends_with(pool: Pool, error: type[BaseException], text: str) -> None:
    """The run ends: who asks is told why at once, and pytest's own thread gets the error, once."""
    (lease,) = in_thread(lambda: pool.acquire("c2", ["c"]))()
    assert f"the run ends: no server is handed out any more ({error.__name__}: {text})" in str(lease.error)
    with pytest.raises(error, match=text):
        pool.take_problems()
    assert pool.take_problems() == []
    closed(pool)
    assert not any(server.runtime.launched for server in pool.servers)


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt("bug"), pytest.exit.Exception("bug")])
def test_a_lease_that_nobody_hears_of_comes_back(pool, monkeypatch, error) -> None:
    pool.pin("a")

    def log_size_now() -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(fake(pool), "log_size_now", log_size_now)
        with pytest.raises(type(error), match="bug"):
            pool.acquire("c1", ["a"], test="1", exclusive=True)
    (lease,) = in_thread(lambda: pool.acquire("c2", ["a"], exclusive=True))()
    assert lease.error is None


def test_a_lease_comes_back_when_the_run_ends_with_an_error(pool) -> None:
    pool.pin("a")
    member = LocalMember(pool, waiting=lambda wait_report: None, progress=lambda text: None)
    pool._end._exit = RuntimeError("bug")
    with pytest.raises(RuntimeError, match="bug"):
        member.acquire(["a"], None, True)
    assert pool._planner._leased == {}


def test_what_ends_the_run_while_it_is_planned_is_raised_there(pool, tellers) -> None:
    fake(pool).kept_already = True
    tellers.errors["started"] = pytest.exit.Exception("enough")
    member = LocalMember(pool, waiting=lambda wait_report: None, progress=lambda text: None)
    with pytest.raises(pytest.exit.Exception, match="enough"):
        member.plan(Plan({"1": ["a"]}))


def test_nobody_is_told_of_a_wait_that_was_none(pool) -> None:
    pool.pin("a")
    pool.release(pool.acquire("c1", ["a"])[0].ticket)
    told: list[WaitReport] = []
    pool.release(pool.acquire("c1", ["a"], waiting=told.append)[0].ticket)
    assert not told
    gate = fake(pool, "b").gate
    gate.clear()
    pool.acquire("c1", ["b"], waiting=lambda report: (told.append(report), gate.set()))
    assert told[0].waits
    assert not told[-1].waits


def test_a_client_that_is_gone_gets_nothing_that_had_been_granted_meanwhile(pool) -> None:
    fake(pool).gate.clear()

    def leave(wait_report: WaitReport) -> None:
        if wait_report.waits:
            fake(pool).gate.set()
        else:
            pool.leave("c1")

    (lease,) = in_thread(lambda: pool.acquire("c1", ["a"], exclusive=True, waiting=leave))()
    assert "c1 is gone" in str(lease.error)
    assert fake(pool).stop_refusal is not None
    assert in_thread(lambda: pool.acquire("c2", ["a"], exclusive=True))()[0].error is None


def test_without_a_thread_for_a_start_the_run_ends(pool, monkeypatch) -> None:
    fake(pool, "b").gate.clear()
    waiting = in_thread(lambda: pool.acquire("c1", ["b"]))
    eventually(lambda: fake(pool, "b").launches)
    no_threads(monkeypatch)
    (lease,) = pool.acquire("c3", ["a"])
    assert "can't start new thread" in str(lease.error)
    assert "can't start new thread" in str(waiting()[0].error)
    ends_with(pool, RuntimeError, "can't start new thread")


def test_without_a_thread_for_a_stop_it_is_stopped_at_the_end(pool, monkeypatch, tellers) -> None:
    (lease,) = pool.acquire("c1", ["a"])
    no_threads(monkeypatch)
    pool.release(lease.ticket)
    ends_with(pool, RuntimeError, "can't start new thread")
    assert tellers.events == ["started a ready", "stopping a ready", "stopped a stopped"]


@pytest.mark.parametrize("step", ["started", "start_failed", "stopped", "died", "decide"])
def test_books_that_are_in_disorder_end_the_run(pool, monkeypatch, step) -> None:
    def disorder(*arguments: Any) -> None:
        raise AssertionError("bug")

    if step == "start_failed":
        fake(pool).start_error = ServerStartupError("no")
    if step == "died":
        pool.pin("a")
    with monkeypatch.context() as patch:
        if step != "decide":
            patch.setattr(pool._planner, step, disorder)
        (lease,) = in_thread(lambda: pool.acquire("c1", ["a"], test="1"))()
        assert ("AssertionError: bug" in str(lease.error)) == (step == "started")
        patch.setattr(pool._planner, step, disorder)
        if step == "died":
            fake(pool).die()
        pool.release(lease.ticket)
        eventually(lambda: pool._end.cause is not None)
    ends_with(pool, AssertionError, "bug")


def test_a_look_for_kept_servers_that_fails_ends_the_run(pool, monkeypatch) -> None:
    def fails() -> list[Any]:
        raise MemoryError

    monkeypatch.setattr(pool._room, "claim", lambda name, **rest: False)
    monkeypatch.setattr(kept, "kept_servers", fails)
    (lease,) = in_thread(lambda: pool.acquire("c1", ["a"]))()
    assert "(MemoryError)" in str(lease.error)


def test_the_first_error_is_the_one_that_counts_and_others_are_told(pool) -> None:
    later = [RuntimeError("first"), ValueError("second"), ValueError("second"), pytest.exit.Exception("third")]
    for error in [RuntimeError("first"), *later]:
        pool.fail(error)
    with pytest.raises(RuntimeError, match="first"):
        pool.take_problems()
    assert pool.take_problems() == [Problem("when the run had ended: ValueError: second", None)]


# What goes wrong.


def test_a_failed_start_is_remembered_and_its_log_shown_once(pool, tellers) -> None:
    fake(pool).start_error = ServerStartupError("no")
    pool.plan({"1": ["a"], "2": ["a"]})
    (first,), (second,) = pool.acquire("c1", ["a"], test="1"), pool.acquire("c2", ["a"], test="2")
    assert first.error is second.error is fake(pool).start_error
    assert fake(pool).launches == 1
    assert (first.log_start, second.log_start) == (40, 100)
    assert tellers.events == []


@pytest.mark.parametrize("kind", [ServerStartupError, ServerStartupTimeout])
def test_a_start_before_all_was_known_that_fails_later_is_made_again_unless_it_took_too_long(
    pool, kept_by_others, monkeypatch, kind
) -> None:
    server, errors = fake(pool), [kind("no such file yet")]
    start = server.start

    def start_once_in_vain() -> None:
        try:
            start()
        finally:
            server.start_error = None

    monkeypatch.setattr(server, "start", start_once_in_vain)
    server.gate.clear()
    pool.expect({"a": pool.configs["a"]})
    eventually(lambda: server.launches == 1)
    pool.plan({"1": ["a"]})
    server.start_error = errors[0]
    server.gate.set()
    (lease,) = in_thread(lambda: pool.acquire("c1", ["a"], test="1"))()
    assert lease.error is (None if kind is ServerStartupError else errors[0])
    pool.release(lease.ticket)


def test_an_error_of_a_backend_is_a_start_error_with_the_users_traceback(pool) -> None:
    fake(pool).start_error = ValueError("users bug")
    (lease,) = pool.acquire("c1", ["a"])
    assert isinstance(lease.error, ServerStartupError)
    assert "ValueError: users bug" in str(lease.error)


def test_of_several_servers_none_is_given_if_one_fails(pool) -> None:
    fake(pool).start_error = ServerStartupError("no")
    both = pool.acquire("c1", ["b", "a"], exclusive=True)
    assert [lease.error for lease in both] == [fake(pool).start_error] * 2
    assert [lease.log_start for lease in both] == [100, 40]
    eventually(lambda: fake(pool, "b").stop_refusal is not None)
    # Nobody has b: whoever wants it gets it.
    (lease,) = pool.acquire("c2", ["b"], exclusive=True)
    assert lease.error is None


def test_a_dead_server_is_restarted_three_times(pool) -> None:
    pool.plan({str(number): ["a"] for number in range(9)})
    for number in range(MAX_RESTARTS + 1):
        (lease,) = pool.acquire("c1", ["a"], test=str(number))
        assert (lease.error, lease.launch) == (None, number + 1)
        fake(pool).die()
        assert pool.death("a", lease.launch) == "a died"
        assert pool.death("a", lease.launch + 1) is None
        pool.release(lease.ticket, str(number))
    (lease,) = pool.acquire("c1", ["a"])
    assert isinstance(lease.error, ServerDiedError)
    assert "has died 4 times and is not restarted any more" in str(lease.error)
    assert fake(pool).launches == MAX_RESTARTS + 1
    assert pool.incidents == []


def test_a_server_that_died_is_not_restarted_if_the_user_says_so(make_pool) -> None:
    pool = make_pool(restarts=0)
    pool.plan({"1": ["a"], "2": ["a"]})
    (lease,) = pool.acquire("c1", ["a"], test="1")
    fake(pool).die()
    assert pool.death("a", 1) == "a died"
    pool.release(lease.ticket, "1")
    (lease,) = pool.acquire("c1", ["a"], test="2")
    assert "--infserver-on-crash=fail" in str(lease.error)
    assert fake(pool).launches == 1


def test_a_death_between_two_tests_is_an_incident_once(pool) -> None:
    pool.plan({"1": ["a"], "2": ["a"]})
    told: list[int] = []
    pool.on_end = lambda server, reason: told.append(server.launches)
    (lease,) = pool.acquire("c1", ["a"], test="1")
    pool.release(lease.ticket, "1")
    fake(pool).die()
    eventually(lambda: fake(pool).launches == 2)
    assert pool.acquire("c1", ["a"], test="2")[0].launch == 2
    assert pool.incidents == ["between two tests: a died"]
    assert told == [1]


def test_a_death_during_a_test_is_told_at_once_and_is_no_incident(pool) -> None:
    told = threading.Event()
    pool.on_end = lambda server, reason: told.set()
    pool.pin("a")
    pool.acquire("c1", ["a"])
    fake(pool).die()
    assert told.wait(LIMIT)
    assert pool.death("a", 1) == "a died"
    assert pool.incidents == []


def test_what_goes_wrong_at_a_stop_keeps_no_other_server_from_it(pool, tellers) -> None:
    pool.plan({"1": ["a"], "2": ["b"]})
    pool.acquire("c1", ["a"], test="1")
    pool.acquire("c1", ["b"], test="2")
    fake(pool).stop_error = LeakError("left something")
    fake(pool, "b").stop_error = RuntimeError("users bug")
    closed(pool)
    problems = {problem.user: problem.text for problem in pool.take_problems()}
    assert problems["1"] == "left something"
    assert "RuntimeError: users bug" in problems["2"]
    assert {"stopped a stopped", "stopped b stopped"} <= set(tellers.events)
    assert pool.take_problems() == []


def test_a_hook_that_fails_after_the_start_fails_the_start_and_stops_the_server(pool, tellers) -> None:
    tellers.errors["started"] = ValueError("users bug")
    (lease,) = pool.acquire("c1", ["a"])
    assert "ValueError: users bug" in str(lease.error)
    assert fake(pool).state == "stopped"
    assert tellers.events == ["started a ready", "stopping a ready", "stopped a stopped"]


@pytest.mark.parametrize("word", ["stopping", "stopped"])
@pytest.mark.parametrize("error", [InferenceServerError("users bug"), pytest.fail.Exception("users bug")])
def test_a_hook_that_raises_does_not_keep_the_server_alive(pool, tellers, word, error) -> None:
    tellers.errors[word] = error
    pool.acquire("c1", ["a"], test="1")
    closed(pool)
    (problem,) = pool.take_problems()
    assert "users bug" in problem.text
    assert problem.user == "1"
    assert fake(pool).state == "stopped"


def test_a_server_that_dies_as_soon_as_it_is_ready_is_told_with_the_reason(pool, tellers, monkeypatch) -> None:
    start = FakeServer.start

    def start_and_die(self) -> None:
        start(self)
        self.die()

    monkeypatch.setattr(FakeServer, "start", start_and_die)
    (lease,) = pool.acquire("c1", ["a"])
    assert isinstance(lease.error, ServerDiedError)
    assert "a died" in str(lease.error)


@pytest.mark.parametrize("word", ["started", "stopping", "stopped"])
def test_a_hook_can_end_the_run_and_the_server_is_stopped_all_the_same(pool, tellers, word) -> None:
    tellers.errors[word] = pytest.exit.Exception("enough")
    pool.plan({"1": ["a"], "2": ["b"]})
    (lease,) = pool.acquire("c1", ["a"], test="1")
    if word != "started":
        pool.release(lease.ticket, "1")
    eventually(lambda: f"{word} a" in " ".join(tellers.events))
    eventually(lambda: pool._end._exit is not None)
    with pytest.raises(pytest.exit.Exception, match="enough"):
        pool.take_problems()
    assert "the run ends" in str(pool.acquire("c1", ["c"])[0].error)
    closed(pool)
    assert fake(pool).state == "stopped"


# The end.


def test_the_end_cancels_a_start_that_is_under_way(pool, tellers) -> None:
    fake(pool).gate.clear()
    result = in_thread(lambda: pool.acquire("c1", ["a"]))
    eventually(lambda: fake(pool).launches == 1)
    closed(pool)
    assert fake(pool).cancelled
    assert "the run ends" in str(result()[0].error)
    assert tellers.events == []
    closed(pool)


def test_a_start_that_comes_through_at_the_end_is_stopped_like_any(pool, tellers, monkeypatch) -> None:
    monkeypatch.setattr(FakeServer, "cancel_start", lambda self: self.gate.set())
    fake(pool).gate.clear()
    pool.plan({"1": ["a"]})
    eventually(lambda: fake(pool).launches == 1)
    closed(pool)
    assert fake(pool).state == "stopped"
    assert tellers.events == ["started a ready", "stopping a ready", "stopped a stopped"]


def test_after_refuse_nobody_waits_any_more(pool) -> None:
    fake(pool).gate.clear()
    result = in_thread(lambda: pool.acquire("c1", ["a"]))
    eventually(lambda: fake(pool).launches == 1)
    pool.refuse()
    assert "the run ends" in str(result()[0].error)


def test_a_wait_that_is_interrupted_takes_its_wish_back(pool) -> None:
    def interrupt(server: object) -> None:
        raise KeyboardInterrupt

    fake(pool).gate.clear()
    with pytest.raises(KeyboardInterrupt):
        pool.acquire("c1", ["a"], waiting=interrupt)
    eventually(lambda: fake(pool).cancelled)
    eventually(lambda: fake(pool).state == "failed")


# Alone.


def test_who_has_a_server_alone_may_stop_it_and_the_next_one_finds_it_running(pool) -> None:
    pool.plan({"1": ["a"], "2": ["a"]})
    (lease,) = pool.acquire("c1", ["a"], test="1", exclusive=True)
    assert lease.exclusive
    assert fake(pool).stop_refusal is None
    assert pool.alone("c1", "a") is fake(pool)
    with pytest.raises(InferenceServerError, match="shared with other tests"):
        pool.alone("c2", "a")
    fake(pool).stop()
    pool.release(lease.ticket, "1")
    assert "shared with other tests" in fake(pool).stop_refusal
    (lease,) = pool.acquire("c2", ["a"], test="2")
    assert (lease.error, lease.launch) == (None, 2)
    assert pool.incidents == []


def test_a_server_that_was_killed_by_who_had_it_alone_counts_as_no_crash(make_pool) -> None:
    pool = make_pool(restarts=0)
    pool.plan({str(number): ["a"] for number in range(3)})
    for number in range(2):
        (lease,) = pool.acquire("c1", ["a"], test=str(number), exclusive=True)
        fake(pool).die()
        assert pool.death("a", lease.launch) is None
        pool.release(lease.ticket, str(number))
    (lease,) = pool.acquire("c1", ["a"], test="2")
    assert (lease.error, lease.launch) == (None, 3)
    assert pool.incidents == []


def test_the_end_of_a_server_that_a_test_has_started_itself_is_noticed(pool) -> None:
    pool.pin("a")
    (lease,) = pool.acquire("c1", ["a"], exclusive=True)
    fake(pool).stop()
    fake(pool).start()
    pool.release(lease.ticket)
    told = threading.Event()
    pool.on_end = lambda server, reason: told.set()
    (lease,) = pool.acquire("c2", ["a"])
    assert lease.launch == 2
    fake(pool).die()
    assert told.wait(LIMIT)
    assert pool.death("a", 2) == "a died"


def test_nobody_else_has_it_meanwhile(pool) -> None:
    pool.pin("a")
    users: list[str] = []

    def use(client: str, exclusive: bool) -> None:
        (lease,) = pool.acquire(client, ["a"], exclusive=exclusive)
        assert lease.error is None
        assert not exclusive or not users
        assert "alone" not in users
        users.append("alone" if exclusive else "shared")
        time.sleep(0.01)
        users.remove("alone" if exclusive else "shared")
        pool.release(lease.ticket)

    ends = [in_thread(lambda n=n: use(f"c{n}", n % 3 == 0)) for n in range(12)]
    assert [end() for end in ends] == [None] * 12


def test_the_workers_hear_of_the_end_of_a_server_that_a_test_has_alone(pool) -> None:
    pool.pin("a")
    pool.acquire("c1", ["a"], exclusive=True)
    told = threading.Event()
    pool.on_end = lambda server, reason: told.set()
    fake(pool).die()
    assert told.wait(LIMIT)
    assert pool.death("a", 1) is None


# Workers that end.


def test_a_client_that_is_gone_gives_back_what_it_had_and_its_test_is_over(pool, tellers) -> None:
    pool.plan({"1": ["a"], "2": ["b"]})
    pool.acquire("c1", ["a"], test="1")
    pool.leave("c1")
    pool.leave("c1")
    eventually(lambda: "stopped a stopped" in tellers.events)
    assert fake(pool).launches == 1
    assert not any(" b " in event and "stop" in event for event in tellers.events)


def test_a_client_that_is_gone_waits_no_more_and_its_test_is_over(pool) -> None:
    pool.plan({"1": ["a"]})
    (lease,) = pool.acquire("c1", ["a"], exclusive=True)
    result = in_thread(lambda: pool.acquire("c2", ["a"], test="1"))
    eventually(lambda: pool._planner._waiting)
    pool.leave("c2")
    assert "c2 is gone" in str(result()[0].error)
    pool.release(lease.ticket)
    eventually(lambda: fake(pool).state == "stopped")


def test_tests_without_a_lease_are_over_when_somebody_says_so_and_only_once(pool) -> None:
    pool.plan({"1": ["a"], "2": ["a"]})
    eventually(lambda: pool.is_ready("a"))
    for _ in range(3):
        pool.done("1")
    assert pool.is_ready("a")
    pool.done("2")
    eventually(lambda: fake(pool).state == "stopped")


def test_a_test_that_every_worker_runs_is_over_when_all_have_run_it(pool) -> None:
    pool.plan({"1": ["a"]})
    pool.plan({"1": ["a"]})
    eventually(lambda: pool.is_ready("a"))
    pool.done("1")
    assert pool.is_ready("a")
    pool.done("1")
    eventually(lambda: fake(pool).state == "stopped")


# Kept servers.


def test_servers_are_kept_for_what_is_left_of_their_time(make_pool, tellers) -> None:
    pool = make_pool(keep=100.0)
    pool.plan({"1": ["a"], "2": ["b"]})
    (lease,) = pool.acquire("c1", ["a"], test="1")
    pool.acquire("c1", ["b"], test="2")
    pool.release(lease.ticket, "1")
    assert pool.is_ready("a")
    fake(pool, "b").can_be_kept = False
    fake(pool, "b").why_not_kept = "it has no fingerprint"
    closed(pool)
    assert 90 < fake(pool).kept_for <= 100
    assert "stopping b ready" in tellers.events
    assert not any("stopping a" in event for event in tellers.events)
    assert pool.incidents == ["b is not kept: it has no fingerprint"]
    closed(pool)


def test_a_kept_server_that_somebody_has_asked_for_meanwhile_is_taken_over_once(pool, monkeypatch) -> None:
    fake(pool).kept_already = True
    take_over = fake(pool).take_over

    def slow() -> bool:
        taken = take_over()
        monkeypatch.setattr(fake(pool), "start", lambda: setattr(fake(pool), "launches", 1))
        assert pool.acquire("c2", ["a"])[0].error is None
        return taken

    monkeypatch.setattr(fake(pool), "take_over", slow)
    pool.plan({"1": ["a"]})
    assert pool.acquire("c1", ["a"], test="1")[0].error is None
    assert pool._end.cause is None


def test_a_server_whose_time_is_over_is_stopped(make_pool) -> None:
    pool = make_pool(keep=0.0)
    pool.plan({"1": ["a"]})
    (lease,) = pool.acquire("c1", ["a"], test="1")
    pool.release(lease.ticket, "1")
    closed(pool)
    assert fake(pool).kept_for is None
    assert fake(pool).state == "stopped"


def test_a_kept_server_is_taken_over_when_tests_are_planned(pool, tellers) -> None:
    fake(pool).kept_already = True
    pool.plan({"1": ["a"]})
    assert pool.is_ready("a")
    (lease,) = pool.acquire("c1", ["a"], test="1")
    assert (lease.error, lease.launch) == (None, 0)
    assert tellers.events == ["started a ready"]
    pool.release(lease.ticket, "1")
    eventually(lambda: fake(pool).state == "stopped")


class Kept:
    """A server that an earlier run has kept."""

    name, port, log_path, device_keys = "old", 8000, FakeServer("x").log_path, ("gpu",)

    def __init__(self, ends: bool) -> None:
        self.ends = ends
        self.stopped = False

    def end(self) -> tuple[bool, str]:
        self.stopped = True
        return self.ends, "stopped in 0.1 s" if self.ends else "has not ended after 30 s"


def test_a_kept_server_that_does_not_end_is_not_said_to_have_made_room(pool, kept_by_others) -> None:
    kept_by_others.append(Kept(False))
    fake(pool).settings.port = 8000
    assert pool.acquire("c1", ["a"])[0].error is None
    assert pool.incidents == [
        "old, kept by an earlier run, should be stopped to make room for a, and has not ended after 30 s"
    ]


def test_a_kept_server_that_does_not_let_go_of_a_gpu_is_told_once(make_pool, kept_by_others, monkeypatch) -> None:
    monkeypatch.setattr(executor, "_LOOK_AGAIN", 0.0)
    pool = make_pool()
    looks: list[str] = []
    claim = pool._room.claim
    monkeypatch.setattr(pool._room, "claim", lambda name, **rest: len(looks) > 3 and claim(name, **rest))
    monkeypatch.setattr(pool._room, "candidates", lambda name: looks.append(name) or {"gpu"})
    old = Kept(False)
    old.port = 1
    kept_by_others.append(old)
    assert in_thread(lambda: pool.acquire("c1", ["a"]))()[0].error is None
    assert pool.incidents == [
        "old, kept by an earlier run, should be stopped: a needs its GPUs, and has not ended after 30 s"
    ]


def test_a_kept_server_on_the_same_port_gives_way(pool, kept_by_others) -> None:
    old = Kept(True)
    kept_by_others.append(old)
    fake(pool).settings.port = 8000
    assert pool.acquire("c1", ["a"])[0].error is None
    assert old.stopped
    assert pool.incidents == ["old, kept by an earlier run, was stopped to make room for a"]


def test_kept_servers_are_not_looked_for_without_end_while_another_run_has_the_room(
    make_pool, monkeypatch, kept_by_others
) -> None:
    pool = make_pool()
    looks: list[str] = []
    another_run_has_it = threading.Event()
    another_run_has_it.set()
    claim = pool._room.claim
    monkeypatch.setattr(pool._room, "claim", lambda name, **rest: not another_run_has_it.is_set() and claim(name))
    monkeypatch.setattr(pool._room, "candidates", lambda name: looks.append(name) or {"gpu"})
    result = in_thread(lambda: pool.acquire("c1", ["a"]))
    eventually(lambda: looks)
    time.sleep(0.8)
    assert looks == ["a"]
    another_run_has_it.clear()
    assert result()[0].error is None


class Listener:
    """A server for `notice_death`: with or without somebody on its port."""

    attached = False
    remote = False
    running = True
    is_asked_at_port = True
    host = "127.0.0.1"

    def __init__(self, port: int, pid: int | None = None) -> None:
        self.port = port
        self.pid = pid
        self.reach = Address(port=port)
        self.settings = SimpleNamespace(own_listener=True)
        self.waited = False

    def wait_death(self, timeout: float) -> None:
        self.waited = True


def test_only_a_server_without_a_listener_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        alive: Any = Listener(listener.getsockname()[1])
        notice_death(alive)
        assert not alive.waited
    dying: Any = Listener(alive.port)
    notice_death(dying)
    assert dying.waited
    stopped: Any = Listener(alive.port)
    stopped.running = False
    notice_death(stopped)
    assert not stopped.waited


def test_those_who_wait_do_not_keep_one_another_busy(make_pool, monkeypatch) -> None:
    pool = make_pool(1)
    (lease,) = pool.acquire("c0", ["a"])
    looks: list[float] = []
    decide = pool._planner.decide
    monkeypatch.setattr(pool._planner, "decide", lambda now: looks.append(now) or decide(now))
    told: list[object] = []

    def use(client: str, name: str) -> str:
        (got,) = pool.acquire(client, [name], waiting=told.append)
        pool.release(got.ticket)
        return name

    wanted = {"c1": "b", "c2": "c", "c3": "b"}
    waiting = [in_thread(lambda client=client, name=name: use(client, name)) for client, name in wanted.items()]
    time.sleep(1.5)
    # Each looks some four times a second.
    assert len(looks) < 100
    assert len(told) < 100
    pool.release(lease.ticket)
    assert [result() for result in waiting] == list(wanted.values())
