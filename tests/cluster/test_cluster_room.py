from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver.cluster.connection.nodes import Node
from pytest_infserver.cluster.placement import room as room_module
from pytest_infserver.cluster.placement.demand import Demand
from pytest_infserver.cluster.placement.room import ClusterRoom
from pytest_infserver.errors import InferenceServerError


class Books:
    """A cluster, as far as its books go."""

    def __init__(self, **cpus: float) -> None:
        self.free = dict(cpus)
        self.total = dict(cpus)
        self.dead: set[str] = set()
        self.down = False
        self.connection = SimpleNamespace(nodes=self.nodes)

    def nodes(self, limit: float = 0) -> list[Node]:
        if self.down:
            raise InferenceServerError("nobody answers")
        return [
            Node(name, name, name, name not in self.dead, {"CPU": self.total[name]}, {"CPU": self.free[name]})
            for name in self.total
        ]


@pytest.fixture
def make_room(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(room_module, "_FRESH", -1.0)

    def make(books: Books, limit: int | None = None, **cpus: float) -> ClusterRoom:
        room = ClusterRoom(books, {}, limit)  # type: ignore[arg-type]
        room.__dict__["_configured"] = {name: Demand(0, amount) for name, amount in cpus.items()}
        return room

    return make


def test_ahead_of_time_only_what_is_free_is_taken(make_room: Any) -> None:
    books = Books(one=4, two=4)
    room = make_room(books, a=4, b=4)
    books.free["one"] = 0
    assert room.claim("a", ahead=True)
    books.free["two"] = 0
    assert not room.claim("b", ahead=True)
    # Who asks waits in Ray's queue for what others have.
    assert room.claim("b")


def test_servers_of_this_run_are_in_the_way_until_they_are_gone(make_room: Any) -> None:
    room = make_room(Books(one=4, two=2), a=4, b=2, c=3)
    assert room.claim("a")
    assert room.claim("b")
    assert not room.claim("c")
    assert not room.claim("c", beyond=True)
    assert not room.fits("c", ["b"])
    assert room.fits("c", ["a"])
    assert room.holders("c") == {"a", "b"}
    room.release("a")
    assert room.claim("c")


def test_what_has_become_too_large_goes_on_to_its_start_which_says_why(make_room: Any) -> None:
    books = Books(one=4, two=2)
    room = make_room(books, a=4)
    books.dead.add("one")
    assert room.claim("a")


def test_shortage_has_the_arithmetic(make_room: Any) -> None:
    room = make_room(Books(one=4, two=2), a=3, b=3, c=5)
    assert room.shortage(["a"]) is None
    assert room.shortage(["c"]) == "c needs 5 CPUs, and the cluster has one: 4 CPUs; two: 2 CPUs"
    assert room.shortage(["a", "b"]) == (
        "needs a: 3 CPUs; b: 3 CPUs together, and the cluster has one: 4 CPUs; two: 2 CPUs"
    )


def test_the_users_limit_holds_unless_there_is_no_other_way(make_room: Any) -> None:
    room = make_room(Books(one=4), 1, a=1, b=1)
    assert room.shortage(["a", "b"]) == (
        "needs 2 servers at the same time (a, b), and --infserver-max-servers allows 1"
    )
    assert room.claim("a")
    assert not room.claim("b")
    assert not room.fits("b", ())
    assert room.fits("b", ["a"])
    assert room.claim("b", beyond=True)


def test_attached_servers_take_no_room(make_room: Any) -> None:
    room = make_room(Books(one=1), 1, a=1)
    assert room.claim("a")
    assert room.claim("elsewhere")
    assert room.fits("elsewhere", ())
    assert room.shortage(["a", "elsewhere"]) is None


def test_a_head_that_does_not_answer_leaves_what_was_known(make_room: Any) -> None:
    books = Books(one=4)
    room = make_room(books, a=4)
    assert room.fits("a", ())
    books.down = True
    assert room.fits("a", ())
