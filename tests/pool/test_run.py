"""Which test gets which server, and what becomes of it, with items and servers that are only objects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from pool_fakes import FakeServer

from pytest_infserver.errors import ConfigError, InferenceServerError, UserCodeError
from pytest_infserver.pool import run as run_module
from pytest_infserver.pool.collection import items
from pytest_infserver.pool.collection.choice import Choice
from pytest_infserver.pool.collection.durations import Durations
from pytest_infserver.pool.collection.selection import Candidate, MarkerError
from pytest_infserver.pool.late_reports import LateReports
from pytest_infserver.pool.lease import Lease, Problem
from pytest_infserver.pool.member import Plan
from pytest_infserver.pool.run import Run
from pytest_infserver.settings import Settings

mark = pytest.mark
CANDIDATES = [Candidate("a", "command"), Candidate("b", "command"), Candidate("v", "vllm")]


def make_choice(strict: bool = False, names: str = "abv") -> Choice:
    configs: Any = {name: SimpleNamespace(url=None) for name in names}
    return Choice(configs, [one for one in CANDIDATES if one.name in names], strict)


@pytest.fixture
def choice() -> Choice:
    return make_choice()


class Item(SimpleNamespace):
    """A test."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def item(
    nodeid: str, *marks: pytest.MarkDecorator, param: object = None, ours: bool = True, several: bool = False
) -> Any:
    definitions = {items.FIXTURE: [definition(items.FIXTURE_HOME)]} if ours else {}
    if several:
        definitions[items.SEVERAL] = [definition(items.FIXTURE_HOME)]
    node = Item(
        nodeid=nodeid,
        location=("test.py", 0, nodeid),
        keywords={},
        fixturenames=list(definitions),
        callspec=None if param is None else SimpleNamespace(params={items.FIXTURE: param}),
        _fixtureinfo=SimpleNamespace(name2fixturedefs=definitions),
        own_markers=[one.mark for one in marks],
        iter_markers=lambda name=None: iter([one.mark for one in marks if name in (None, one.mark.name)]),
        added=[],
    )
    node.add_marker = node.added.append
    return node


def definition(module: str, *argnames: str, params: list[int] | None = None) -> Any:
    return SimpleNamespace(
        argname=items.FIXTURE, argnames=argnames, params=params, func=SimpleNamespace(__module__=module)
    )


# What is collected.


def test_whose_fixture_it_is() -> None:
    ours, theirs = definition(items.FIXTURE_HOME), definition("conftest")
    wraps = definition("conftest", "request", items.FIXTURE)
    assert items.reaches_ours([ours])
    assert items.reaches_ours([ours, wraps])
    assert items.reaches_ours([ours, wraps, wraps])
    assert not items.reaches_ours([ours, theirs])
    assert not items.reaches_ours([ours, theirs, wraps])
    assert not items.reaches_ours([ours, definition("conftest", items.FIXTURE, params=[1])])
    assert not items.reaches_ours([])
    assert not items.reaches_ours(None)


def test_parameters(choice) -> None:
    assert choice.parameters([]) == ["a", "b", "v"]
    assert choice.parameters([mark.backend("command").mark, mark.infserver("b", "v").mark]) == ["b"]
    assert choice.parameters([mark.infserver(exclusive=True).mark]) == ["a", "b", "v"]
    (nobody,) = choice.parameters([mark.infserver("zz").mark])
    assert nobody.id == "no-server"
    assert nobody.marks[0].kwargs["reason"] == (
        "no configured server fits infserver('zz'); configured: a (command), b (command), v (vllm)"
    )
    assert not make_choice(strict=True).parameters([mark.infserver("zz").mark])[0].marks  # type: ignore[attr-defined]
    with pytest.raises(MarkerError):
        choice.parameters([mark.backend().mark])


def test_which_servers_an_item_uses(choice) -> None:
    assert choice.servers(item("1", param="a")) == ("a",)
    assert choice.servers(item("2", param="zz")) == ()
    assert choice.servers(item("3", param=items.Unmatched("no"))) == ()
    assert choice.servers(item("4", param="a", ours=False)) == ()
    assert choice.servers(item("5")) == ()
    assert choice.servers(item("6", mark.backend("vllm"))) == ("v",)
    assert choice.servers(item("7", mark.backend())) == ()
    assert make_choice(names="a").servers(item("8")) == ("a",)


def test_which_servers_an_item_uses_together(choice) -> None:
    both = mark.infserver_needs("b", "v")
    assert choice.servers(item("1", both, ours=False, several=True)) == ("b", "v")
    assert choice.servers(item("2", both, param="a", several=True)) == ("a", "b", "v")
    assert choice.servers(item("3", both, param="v", several=True)) == ("v", "b")
    # The mark alone is a mark of somebody else's.
    assert choice.servers(item("4", both, ours=False)) == ()
    assert choice.servers(item("5", mark.infserver_needs("b", "zz"), ours=False, several=True)) == ()


def test_who_wants_its_servers_alone(choice) -> None:
    assert choice.exclusive(item("1", mark.infserver(exclusive=True), param="a"))
    assert not choice.exclusive(item("2", mark.infserver("a"), param="a"))
    assert not choice.exclusive(item("3", mark.infserver_needs("a", "b"), several=True))


def test_whose_servers_are_profiled(choice) -> None:
    one = item("1", mark.infserver_profile("nsys"), param="a")
    assert choice.profiler(one) == "nsys"
    assert choice.undisturbed(one)
    assert not choice.exclusive(one)
    assert choice.profiler(item("2", mark.infserver_profile(), ours=False, several=True)) == ""
    plain = item("3", param="a")
    assert choice.profiler(plain) is None
    assert not choice.undisturbed(plain)
    # The mark alone is a mark of somebody else's.
    foreign, bad = item("4", mark.infserver_profile(1, 2), ours=False), item("5", mark.infserver_profile(1), param="a")
    choice.choose([foreign, bad])
    assert choice.profiler(foreign) is None
    assert choice.refusal(foreign) is None
    assert "give the name of one profiler" in str(choice.refusal(bad))
    assert choice.profiler(bad) is None
    choice.refuse(one, "why not")
    assert (choice.refusal(one), choice.profiler(one), choice.servers(one)) == ("why not", None, ())


def test_choose_leaves_out_skips_and_refuses(choice) -> None:
    on_b = mark.infserver("b")
    fits, elsewhere = item("fits", on_b, param="b"), item("elsewhere", on_b, param="a")
    nowhere, bad = item("nowhere", mark.infserver("zz"), param="a"), item("bad", mark.backend(), param="a")
    foreign = item("foreign", mark.backend(), ours=False)
    kept, left_out = choice.choose([fits, elsewhere, nowhere, bad, foreign])
    assert kept == [fits, nowhere, bad, foreign]
    assert left_out == [elsewhere]
    assert [one.name for one in nowhere.added] == ["skip"]
    assert bad.added == foreign.added == []
    assert "name at least one" in str(choice.refusal(bad))
    assert choice.servers(bad) == ()
    assert choice.refusal(fits) is None
    strict = make_choice(strict=True)
    one = item("strict", mark.infserver("zz"), param="a")
    assert strict.choose([one]) == ([one], [])
    assert strict.servers(one) == ()
    assert "no configured server fits infserver" in str(strict.refusal(one))
    assert one.added == []


def test_choose_looks_at_the_servers_that_are_needed_together(choice) -> None:
    def needing(nodeid: str, *marks: pytest.MarkDecorator) -> Any:
        return item(nodeid, *marks, ours=False, several=True)

    fine, none = needing("fine", mark.infserver_needs("a", "b")), needing("none")
    missing, bad = needing("missing", mark.infserver_needs("a", "zz")), needing("bad", mark.infserver_needs())
    assert choice.choose([fine, none, missing, bad]) == ([fine, none, missing, bad], [])
    assert choice.refusal(fine) is None
    assert "infserver_needs" in str(choice.refusal(none))
    assert "give the names of servers" in str(choice.refusal(bad))
    assert "infserver_needs('a', 'zz')" in missing.added[0].kwargs["reason"]
    empty = make_choice(names="")
    empty.choose([fine])
    assert "none is configured" in str(empty.refusal(fine))


def test_what_the_fixture_says_when_it_cannot_tell_the_server(choice) -> None:
    assert choice.named("a", None) == "a"
    for name, words in (("zz", "no server is called 'zz'"), (None, "several servers"), (items.Unmatched("why"), "why")):
        with pytest.raises(pytest.fail.Exception, match=words):
            choice.named(name, None)
    assert choice.named(None, item("1", mark.backend("vllm"))) == "v"
    with pytest.raises(pytest.fail.Exception, match="none is configured"):
        make_choice(names="").named(None, None)


# The run.


class Member:
    """Gives servers out at once, and notes what it is asked for."""

    alone = True

    def __init__(self) -> None:
        self.incidents: list[str] = []
        self.calls: list[str] = []
        self.made: dict[str, FakeServer] = {}
        self.errors: dict[str, InferenceServerError] = {}
        self.deaths: dict[tuple[str, int], str] = {}
        self.problems: list[Problem] = []
        self.plan_error: InferenceServerError | None = None
        self.planned: Mapping[str, Sequence[str]] = {}
        self.profilers: Mapping[str, str] | None = None
        self.tickets = 0

    def server(self, name: str) -> Any:
        return self.made.setdefault(name, FakeServer(name))

    def servers(self) -> Any:
        return list(self.made.values())

    def add(self, configs: Mapping[str, Any]) -> None:
        assert not configs

    def plan(self, plan: Plan) -> None:
        self.in_order = plan.in_order
        if self.plan_error is not None:
            raise self.plan_error
        self.planned, self.profilers = plan.tests, plan.profilers

    def is_ready(self, name: str) -> bool:
        return self.server(name).running

    def stop_all(self) -> None:
        self.calls.append("stop all")

    def pin(self, name: str) -> None:
        self.calls.append(f"pin {name}")

    def acquire(
        self, names: Sequence[str], test: str | None, exclusive: bool, undisturbed: bool = False
    ) -> list[Lease]:
        self.tickets += 1
        self.calls.append(f"acquire {'+'.join(names)} for {test}{' alone' if exclusive or undisturbed else ''}")
        leases = []
        for name in names:
            server = self.server(name)
            if name not in self.errors and not server.running:
                server.start()
            error = self.errors.get(name)
            leases.append(Lease(self.tickets, name, server, server.launches, 10, error, exclusive))
        return leases

    def release(self, ticket: int, done: str | None = None) -> None:
        self.calls.append(f"release {ticket}{f' done {done}' if done else ''}")

    def done(self, test: str) -> None:
        self.calls.append(f"done {test}")

    def death(self, lease: Lease) -> str | None:
        return self.deaths.get((lease.name, lease.launch))

    def take_problems(self) -> list[Problem]:
        problems, self.problems = self.problems, []
        return problems

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def member() -> Member:
    return Member()


CONFIG: Any = SimpleNamespace(
    getoption=lambda name, default=None: default,
    pluginmanager=SimpleNamespace(get_plugins=set),
    hook=SimpleNamespace(pytest_runtest_setup=SimpleNamespace(get_hookimpls=list)),
)


@pytest.fixture
def reports() -> list[pytest.TestReport]:
    return []


@pytest.fixture
def run(member: Member, reports: list[Any], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(run_module, "will_run", lambda one: "skipped" not in one.nodeid)
    config: Any = SimpleNamespace(hook=SimpleNamespace(pytest_runtest_logreport=lambda report: reports.append(report)))
    return Run(Settings(), make_choice(), member, LateReports(config), durations=Durations())


@contextlib.contextmanager
def running(run: Run, one: Any, following: Any) -> Iterator[None]:
    """A test whose fixtures are being made."""
    with run.test(one, following):
        run.before_fixtures(one)
        yield


def test_the_plan_says_who_needs_what_in_the_order_in_which_the_tests_stand(run, member) -> None:
    one, two, three = item("1", param="a"), item("2", param="b"), item("3", param="a")
    plain, skipped = item("plain", ours=False), item("skipped", param="v")
    run.plan(CONFIG, [one, two, plain, three, skipped])
    assert member.planned == {"1": ("a",), "3": ("a",), "2": ("b",)}
    assert list(member.planned) == ["1", "2", "3"]
    # Nobody has put these tests together: they run as they stand.
    assert member.in_order


@pytest.mark.parametrize("error", [ConfigError("too much"), UserCodeError("too much")])
def test_a_plan_that_cannot_be_is_a_usage_error(run, member, error) -> None:
    member.plan_error = error
    with pytest.raises(pytest.UsageError, match="too much"):
        run.plan(CONFIG, [item("1", param="a")])


def test_a_test_has_its_servers_from_beginning_to_end(run, member) -> None:
    one, two = item("1", param="a"), item("2", param="b")
    run.plan(CONFIG, [one, two])
    with running(run, one, two):
        assert run.item is one
        assert run.handle("a") is member.server("a")
        assert run.servers_in_use() == [(member.server("a"), 10)]
    assert run.item is None
    assert run.servers_in_use() == []
    with running(run, two, None):
        pass
    assert member.calls == [
        "acquire a for 1",
        "release 1 done 1",
        "acquire b for 2",
        "release 2 done 2",
        # After the last test, while an error can still be shown with it.
        "stop all",
    ]


def test_a_test_that_is_skipped_or_uses_no_server_gets_none(run, member) -> None:
    following = item("2", param="a")
    for one in (item("skipped", param="a"), item("plain", ours=False)):
        with run.test(one, following):
            run.before_fixtures(one)
    assert member.calls == []


def test_a_test_that_has_no_way_to_a_server_is_passed_by(run, member) -> None:
    plain, asks, user = item("plain", ours=False), item("asks", ours=False), item("user", param="a")
    asks.fixturenames = ["request"]
    run.plan(CONFIG, [plain, asks, user])
    assert [run.passes_by(one, user) for one in (plain, asks, user)] == [True, False, False]
    # After the last one the servers are stopped, and one of the factory may die while any test runs.
    assert not run.passes_by(plain, None)
    run.know_extra(FakeServer("extra"))
    assert not run.passes_by(plain, user)
    member.problems = [Problem("left something", "unknown")]
    run.tell_problems()
    assert run.errors == ["left something"]


def test_servers_that_are_needed_together_are_asked_for_together_and_given_back_once(run, member) -> None:
    both = item("1", mark.infserver_needs("a", "b"), mark.infserver(exclusive=True), ours=False, several=True)
    run.plan(CONFIG, [both])
    with run.test(both, item("2")):
        run.before_fixtures(both)
        assert dict(run.needed(both)) == {name: member.server(name) for name in "ab"}
    assert member.calls == ["acquire a+b for 1 alone", "release 1 done 1"]


def test_a_test_whose_server_could_not_be_had_fails_in_its_setup(run, member) -> None:
    member.errors["a"] = InferenceServerError("it did not start")
    one = item("1", param="a")
    run.plan(CONFIG, [one])
    with run.test(one, item("2")):
        with pytest.raises(pytest.fail.Exception, match="it did not start"):
            run.before_fixtures(one)
        with pytest.raises(pytest.fail.Exception, match="it did not start"):
            run.handle("a")
    assert member.calls[-1] == "release 1 done 1"


def test_a_test_that_is_refused_fails_in_its_setup_without_a_server(run, member) -> None:
    bad = item("1", mark.backend(), param="a")
    run.choice.choose([bad])
    with run.test(bad, item("2")), pytest.raises(pytest.fail.Exception, match="name at least one"):
        run.before_fixtures(bad)
    assert member.calls == []


def test_a_rerun_that_finds_its_server_dead_gets_it_again_and_the_test_counts_once(run, member) -> None:
    one = item("1", param="a")
    run.plan(CONFIG, [one])
    with run.test(one, item("2")):
        run.before_fixtures(one)
        member.server("a").die()
        run.before_fixtures(one)
        assert member.server("a").running
    assert member.calls == ["acquire a for 1", "release 1", "acquire a for 1", "release 2 done 1"]


def test_a_server_that_nobody_knew_of_is_leased_on_the_spot_and_stays(run, member) -> None:
    one, two = item("1", ours=False), item("2", ours=False)
    two.fixturenames = ["request"]
    with running(run, one, two):
        assert run.handle("b") is member.server("b")
        assert run.handle("b") is member.server("b")
    with running(run, two, item("3")):
        assert list(run.leases) == ["b"]
    assert member.calls == ["pin b", "acquire b for 1", "release 1", "acquire b for 2", "release 2"]


def test_a_death_fails_its_test_once(run, member, reports) -> None:
    one = item("1", param="a")
    run.plan(CONFIG, [one])
    with running(run, one, item("2")):
        server = member.server("a")
        assert run.death(server) is None
        member.deaths["a", 1] = "a died"
        assert run.death(server) == "a died"
        assert run.death(server) is None
    assert reports == []


def test_a_death_that_shows_after_the_last_phase_is_an_error_at_the_tests_teardown(run, member, reports) -> None:
    one = item("1", param="a")
    run.plan(CONFIG, [one])
    with running(run, one, item("2")):
        member.deaths["a", 1] = "a died"
    (report,) = reports
    assert (report.nodeid, report.when, report.outcome, report.longrepr) == ("1", "teardown", "failed", "a died")
    assert run.late.count == 1


def test_a_test_that_has_its_server_alone_may_kill_it(run, member, reports) -> None:
    one = item("1", mark.infserver(exclusive=True), param="a")
    run.plan(CONFIG, [one])
    with running(run, one, item("2")):
        member.deaths["a", 1] = "a died"
        assert run.death(member.server("a")) is None
    assert reports == []


def test_a_server_of_the_factory_that_dies_is_told_of_with_its_test(run, member) -> None:
    extra: Any = FakeServer("extra")
    with run.test(item("1", ours=False), item("2", ours=False)):
        extra.start()
        run.extra_servers.append((extra, 0))
        extra.die()
        assert run.death(extra) == "extra died"
        assert run.death(extra) is None
    with run.test(item("2", ours=False), item("3", ours=False)):
        # One that goes on is the next test's as well, with what it writes from now on.
        assert run.servers_in_use() == [(extra, 100)]
        extra.state = "stopped"
    with run.test(item("3", ours=False), item("4")):
        assert run.servers_in_use() == []


def test_problems_at_stops_go_to_who_used_the_server_last(run, member, reports) -> None:
    one = item("1", param="a")
    run.plan(CONFIG, [one])
    with running(run, one, item("2")):
        run.late_errors.append("of the factory")
        member.problems = [Problem("a left something", "1"), Problem("b left something", None)]
    assert [(report.nodeid, report.longrepr) for report in reports] == [
        ("1", "of the factory"),
        ("1", "a left something"),
    ]
    assert run.errors == ["b left something"]
    assert run.late_errors == []


def test_a_late_error_of_a_test_that_was_never_planned_is_its_own(run, member, reports) -> None:
    with run.test(item("1", ours=False), item("2", ours=False)):
        run.late_errors.append("of the factory")
    with run.test(item("2", ours=False), None):
        pass
    assert [(report.nodeid, report.when, report.longrepr) for report in reports] == [
        ("1", "teardown", "of the factory")
    ]
    assert run.errors == []


def test_a_test_fails_in_its_setup_where_nobody_can_say_how_its_server_is(run, member, monkeypatch) -> None:
    def acquire(*_: object) -> list[Lease]:
        raise InferenceServerError("the controller is gone")

    one = item("1", param="a")
    run.plan(CONFIG, [one])
    monkeypatch.setattr(member, "acquire", acquire)
    with run.test(one, item("2")), pytest.raises(pytest.fail.Exception, match="the controller is gone"):
        run.before_fixtures(one)
    with run.test(item("2"), item("3")):
        run.before_fixtures(item("2"))


def test_the_end_tells_what_is_left(run, member, reports) -> None:
    run.late_errors.append("of a session's server")
    member.problems = [Problem("left something", "unknown")]
    run.close()
    assert member.calls == ["close"]
    assert run.errors == ["of a session's server", "left something"]
    assert reports == []


@pytest.mark.parametrize(
    ("following", "finished"), [("a", False), ("b", True), (None, True)], ids=["same", "another", "last"]
)
def test_what_depends_on_a_server_is_finished_before_it_goes(run, member, following, finished) -> None:
    one = item("1", param="a")
    other = None if following is None else item("2", param=following)
    order: list[str] = []
    with running(run, one, other):
        run.remember_dependents("a", lambda: order.append(f"finished with {len(run.leases)} leases"))
        run.after_teardown()
        run.after_teardown()
    assert order == (["finished with 1 leases"] if finished else [])


def test_pause_reaches_all_servers_and_is_undone(run, member) -> None:
    calls: list[str] = []
    for name in "ab":
        server = member.server(name)
        server.runtime.pause_heartbeat = lambda name=name: calls.append(f"pause {name}")
        server.runtime.resume_heartbeat = lambda name=name: calls.append(f"resume {name}")
    resume = run.pause()
    resume()
    assert calls == ["pause a", "pause b", "resume a", "resume b"]


def test_an_error_in_a_test_gives_its_servers_back(run, member) -> None:
    one = item("1", param="a")
    run.plan(CONFIG, [one])
    with pytest.raises(KeyboardInterrupt), running(run, one, item("2")):
        raise KeyboardInterrupt
    assert member.calls == ["acquire a for 1", "release 1 done 1"]


def test_a_server_of_which_nobody_can_tell_whether_it_died_is_given_back(run, member, monkeypatch) -> None:
    one = item("1", param="a")
    run.plan(CONFIG, [one])

    def death(lease: Lease) -> str:
        raise ValueError("users bug")

    monkeypatch.setattr(member, "death", death)
    with pytest.raises(ValueError, match="users bug"), running(run, one, item("2")):
        pass
    assert member.calls == ["acquire a for 1", "release 1 done 1"]


def test_an_error_that_ended_the_run_keeps_nothing_else_from_being_told(run, member, monkeypatch) -> None:
    errors = [RuntimeError("can't start new thread")]

    def take_problems() -> list[Problem]:
        if errors:
            raise errors.pop()
        return [Problem("left something", None)]

    monkeypatch.setattr(member, "take_problems", take_problems)
    run.close()
    assert run.errors == ["the run has ended early (RuntimeError: can't start new thread)", "left something"]
