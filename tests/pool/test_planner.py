"""The planner's decisions, one situation after the other."""

from __future__ import annotations

from typing import Any

import pytest
from pool_fakes import OUTSIDE, Room

from pytest_infserver.pool.planning.decisions import Decision, Grant, Phase, Request, Sleep, Start, Stop
from pytest_infserver.pool.planning.planner import GRACE, RETRY, Planner


class Book:
    """A planner, the room, and short words for what happens."""

    def __init__(self, places: int = 2, devices: int = 0, demands: str = "a0 b0 c0 d0", **policy: Any) -> None:
        self.room = Room(places, devices, {word[0]: int(word[1:]) for word in demands.split()})
        self.planner = Planner(self.room, **policy)
        self.now = 0.0
        self.ticket = 0

    def decide(self) -> list[str]:
        return [shown(one) for one in self.planner.decide(self.now)]

    def ask(self, client: str, names: str, *, alone: bool = False) -> int:
        self.ticket += 1
        self.planner.join(client)
        self.planner.ask(Request(self.ticket, client, tuple(names), alone))
        return self.ticket

    def up(self, *names: str) -> None:
        for name in names:
            self.planner.started(name, self.now)

    def have(self, client: str, name: str, *, alone: bool = False) -> int:
        """Let a client get a server that starts for it."""
        ticket = self.ask(client, name, alone=alone)
        if f"start {name}" in self.decide():
            self.up(name)
            assert f"grant {ticket}" in self.decide()
        assert self.planner.lease(ticket) is not None
        return ticket

    def give_back(self, ticket: int) -> list[str]:
        for name in self.planner.lease(ticket).names:  # type: ignore[union-attr]
            self.planner.done(name)
        self.planner.give_back(ticket, self.now)
        return self.decide()


def shown(decision: Decision) -> str:
    if isinstance(decision, Start):
        return f"start {decision.name}"
    if isinstance(decision, Sleep):
        return f"sleep {decision.name} for {decision.room_for}"
    if isinstance(decision, Stop):
        return f"stop {decision.name}" + (f" for {decision.room_for}" if decision.room_for else "")
    return f"refuse {decision.request.ticket}" if decision.refusal else f"grant {decision.request.ticket}"


def test_a_server_starts_ahead_serves_everybody_at_once_and_stops_after_its_last_test() -> None:
    book = Book()
    for _ in range(2):
        book.planner.want("a")
    assert book.decide() == ["start a"]
    first, second = book.ask("c1", "a"), book.ask("c2", "a")
    assert book.decide() == []
    book.up("a")
    assert book.decide() == [f"grant {first}", f"grant {second}"]
    assert not book.planner.is_wanted("a")
    assert book.give_back(first) == []
    assert book.give_back(second) == ["stop a"]
    book.planner.stopped("a")
    assert book.decide() == []
    assert book.planner.phase("a") is Phase.DOWN


def test_without_prelaunch_a_server_starts_with_the_first_who_asks() -> None:
    book = Book(prelaunch=False)
    book.planner.want("a")
    assert book.decide() == []
    book.ask("c1", "a")
    assert book.decide() == ["start a"]


def test_with_linger_a_server_stays_until_its_room_is_needed() -> None:
    book = Book(places=1, linger=True)
    book.planner.want("a")
    assert book.give_back(book.have("c1", "a")) == []
    book.planner.want("b")
    assert book.decide() == ["stop a"]


def test_with_linger_only_those_are_stopped_whose_room_helps() -> None:
    book = Book(places=2, devices=1, demands="a0 b0 c0 g1", linger=True)
    for name in "abg":
        book.planner.want(name)
    book.decide()
    book.up("a", "b", "g")
    for name in "abg":
        book.planner.done(name)
    assert book.decide() == []
    book.planner.want("c")
    (stop,) = book.decide()
    assert stop in ("stop a", "stop b")
    assert book.decide() == []
    book.planner.stopped(stop[-1])
    assert book.decide() == ["start c"]


def test_a_pinned_server_stays_to_the_end() -> None:
    book = Book()
    book.planner.pin("a")
    assert book.give_back(book.have("c1", "a")) == []
    assert [shown(one) for one in book.planner.stop_all()] == ["stop a"]
    assert not book.planner.is_wanted("a")


def test_prelaunch_takes_what_room_there_is_in_order() -> None:
    book = Book(places=1)
    for name in "ab":
        book.planner.want(name)
    assert book.decide() == ["start a"]
    book.up("a")
    assert book.decide() == []
    ticket = book.ask("c1", "a")
    assert book.decide() == [f"grant {ticket}"]
    assert book.give_back(ticket) == ["stop a"]
    assert book.decide() == []
    book.planner.stopped("a")
    assert book.decide() == ["start b"]


def test_done_and_want_never_make_a_count_negative() -> None:
    book = Book()
    book.planner.done("a")
    book.planner.want("a")
    assert book.planner.is_wanted("a")
    assert book.decide() == ["start a"]


def test_an_idle_server_gives_its_place_to_one_that_is_asked_for_after_a_grace() -> None:
    book = Book(places=1)
    for _ in range(2):
        book.planner.want("a")
    ticket = book.have("c1", "a")
    book.planner.join("c3")
    book.now = 5.0
    book.give_back(ticket)
    wanted = book.ask("c2", "b")
    # c1 or c3 may come back to it with the next test.
    assert book.decide() == []
    assert book.planner.wake == 5.0 + GRACE
    book.now += GRACE
    assert book.decide() == ["stop a for b"]
    book.planner.stopped("a")
    assert book.decide() == ["start b"]
    book.up("b")
    assert book.decide() == [f"grant {wanted}"]


def test_there_is_no_grace_where_everybody_waits() -> None:
    book = Book(places=1)
    for _ in range(2):
        book.planner.want("a")
    book.give_back(book.have("c1", "a"))
    book.ask("c1", "b")
    assert book.decide() == ["stop a for b"]


def test_the_least_missed_is_stopped_and_only_if_its_room_helps() -> None:
    book = Book(places=1, devices=2, demands="a0 b1 c1 d1")
    for name in "abc":
        book.planner.want(name)
    book.decide()
    book.up("a", "b", "c")
    book.now = 9.0
    book.ask("c1", "d")
    book.planner.done("a")
    # a goes because nobody wants it; its place is no GPU for d.
    assert book.decide() == ["stop b for d", "stop a"]


def test_a_start_that_nobody_asks_for_is_given_up_for_one_that_is_asked_for() -> None:
    book = Book(places=1)
    book.planner.want("a")
    assert book.decide() == ["start a"]
    book.ask("c1", "b")
    assert book.decide() == ["stop a for b"]


def test_who_wants_a_server_alone_gets_it_alone_and_before_those_who_come_later() -> None:
    book = Book()
    for _ in range(4):
        book.planner.want("a")
    first = book.have("c1", "a")
    alone, later = book.ask("c2", "a", alone=True), book.ask("c3", "a")
    assert book.decide() == []
    assert book.give_back(first) == [f"grant {alone}"]
    assert book.decide() == []
    assert book.give_back(alone) == [f"grant {later}"]


def test_several_servers_are_given_together_or_not_at_all() -> None:
    book = Book(places=3)
    alone = book.have("c1", "b", alone=True)
    both = book.ask("c2", "ab")
    assert book.decide() == ["start a"]
    book.up("a")
    assert book.decide() == []
    assert book.planner.leases("a") == []
    assert book.give_back(alone) == [f"grant {both}"]
    assert [lease.ticket for name in "ab" for lease in book.planner.leases(name)] == [both, both]


def test_a_failed_start_is_told_to_all_who_ask_and_nobody_gets_a_lease() -> None:
    book = Book()
    first = book.ask("c1", "a")
    assert book.decide() == ["start a"]
    book.planner.start_failed("a")
    assert book.decide() == [f"grant {first}"]
    assert book.planner.lease(first) is None
    second = book.ask("c2", "a")
    assert book.decide() == [f"grant {second}"]
    assert not book.room.placed


def test_who_asks_for_a_failed_server_gets_no_lease_on_one_that_another_has_alone() -> None:
    book = Book(places=3)
    book.planner.give_up("a")
    alone = book.have("c1", "b", alone=True)
    both = book.ask("c2", "ab", alone=True)
    assert book.decide() == [f"grant {both}"]
    assert [lease.ticket for lease in book.planner.leases("b")] == [alone]


def test_a_server_that_died_keeps_its_room_and_starts_again() -> None:
    book = Book(places=1)
    for _ in range(2):
        book.planner.want("a")
    ticket = book.have("c1", "a")
    book.planner.died("a")
    assert book.decide() == ["start a"]
    book.up("a")
    assert book.give_back(ticket) == []
    assert book.planner.phase("a") is Phase.UP


def test_a_server_that_died_and_is_wanted_no_more_is_stopped_when_its_last_user_is_done() -> None:
    book = Book()
    ticket = book.have("c1", "a")
    book.planner.died("a")
    assert book.decide() == []
    assert book.give_back(ticket) == ["stop a"]


def test_one_that_was_given_up_is_stopped_although_tests_want_it() -> None:
    book = Book()
    for _ in range(3):
        book.planner.want("a")
    ticket = book.have("c1", "a")
    book.planner.died("a")
    book.planner.give_up("a")
    assert book.decide() == []
    assert book.give_back(ticket) == ["stop a"]
    book.planner.stopped("a")
    assert book.decide() == []


def test_a_client_that_is_gone_takes_its_wishes_along() -> None:
    book = Book(places=1)
    ticket = book.have("c1", "a")
    wish = book.ask("c1", "b")
    assert book.planner.leave("c1") == ([wish], [ticket])
    assert book.give_back(ticket) == ["stop a"]
    book.planner.stopped("a")
    assert book.decide() == []


def test_a_server_that_ran_already_is_up_at_once() -> None:
    book = Book()
    book.planner.want("a")
    book.room.claim("a")
    book.planner.adopted("a", 0.0)
    assert book.decide() == []
    ticket = book.ask("c1", "a")
    assert book.decide() == [f"grant {ticket}"]


def test_room_that_another_run_holds_is_asked_for_again() -> None:
    book = Book(devices=1, demands="a1 b0")
    book.room.holders[0] = OUTSIDE
    book.ask("c1", "a")
    assert book.decide() == []
    assert book.planner.short == {"a"}
    assert book.planner.wake == RETRY
    # It does not keep others from theirs.
    ticket = book.have("c2", "b")
    assert book.planner.lease(ticket) is not None
    book.room.holders[0] = None
    book.now = RETRY
    assert book.decide() == ["start a"]
    assert book.planner.short == set()


def test_room_that_is_wanted_ahead_and_held_by_another_run_is_known_to_be_short() -> None:
    book = Book(devices=1, demands="a1")
    book.room.holders[0] = OUTSIDE
    book.planner.want("a")
    assert book.decide() == []
    assert book.planner.short == {"a"}


def test_nobody_who_comes_later_takes_the_room_that_others_are_stopped_for() -> None:
    book = Book(devices=2, demands="a1 b2 c1")
    book.room.holders[1] = OUTSIDE
    big = book.ask("c2", "b")
    book.ask("c1", "ac")
    assert book.decide() == ["start a"]
    book.up("a")
    book.room.holders[1] = None
    assert book.decide() == ["stop a"]
    # c would fit on the other GPU, and b would never come to its two.
    assert book.decide() == []
    book.planner.stopped("a")
    assert book.decide() == ["start b"]
    book.up("b")
    assert book.decide() == [f"grant {big}"]


def test_who_holds_something_is_served_before_those_who_wait_for_its_room() -> None:
    book = Book(places=2)
    book.have("c1", "a")
    book.ask("c2", "bc")
    assert book.decide() == ["start b"]
    book.up("b")
    assert book.decide() == []
    nested = book.ask("c1", "d")
    assert book.decide() == ["stop b"]
    book.planner.stopped("b")
    assert book.decide() == ["start d"]
    book.up("d")
    assert book.decide() == [f"grant {nested}"]
    assert not book.room.beyond


def test_a_test_that_needs_more_places_than_were_planned_for_gets_them_rather_than_wait_for_itself() -> None:
    book = Book(places=1)
    book.have("c1", "a")
    nested = book.ask("c1", "b")
    assert book.decide() == ["start b"]
    assert book.room.beyond == ["b"]
    book.up("b")
    assert book.decide() == [f"grant {nested}"]


def test_a_test_that_needs_more_gpus_than_there_are_beside_its_own_is_refused() -> None:
    book = Book(devices=1, demands="a1 b1")
    book.have("c1", "a")
    nested = book.ask("c1", "b")
    (decision,) = book.planner.decide(0.0)
    assert isinstance(decision, Grant)
    assert decision.request.ticket == nested
    assert "infserver_needs" in str(decision.refusal)
    assert book.decide() == []


def test_two_who_wait_for_each_other_are_told_apart() -> None:
    book = Book(places=2)
    first, second = book.have("c1", "a", alone=True), book.have("c2", "b", alone=True)
    one = book.ask("c1", "b")
    assert book.decide() == []
    other = book.ask("c2", "a")
    assert book.decide() == [f"refuse {one}"]
    assert book.give_back(first) == [f"grant {other}"]
    assert book.planner.lease(second) is not None


def test_who_wants_alone_what_it_shares_already_is_refused_also_if_others_use_it() -> None:
    book = Book()
    book.have("c1", "a")
    book.have("c2", "a")
    ticket = book.ask("c1", "a", alone=True)
    assert book.decide() == [f"refuse {ticket}"]


def test_who_waits_for_somebody_that_waits_for_a_start_is_in_no_deadlock() -> None:
    book = Book(places=3)
    held = book.have("c2", "b", alone=True)
    book.have("c1", "a")
    book.ask("c2", "c")
    assert book.decide() == ["start c"]
    wish = book.ask("c1", "b")
    assert book.decide() == []
    book.up("c")
    assert book.decide() == ["grant 3"]
    assert book.give_back(held) == [f"grant {wish}"]


def test_who_waits_for_one_of_several_servers_that_nobody_uses_is_in_no_deadlock() -> None:
    book = Book(places=4)
    book.have("c1", "a")
    book.planner.pin("b")
    assert book.decide() == ["start b"]
    book.up("b")
    wish = book.ask("c1", "bc")
    assert book.decide() == ["start c"]
    book.up("c")
    assert book.decide() == [f"grant {wish}"]


def test_no_more_places_than_planned_while_a_stop_is_about_to_give_one_back() -> None:
    book = Book(places=3)
    first = book.have("c1", "a")
    book.have("c2", "b")
    book.planner.want("c")
    assert book.decide() == ["start c"]
    book.up("c")
    book.planner.done("c")
    assert book.decide() == ["stop c"]
    book.ask("c1", "d")
    book.ask("c2", "dc")
    assert book.decide() == []
    assert not book.room.beyond
    book.planner.stopped("c")
    assert "start d" in book.decide()
    assert book.planner.lease(first) is not None


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.UP, Phase.DEAD, Phase.STOPPING])
def test_the_end_stops_what_runs_whoever_uses_it(phase: Phase) -> None:
    book = Book()
    book.planner.want("a")
    book.decide()
    if phase is not Phase.STARTING:
        book.up("a")
        book.have("c1", "a")
    if phase is Phase.DEAD:
        book.planner.died("a")
    if phase is Phase.STOPPING:
        assert book.give_back(1) == ["stop a"]
    book.ask("c2", "b")
    stops = [shown(one) for one in book.planner.stop_all()]
    assert stops == ([] if phase is Phase.STOPPING else ["stop a"])
    book.planner.stopped("a")
    assert book.decide() == []
    assert not book.room.placed


def test_servers_start_in_the_order_of_the_tests_whoever_was_asked_about_first() -> None:
    book = Book(places=1)
    assert not book.planner.is_wanted("b")
    for name in "aba":
        book.planner.want(name)
    assert book.decide() == ["start a"]


def test_one_that_sleeps_on_the_gpu_of_another_that_its_test_has_is_started_elsewhere() -> None:
    book = Book(devices=2, demands="a1 b2 c1", prelaunch=False, may_sleep=lambda name, room_for: name == "a")
    for name in "aabc":
        book.planner.want(name)
    book.give_back(book.have("c1", "a"))
    book.now += 2 * GRACE
    wish = book.ask("c1", "b")
    assert book.decide() == ["sleep a for b"]
    book.planner.slept("a")
    assert book.decide() == ["start b"]
    book.up("b")
    assert book.decide() == [f"grant {wish}"]
    assert book.give_back(wish) == ["stop b"]
    book.planner.stopped("b")
    # It has the GPU on which "a" sleeps.
    book.have("c1", "c")
    wish = book.ask("c1", "a")
    assert book.decide() == ["stop a"]
    book.planner.stopped("a")
    assert book.decide() == ["start a"]
    book.up("a")
    assert book.decide() == [f"grant {wish}"]


@pytest.mark.parametrize("needs", [{"a": ["c"]}, {"c": ["a"]}])
def test_a_group_is_stopped_together(needs: dict[str, list[str]]) -> None:
    book = Book(
        devices=1,
        demands="a1 b1 c0",
        prelaunch=False,
        needs=lambda name: needs.get(name, ()),
        may_sleep=lambda name, room_for: True,
    )
    for name in "abc":
        book.planner.want(name)
        book.planner.want(name)
    if needs == {"a": ["c"]}:
        book.give_back(book.have("c1", "c"))
    book.give_back(book.have("c1", "a"))
    book.now += 2 * GRACE
    book.ask("c1", "b")
    assert book.decide() == ["stop a for b"]


def test_what_is_expected_starts_and_stops_when_no_test_wants_it() -> None:
    book = Book(places=2)
    for name in "abc":
        book.planner.expect(name)
    assert book.decide() == ["start a", "start b"]
    book.up("a")
    book.planner.want("a")
    book.planner.want("c")
    assert book.planner.expect_no_more() == (["b"], [])
    # Its start is not waited for.
    assert book.decide() == ["stop b"]
    book.planner.stopped("b")
    assert book.decide() == ["start c"]


def test_what_was_expected_in_vain_is_not_kept() -> None:
    book = Book(linger=True)
    for name in "ab":
        book.planner.expect(name)
    assert book.decide() == ["start a", "start b"]
    book.up("a", "b")
    book.planner.want("a")
    assert book.planner.expect_no_more() == (["b"], [])
    assert book.decide() == ["stop b"]
    assert book.give_back(book.have("main", "a")) == []


def test_a_start_that_was_expected_and_failed_is_tried_again_once_it_is_wanted() -> None:
    book = Book()
    book.planner.expect("a")
    assert book.decide() == ["start a"]
    book.planner.start_failed("a")
    assert book.decide() == []
    book.planner.want("a")
    assert book.planner.expect_no_more() == ([], ["a"])
    assert book.decide() == ["start a"]
    assert book.planner.start_failed("a")
    assert book.planner.expect_no_more() == ([], [])
    assert book.decide() == []


def test_a_start_that_was_expected_and_fails_only_when_it_is_wanted_is_made_again_once() -> None:
    book = Book()
    book.planner.expect("a")
    assert book.decide() == ["start a"]
    book.planner.want("a")
    assert book.planner.expect_no_more() == ([], [])
    # Also for the workers that plan after the first one.
    assert book.planner.expect_no_more() == ([], [])
    assert not book.planner.start_failed("a")
    assert book.decide() == ["start a"]
    assert book.planner.start_failed("a")
    assert book.decide() == []


def test_one_that_was_ready_in_time_has_no_start_left_over() -> None:
    book = Book()
    book.planner.expect("a")
    assert book.decide() == ["start a"]
    book.planner.want("a")
    book.planner.expect_no_more()
    book.up("a")
    book.planner.died("a")
    assert book.decide() == ["start a"]
    assert book.planner.start_failed("a")
