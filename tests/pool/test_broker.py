"""Workers that ask a controller for its servers: real sockets, servers that are only objects."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import pytest
from pool_fakes import LIMIT, FakeServer, eventually, in_thread, places

from pytest_infserver import load_server_configs
from pytest_infserver.errors import InferenceServerError, LeakError, ServerStartupError
from pytest_infserver.pool import pool as pool_module
from pytest_infserver.pool.broker import broker as broker_module
from pytest_infserver.pool.broker import remote as remote_module
from pytest_infserver.pool.broker.broker import Broker
from pytest_infserver.pool.broker.remote import RemoteMember
from pytest_infserver.pool.lease import Lease
from pytest_infserver.pool.member import Plan
from pytest_infserver.pool.pool import Pool
from pytest_infserver.pool.servers.policy import Hooks

pytestmark = pytest.mark.usefixtures("hard_limit")
NAMES = "abc"


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "servers.yaml"
    blocks = "".join(f"  {name}: {{backend: command, launch_command: [run, '{{port}}'], gpus: 0}}\n" for name in NAMES)
    path.write_text(f"servers:\n{blocks}")
    return {str(one.name): one for one in load_server_configs(str(path))}


@pytest.fixture
def pool(configs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pool]:
    monkeypatch.setattr(pool_module, "notice_death", lambda server: None)
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path / "state"))
    made = Pool(configs, places(3, NAMES), Hooks(*[lambda server: None] * 3))
    for name in NAMES:
        server = FakeServer(name)
        server.log_path = tmp_path / name / "server.log"
        made._handles._servers[name] = server  # type: ignore[assignment]
    yield made
    made.close()


@pytest.fixture
def make_desk(pool: Pool) -> Iterator[Callable[..., Broker]]:
    made: list[Broker] = []

    def make(each: bool = False) -> Broker:
        made.append(Broker(pool, each=each, waiting=lambda server: None, progress=lambda text: None))
        pool.on_end = made[-1].tell_end
        return made[-1]

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def broker(make_desk: Callable[..., Broker]) -> Broker:
    return make_desk()


@pytest.fixture
def join(broker: Broker, configs: dict[str, Any]) -> Iterator[Callable[[str], RemoteMember]]:
    made: list[RemoteMember] = []

    def worker(name: str) -> RemoteMember:
        made.append(RemoteMember(configs, broker.key, name))
        eventually(lambda: name in broker._news)
        return made[-1]

    yield worker
    for member in made:
        member.close()


def fake(pool: Pool, name: str = "a") -> Any:
    return pool.server(name)


def acquired(member: RemoteMember, *names: str, test: str | None = None, exclusive: bool = False) -> Lease:
    (lease, *_) = in_thread(lambda: member.acquire(names, test, exclusive))()
    return lease


def test_workers_share_servers_and_see_where_they_are(pool, join) -> None:
    first, second = join("gw0"), join("gw1")
    for member in (first, second):
        member.plan(Plan({"1": ["a"], "2": ["a"]}))
    one, other = acquired(first, "a", test="1"), acquired(second, "a", test="2")
    assert (one.error, one.launch, one.log_start, one.exclusive) == (None, 1, 100, False)
    assert one.server is first.server("a")
    assert one.server is not other.server
    assert first.servers() == [one.server]
    for lease in (one, other):
        assert lease.server.running
        assert lease.server.server_url == "http://127.0.0.1:8000"
        assert lease.server.pid == 123
        assert lease.server.log_path == fake(pool).log_path
        with pytest.raises(InferenceServerError, match="shared with other tests"):
            lease.server.stop()
    first.release(one.ticket, "1")
    assert pool.is_ready("a")
    second.release(other.ticket, "2")
    eventually(lambda: fake(pool).state == "stopped")
    assert fake(pool).launches == 1
    assert first.take_problems() == []


def test_the_desk_tells_the_scheduler_what_it_needs(pool, broker, join) -> None:
    member = join("gw0")
    assert broker.servers_of("1") == ()
    member.plan(Plan({"1": ["a"], "2": ["b", "c"]}))
    assert list(broker.servers_of("2")) == ["b", "c"]
    eventually(lambda: broker.is_ready("a"))


@pytest.mark.parametrize(("each", "count"), [(False, 1), (True, 2)])
def test_each_test_is_planned_once_or_for_every_worker(pool, make_desk, configs, each, count) -> None:
    broker = make_desk(each)
    members = [RemoteMember(configs, broker.key, f"gw{number}") for number in range(2)]
    for member in members:
        member.plan(Plan({"1": ["a"]}))
    eventually(lambda: pool.is_ready("a"))
    for number, member in enumerate(members[:count]):
        assert pool.is_ready("a"), number
        member.done("1")
    eventually(lambda: fake(pool).state == "stopped")
    for member in members:
        member.close()


def test_a_plan_that_cannot_be_is_for_the_controller_to_say(pool, broker, join) -> None:
    pool._room._limit = pool._room.max_servers = 1
    join("gw0").plan(Plan({"t": ["a", "b"]}))
    assert str(broker.refusal).startswith("t: needs 2 servers at the same time")


def test_a_failed_start_and_a_pin_reach_the_other_side(pool, join) -> None:
    member = join("gw0")
    fake(pool).start_error = ServerStartupError("no such model")
    lease = acquired(member, "a")
    assert str(lease.error) == "no such model"
    assert lease.log_start == 40
    assert not lease.server.running
    member.release(lease.ticket)
    member.pin("b")
    lease = acquired(member, "b")
    member.release(lease.ticket)
    assert pool.is_ready("b")


def test_what_goes_wrong_inside_is_an_error_and_not_the_end(pool, join, monkeypatch) -> None:
    member = join("gw0")
    monkeypatch.setattr(pool, "pin", lambda name: 1 / 0)
    with pytest.raises(InferenceServerError, match="ZeroDivisionError"):
        member.pin("a")
    with pytest.raises(InferenceServerError, match="no_such_verb"):
        member._ask("no_such_verb")
    assert acquired(member, "a").error is None


def test_giving_back_waits_for_nobody_and_what_is_asked_next_comes_after_it(pool, join, monkeypatch) -> None:
    member = join("gw0")
    ticket, may_go_on, seen = acquired(member, "a").ticket, threading.Event(), []
    release, pin = pool.release, pool.pin

    def slow(*arguments: Any) -> None:
        assert may_go_on.wait(LIMIT)
        seen.append("released")
        release(*arguments)

    monkeypatch.setattr(pool, "release", slow)
    monkeypatch.setattr(pool, "pin", lambda name: (seen.append("pinned"), pin(name)))
    member.release(ticket)
    threading.Timer(0.1, may_go_on.set).start()
    member.pin("b")
    assert seen == ["released", "pinned"]


def test_a_release_that_goes_wrong_ends_the_run(pool, join, monkeypatch) -> None:
    member = join("gw0")
    ticket = acquired(member, "a").ticket
    monkeypatch.setattr(pool._leasing, "give_back", lambda ticket, done: 1 / 0)
    member.release(ticket)
    assert "ZeroDivisionError" in str(acquired(member, "a").error)
    with pytest.raises(ZeroDivisionError):
        pool.raise_exit()


# A server alone.


def test_who_has_a_server_alone_stops_and_starts_it_through_the_controller(pool, join) -> None:
    member, other = join("gw0"), join("gw1")
    member.plan(Plan({"1": ["a"], "2": ["a"]}))
    lease = acquired(member, "a", test="1", exclusive=True)
    assert lease.exclusive
    waiting = in_thread(lambda: other.acquire(["a"], "2", False))
    lease.server.stop()
    assert fake(pool).state == "stopped"
    assert not lease.server.running
    lease.server.start()
    assert lease.server.running
    assert lease.server.launches == fake(pool).launches == 2
    lease.server.stop()
    member.release(lease.ticket, "1")
    with pytest.raises(InferenceServerError, match="shared with other tests"):
        lease.server.stop()
    (next_one,) = waiting()
    assert (next_one.error, next_one.launch) == (None, 3)


def test_who_has_it_not_alone_cannot_stop_it_whatever_it_says(pool, join) -> None:
    member = join("gw0")
    lease = acquired(member, "a")
    lease.server.runtime.stop_refusal = None
    with pytest.raises(InferenceServerError, match="shared with other tests"):
        lease.server.stop()
    assert fake(pool).running


def test_a_stop_that_finds_a_leak_has_stopped_it_all_the_same(pool, join) -> None:
    member = join("gw0")
    member.pin("a")
    lease = acquired(member, "a", exclusive=True)
    fake(pool).stop_error = LeakError("left something")
    with pytest.raises(LeakError, match="left something"):
        lease.server.stop()
    assert not lease.server.running
    fake(pool).stop_error = None
    lease.server.start()
    assert lease.server.running
    assert fake(pool).launches == 2


def test_a_pause_of_a_worker_that_is_gone_is_undone(pool, broker, join) -> None:
    calls: list[str] = []
    member = join("gw0")
    acquired(member, "a")
    for verb in ("pause", "resume"):
        setattr(fake(pool), f"{verb}_heartbeat", lambda verb=verb: calls.append(verb))
    handle = member.server("a")
    member.pause(handle)
    member.pause(handle)
    member.resume(handle)
    broker.leave("gw0")
    assert calls == ["pause", "pause", "resume", "resume"]


# Deaths.


def test_all_workers_hear_of_a_death_and_why(pool, join) -> None:
    members = [join(f"gw{number}") for number in range(3)]
    for member in members:
        member.pin("a")
    leases = [acquired(member, "a") for member in members[:2]]
    assert [member.death(lease) for member, lease in zip(members, leases, strict=False)] == [None, None]
    fake(pool).die()
    for member, lease in zip(members, leases, strict=False):
        eventually(lambda member=member, lease=lease: member.death(lease))
        assert member.death(lease) == "a died"
        assert not lease.server.running
    lease = acquired(members[2], "a")
    assert (lease.launch, lease.server.running) == (2, True)
    assert members[2].death(lease) is None


def test_news_of_a_death_that_come_before_the_answer_count(pool, broker, join, monkeypatch) -> None:
    member = join("gw0")
    held = threading.Event()
    acquire = pool.acquire

    def slow(*arguments: Any, **rest: Any) -> Any:
        leases = acquire(*arguments, **rest)
        view = fake(pool).view()
        monkeypatch.setattr(fake(pool), "view", lambda: view)
        fake(pool).die()
        assert held.wait(LIMIT)
        return leases

    monkeypatch.setattr(pool, "acquire", slow)
    result = in_thread(lambda: member.acquire(["a"], None, False))
    eventually(lambda: member._ends)
    held.set()
    (lease,) = result()
    assert lease.error is None
    assert not lease.server.running
    assert member.death(lease) == "a died"


def test_a_worker_that_has_gone_does_not_keep_the_others_from_the_news(pool, broker, join) -> None:
    gone, member = join("gw0"), join("gw1")
    member.pin("a")
    lease = acquired(member, "a")
    gone._news.close()
    fake(pool).die()
    eventually(lambda: member.death(lease))


# Workers that end.


def test_what_a_worker_had_is_free_when_it_hangs_up(pool, broker, join) -> None:
    member, other = join("gw0"), join("gw1")
    member.pin("a")
    acquired(member, "a", exclusive=True)
    waiting = in_thread(lambda: other.acquire(["a"], None, False))
    eventually(lambda: pool._planner._waiting)
    member.close()
    assert waiting()[0].error is None


def test_a_worker_that_is_gone_while_it_waits_is_taken_out_of_the_queue(pool, broker, join) -> None:
    member, other = join("gw0"), join("gw1")
    pool.plan({"1": ["a"], "2": ["a"]})
    lease = acquired(member, "a", test="1", exclusive=True)
    waiting = in_thread(lambda: other.acquire(["a"], "2", False))
    eventually(lambda: pool._planner._waiting)
    # As xdist tells when the process has ended.
    broker.leave("gw1")
    assert "gw1 is gone" in str(waiting()[0].error)
    other.close()
    member.release(lease.ticket, "1")
    eventually(lambda: fake(pool).state == "stopped")


def test_an_answer_that_nobody_waited_for_is_no_answer_to_the_next_question(pool, join) -> None:
    member = join("gw0")
    member.pin("a")
    connection = member._broker

    class Interrupted:
        send = staticmethod(connection.send)

        def recv(self) -> None:
            raise KeyboardInterrupt

    member._broker = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        member.acquire(["a"], None, True)
    member._broker = connection
    lease = acquired(member, "b")
    assert (lease.name, lease.error) == ("b", None)
    # Nor does it stay leased.
    assert acquired(join("gw1"), "a", exclusive=True).error is None


def test_the_end_of_the_run_answers_those_who_wait(pool, broker, join) -> None:
    member = join("gw0")
    fake(pool).gate.clear()
    waiting = in_thread(lambda: member.acquire(["a"], None, False))
    eventually(lambda: fake(pool).launches)
    broker.refuse()
    assert "the run ends" in str(waiting()[0].error)


def test_a_controller_that_is_gone_is_said_so(pool, broker, join, configs) -> None:
    member = join("gw0")
    key = broker.key
    broker.close()
    assert not Path(key["path"]).parent.exists()
    with pytest.raises(InferenceServerError, match="the process of the pool cannot be reached"):
        RemoteMember(configs, key, "gw9")
    member._broker.close()
    with pytest.raises(InferenceServerError, match="the process of the pool is gone"):
        member.pin("a")
    broker.close()


def test_another_process_must_not_ask_in_a_workers_name(join, monkeypatch) -> None:
    member = join("gw0")
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(InferenceServerError, match=f"the server belongs to process {pid}: only that one may pin it"):
        member.pin("a")


# What the system refuses.


class Counting:
    """A step that fails until it is told otherwise, and counts how often it was tried."""

    def __init__(self, step: Callable[..., Any], error: BaseException) -> None:
        self.step = step
        self.error: BaseException | None = error
        self.count = 0

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        if self.error is not None:
            raise self.error
        return self.step(*arguments)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("accept", OSError(errno.EMFILE, "Too many open files")),
        ("accept", MemoryError()),
        ("spawn", RuntimeError("can't start new thread")),
    ],
)
def test_workers_wait_where_the_system_has_nothing_left_and_nobody_is_busy(
    broker, join, configs, monkeypatch, step, error
) -> None:
    join("gw0")
    failing = Counting(getattr(broker_module, step), error)
    monkeypatch.setattr(broker_module, step, failing)
    monkeypatch.setattr(broker_module, "PAUSE", 0.2)
    # Of those that it waits for already one may be let in.
    first = in_thread(lambda: RemoteMember(configs, broker.key, "gw1"))
    eventually(lambda: failing.count)
    time.sleep(0.5)
    assert failing.count <= 4
    failing.error = None
    member = first()
    assert acquired(member, "a").error is None
    member.close()


def test_a_desk_that_is_closed_waits_for_nobody(broker, monkeypatch) -> None:
    # Also where its folder cannot be removed.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    accepts = Counting(broker_module.accept, OSError("closed"))
    broker.close()
    broker._accepting.join(LIMIT)
    assert not broker._accepting.is_alive()
    monkeypatch.setattr(broker_module, "accept", accepts)
    broker._accept()
    assert accepts.count == 0


def test_a_controller_that_does_not_let_in_is_not_waited_for_without_end(broker, configs, monkeypatch) -> None:
    monkeypatch.setattr(remote_module, "_ADMISSION_LIMIT", 0.2)
    with socket.socket(socket.AF_UNIX) as deaf:
        path = str(Path(broker.key["path"]).with_name("deaf"))
        deaf.bind(path)
        deaf.listen(1)
        with pytest.raises(InferenceServerError, match="cannot be reached"):
            RemoteMember(configs, {**broker.key, "path": path}, "gw0")


def test_a_worker_with_another_secret_is_told_so(broker, configs) -> None:
    with pytest.raises(InferenceServerError, match="cannot be reached"):
        RemoteMember(configs, {**broker.key, "secret": "00" * 32}, "gw0")


# What is raised inside.


def test_a_lease_that_cannot_be_told_comes_back(pool, join, monkeypatch) -> None:
    member = join("gw0")
    pool.pin("a")
    with monkeypatch.context() as patch:
        patch.setattr(fake(pool), "view", lambda: 1 / 0)
        with pytest.raises(InferenceServerError, match="ZeroDivisionError"):
            member.acquire(["a"], None, True)
    assert acquired(join("gw1"), "a", exclusive=True).error is None


def test_a_lease_that_a_worker_cannot_take_comes_back(pool, join, monkeypatch) -> None:
    member = join("gw0")
    pool.pin("a")
    with monkeypatch.context() as patch:
        patch.setattr(member, "_follow", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            member.acquire(["a"], None, True)
    assert acquired(join("gw1"), "a", exclusive=True).error is None


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (pytest.exit.Exception("enough"), True),
        (SystemExit("enough"), False),
        (pytest.fail.Exception("enough"), False),
        (ValueError("enough"), False),
    ],
)
def test_whatever_a_backend_raises_in_the_name_of_a_worker_is_answered(pool, broker, join, error, ends) -> None:
    member, other = join("gw0"), join("gw1")
    member.pin("a")
    lease = acquired(member, "a", exclusive=True)
    waiting = in_thread(lambda: other.acquire(["a"], None, False))
    lease.server.stop()
    fake(pool).start_error = error
    with pytest.raises(InferenceServerError, match="enough"):
        lease.server.start()
    if ends:
        assert "enough" in str(waiting()[0].error)
        with pytest.raises(type(error), match="enough"):
            broker.raise_exit()
    broker.raise_exit()
    member.release(lease.ticket)
    assert waiting()


def test_leases_of_a_worker_come_back_also_if_its_profiles_cannot_be_ended(pool, broker, join, monkeypatch) -> None:
    member = join("gw0")
    pool.pin("a")
    acquired(member, "a", exclusive=True)
    monkeypatch.setattr(broker._profiles, "leave", lambda client: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broker.leave("gw0")
    assert pool._planner.leases("a") == []


def test_a_worker_that_hears_of_deaths_no_more_says_so(pool, broker, join, monkeypatch) -> None:
    member = join("gw0")
    monkeypatch.setattr(member, "_note_end", lambda *_: 1 / 0)
    acquired(member, "a")
    fake(pool).die()
    eventually(lambda: member.incidents)
    assert "does not hear of deaths of servers any more (ZeroDivisionError" in member.incidents[0]


# Strangers.


def test_the_desk_is_private(broker) -> None:
    folder = Path(broker.key["path"]).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert broker.key["secret"] not in broker.key["path"]


def test_nobody_gets_in_without_the_secret(broker, join) -> None:
    with pytest.raises(AuthenticationError):
        Client(broker.key["path"], family="AF_UNIX", authkey=b"wrong")
    assert acquired(join("gw0"), "a").error is None


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", bytes(range(128, 192)), b"\xff\xff\xff\xff" * 8]
)
def test_garbage_does_not_close_the_desk(broker, join, data) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(LIMIT)
        stranger.connect(broker.key["path"])
        stranger.sendall(data)
    assert acquired(join("gw0"), "a").error is None


def test_a_stranger_who_says_nothing_keeps_nobody_out(broker, join) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(broker.key["path"])
        assert acquired(in_thread(lambda: join("gw0"))(), "a").error is None


@pytest.mark.parametrize("moment", ["hello", "half a question", "question"])
def test_a_connection_that_closes_at_any_moment_frees_what_it_had(pool, broker, join, moment) -> None:
    pool.pin("a")
    connection = Client(broker.key["path"], family="AF_UNIX", authkey=bytes.fromhex(broker.key["secret"]))
    connection.send(("gw7", "ask"))
    question = (1, "acquire", {"names": ["a"], "test": None, "exclusive": True, "undisturbed": False})
    if moment == "half a question":
        data = pickle.dumps(question)
        os.write(connection.fileno(), len(data).to_bytes(4, "big") + data[:5])
    elif moment == "question":
        connection.send(question)
        time.sleep(0.05)
    connection.close()
    assert acquired(join("gw0"), "a", exclusive=True).error is None


# How a server is, for the report of a failed test.


def test_a_worker_is_told_how_a_server_is(pool, join) -> None:
    member = join("gw0")
    lease = acquired(member, "a")
    view = member.view("a", 1)
    assert (view.pid, view.launches, view.running) == (123, 1, True)
    member.release(lease.ticket)


def test_a_controller_that_is_busy_is_not_waited_for_and_its_late_answer_does_no_harm(pool, join, monkeypatch) -> None:
    member = join("gw0")
    monkeypatch.setattr(remote_module, "_VIEW_LIMIT", 0.2)
    go_on = threading.Event()
    view = fake(pool).view()
    monkeypatch.setattr(fake(pool), "view", lambda: go_on.wait(LIMIT) and view)
    begin = time.monotonic()
    assert member.view("a", 1) is None
    assert time.monotonic() - begin < LIMIT / 2
    go_on.set()
    assert acquired(member, "b").error is None
    assert member.view("a", 1) == view


def test_a_worker_that_is_asking_something_else_is_told_nothing(pool, join, monkeypatch) -> None:
    member, other = join("gw0"), join("gw1")
    monkeypatch.setattr(remote_module, "_VIEW_LIMIT", 0.2)
    member.pin("a")
    lease = acquired(other, "a", exclusive=True)
    waiting = in_thread(lambda: member.acquire(["a"], None, False))
    eventually(lambda: member._acquiring)
    assert member.view("a", 1) is None
    other.release(lease.ticket)
    assert waiting()[0].error is None


def test_a_question_that_was_interrupted_is_not_waited_for(pool, join) -> None:
    member = join("gw0")
    member._acquiring = 77
    assert member.view("a", 1) is None


def test_what_goes_wrong_with_that_is_never_an_error(pool, broker, join, monkeypatch) -> None:
    member = join("gw0")
    monkeypatch.setattr(fake(pool), "view", lambda: 1 / 0)
    assert member.view("a", 1) is None
    assert member.view("no-such-server", 1) is None
    member._broker.close()
    assert member.view("a", 1) is None


def test_a_controller_that_is_gone_knows_nothing(pool, broker, join) -> None:
    member = join("gw0")
    ours, theirs = socket.socketpair()
    member._broker.close()
    member._broker = Connection(ours.detach())
    theirs.close()
    assert member.view("a", 1) is None


def test_a_fork_of_a_worker_does_not_ask(pool, join, monkeypatch) -> None:
    member = join("gw0")
    monkeypatch.setattr(member, "_pid", os.getpid() + 1)
    assert member.view("a", 1) is None
