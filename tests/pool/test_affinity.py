"""Which test goes to which of xdist's workers, with workers that are only objects."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScheduling

from pytest_infserver.pool.broker.affinity import AHEAD, AHEAD_SHORT, AHEAD_TINY, ServerAffinity

LONG = 1.0


class Node:
    """A worker: it runs a test when it knows the next one, or that there is none."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.queue: deque[int] = deque()
        self.shutting_down = False
        self.ran: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        assert not self.shutting_down
        self.queue.extend(indices)

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def can_run(self) -> bool:
        return len(self.queue) >= 2 or (self.shutting_down and bool(self.queue))


class Session:
    """xdist's controller with some workers."""

    def __init__(self, tests: list[str], nodes: int, ready: set[str] | None = None, *, ours: bool = True) -> None:
        self.tests = tests
        self.ready = {test[0] for test in tests} if ready is None else ready
        config: Any = SimpleNamespace(
            getvalue=lambda name: ["popen"] * nodes, getoption=lambda name: None, hook=SimpleNamespace()
        )
        log = Producer("test", enabled=False)
        self.scheduler: Any
        if ours:
            self.scheduler = ServerAffinity(config, log, self.servers_of, self.ready.__contains__)
        else:
            self.scheduler = LoadScheduling(config, log)
        self.nodes = [Node(f"gw{number}") for number in range(nodes)]
        for node in self.nodes:
            self.scheduler.add_node(node)
        for node in self.nodes:
            self.scheduler.add_node_collection(node, tests)
        self.scheduler.schedule()

    def servers_of(self, test: str) -> tuple[str, ...]:
        return () if test[0] == "-" else (test[0],)

    def run_one(self, node: Node, duration: float = 0.01) -> str:
        index = node.queue.popleft()
        node.ran.append(index)
        self.scheduler.mark_test_complete(node, index, duration)
        return self.tests[index]

    def run(self, duration: Callable[[str], float] = lambda test: 0.01) -> None:
        """Let all run to the end, each worker in turn."""
        while any(node.can_run for node in self.nodes):
            for node in self.nodes:
                if node.can_run:
                    self.run_one(node, duration(self.tests[node.queue[0]]))

    def crash(self, node: Node) -> tuple[str | None, Node]:
        """Let a worker crash; return the test that it was running, and the worker in its place."""
        self.nodes.remove(node)
        test = self.scheduler.remove_node(node)
        other = Node(f"{node.gateway.id}b")
        self.nodes.append(other)
        self.scheduler.add_node(other)
        self.scheduler.add_node_collection(other, self.tests)
        self.scheduler.schedule()
        return test, other

    def names(self, node: Node) -> list[str]:
        return [self.tests[index] for index in node.ran]

    def switches(self) -> int:
        """Return how often a worker came to another server."""
        found = 0
        for node in self.nodes:
            servers = [test[0] for test in self.names(node) if test[0] != "-"]
            found += sum(one != other for one, other in itertools.pairwise(servers))
        return found

    def assert_over(self, *gone: str) -> None:
        assert self.scheduler.tests_finished
        assert not self.scheduler.has_pending
        assert all(node.shutting_down and not node.queue for node in self.nodes)
        ran = [self.tests[index] for node in self.nodes for index in node.ran]
        assert Counter([*ran, *gone]) == Counter(self.tests)


def many(*counts: tuple[str, int]) -> list[str]:
    return [f"{name}{number}" for name, count in counts for number in range(count)]


def mixed(*counts: tuple[str, int]) -> list[str]:
    """The same in turn, as an order that somebody else has made."""
    return sorted(many(*counts), key=lambda test: (int(test[1:]), test[0]))


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", range(13))
def test_every_test_is_given_once_however_few_there_are(nodes, count) -> None:
    session = Session(mixed(("a", count), ("b", count // 2), ("-", count // 3)), nodes)
    session.run()
    if count:
        session.assert_over()
    else:
        assert session.scheduler.tests_finished


def test_tiny_tests_without_a_server_come_many_at_a_time_and_those_of_a_server_do_not() -> None:
    session = Session(many(("-", 1000), ("a", 40)), 2, ready=set())
    node = session.nodes[0]
    queues = []
    for _ in range(300):
        assert session.run_one(node, 0.001)[0] == "-"
        queues.append(len(node.queue))
    # It is not asked for each of them.
    assert max(queues) == AHEAD_TINY
    assert sum(later > earlier for earlier, later in itertools.pairwise(queues)) < 6
    # The longer they take, the fewer.
    while len(node.queue) > 27:
        session.run_one(node, 0.009)
    for _ in range(60):
        session.run_one(node, 0.009)
        assert len(node.queue) <= 27
    session.ready.add("a")
    while session.run_one(node, 0.001)[0] == "-":
        pass
    assert len(node.queue) <= AHEAD_SHORT
    session.run(lambda test: 0.001)
    session.assert_over()
    # The last ones are for both.
    assert min(len(one.ran) for one in session.nodes) > 30


@pytest.mark.parametrize("duration", [0.001, LONG])
def test_the_workers_stay_with_their_servers(duration) -> None:
    tests = mixed(("a", 30), ("b", 30), ("c", 30))
    session, load = Session(tests, 3), Session(tests, 3, ours=False)
    for one in (session, load):
        one.run(lambda test: duration)
        one.assert_over()
    assert session.switches() <= 4
    assert load.switches() > 20


def test_each_worker_has_another_server_and_the_tests_of_one_server_keep_their_order() -> None:
    session = Session(mixed(("a", 10), ("b", 10)), 2)
    session.run()
    first, second = map(session.names, session.nodes)
    assert {test[0] for test in first[:8]} != {test[0] for test in second[:8]}
    for ran in (first, second):
        for name in "ab":
            numbers = [int(test[1:]) for test in ran if test[0] == name]
            assert numbers == sorted(numbers)


def test_tests_without_a_server_run_until_one_is_ready() -> None:
    session = Session(mixed(("a", 10), ("-", 20)), 2, ready=set())
    for _ in range(4):
        for node in session.nodes:
            assert session.run_one(node)[0] == "-"
    session.ready.add("a")
    session.run()
    session.assert_over()
    ran = session.names(session.nodes[0])[4:]
    # What it had already comes first.
    servers = "".join(test[0] for test in ran).lstrip("-")
    assert servers.startswith("aaa")


def test_without_other_tests_a_worker_waits_for_the_server_that_it_had() -> None:
    session = Session(mixed(("a", 6), ("b", 6)), 1, ready=set())
    session.run()
    session.assert_over()
    assert session.switches() == 1


def test_a_worker_has_few_tests_ahead_and_more_while_they_are_short() -> None:
    session = Session(many(("a", 40)), 2)
    first, second = session.nodes
    assert [len(node.queue) for node in session.nodes] == [AHEAD, AHEAD]
    session.run_one(first, LONG)
    session.run_one(second, 0.01)
    assert (len(first.queue), len(second.queue)) == (AHEAD, AHEAD_SHORT)


def test_the_last_tests_are_shared_out() -> None:
    session = Session(many(("a", 24)), 4)
    session.run()
    session.assert_over()
    counts = [len(node.ran) for node in session.nodes]
    assert max(counts) - min(counts) <= 2


def test_one_long_test_does_not_hold_many_others() -> None:
    session = Session(many(("a", 20)), 2)
    slow, fast = session.nodes
    while fast.can_run:
        session.run_one(fast)
    assert len(slow.queue) <= AHEAD
    assert len(fast.ran) >= 20 - AHEAD - 1
    session.run()
    session.assert_over()


@pytest.mark.parametrize("moment", [0, 1, 5, 15])
def test_the_tests_of_a_worker_that_crashed_go_to_the_others(moment) -> None:
    session = Session(mixed(("a", 10), ("b", 10)), 2)
    victim = session.nodes[0]
    for _ in range(moment):
        for node in session.nodes:
            if node.can_run:
                session.run_one(node)
    gone = session.names(victim)
    running, _ = session.crash(victim)
    session.run()
    session.assert_over(*gone, *([running] if running else []))


def test_a_crash_with_the_last_test_leaves_nothing_to_do() -> None:
    session = Session(["a0"], 2)
    victim = next(node for node in session.nodes if node.queue)
    running, _ = session.crash(victim)
    assert running == "a0"
    session.run()
    assert session.scheduler.tests_finished


def test_a_test_that_is_to_run_again_is_given_again() -> None:
    session = Session(many(("a", 8)), 2)
    first = session.nodes[0]
    test = session.run_one(first)
    session.scheduler.mark_test_pending(test)
    session.run()
    ran = Counter(name for node in session.nodes for name in session.names(node))
    assert ran.pop(test) == 2
    assert set(ran.values()) == {1}


def test_workers_that_have_collected_different_tests_are_told() -> None:
    reports: list[Any] = []
    session = Session([], 2)
    scheduler = session.scheduler
    scheduler.config.hook = SimpleNamespace(pytest_collectreport=lambda report: reports.append(report))
    scheduler.collection = None
    scheduler.node2collection = {node: [f"a{number}"] for number, node in enumerate(session.nodes)}
    scheduler.schedule()
    assert [report.outcome for report in reports] == ["failed"]
    assert not any(node.queue for node in session.nodes)
