"""What a node is told is plain data, and only the run that has told it may ask for more than anybody."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.cluster.messages import Order
from pytest_infserver.cluster.node import node_server
from pytest_infserver.cluster.node.node_server import NodeServer
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.version import __version__

SECRET = "a secret of the run's"


def order(**changes: Any) -> Order:
    values: dict[str, Any] = {
        "version": __version__,
        "backend": "command",
        "backend_class": None,
        "keywords": {"launch_command": ["x"], "env_vars": {"A": None, "B": "é\udcff"}, "cpus": 1.5},
        "node": "one (127.0.0.5)",
        "address": "127.0.0.5",
        "port": 8000,
        "user": "pid 1",
        "secret": SECRET,
    }
    return Order(**{**values, **changes})


def test_it_arrives_as_it_was() -> None:
    for sent in (order(), order(backend_class=b"\x80\x05\xff", port=None), order(keywords={})):
        assert Order.from_json(sent.as_json()) == sent


def test_what_is_no_json_is_told_as_the_plain_data_that_it_stands_for() -> None:
    keywords = {"model": Path("/m"), "ready": ({"tcp": True},), "names": {"b", "a"}, "config": OrderedDict(a=1)}
    told = Order.from_json(order(keywords=keywords).as_json()).keywords
    assert told == {"model": "/m", "ready": [{"tcp": True}], "names": ["a", "b"], "config": {"a": 1}}


def test_a_setting_that_is_an_object_is_refused() -> None:
    with pytest.raises(InferenceServerError, match="cannot be told to a node: object is no plain value"):
        order(keywords={"model": object()}).as_json()


@pytest.mark.parametrize("config", [{1: 2}, {"a": [{"b": {None: 1}}]}, {"a": ({True: 1},)}])
def test_a_key_that_json_would_change_is_refused(config: dict[Any, Any]) -> None:
    with pytest.raises(InferenceServerError, match=r"cannot be told to a node: write the key .* as text"):
        order(keywords={"config": config}).as_json()


def test_another_version_is_told_as_such_whatever_it_has_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {"version": "9.9", "node": "one", "secret": SECRET, "something": "new"}
    with pytest.raises(InferenceServerError, match=r"one has pytest-infserver .*, and this run 9\.9: install the same"):
        Order.from_json(json.dumps(sent).encode())
    # It is there to say so.
    monkeypatch.setattr(node_server, "ServerOnNode", Server)
    actor: Any = NodeServer(json.dumps(sent).encode())
    assert actor.describe() == "described"


def test_neither_its_secret_nor_its_settings_are_shown() -> None:
    assert SECRET not in repr(order())
    assert "launch_command" not in repr(order())


@pytest.mark.parametrize("data", [pickle.dumps(order()), b"", b"{}", json.dumps({"version": "1"}).encode()])
def test_what_is_no_order_is_not_carried_out(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_server, "ServerOnNode", lambda order: pytest.fail("it was carried out"))
    with pytest.raises((ValueError, KeyError)):
        NodeServer(data)


class Server:
    _private = True

    def __init__(self, order: bytes) -> None:
        self.called: list[str] = []

    def kill(self) -> str:
        self.called.append("kill")
        return "killed"

    def describe(self) -> str:
        return "described"

    def stop_for(self, who: str) -> bool:
        self.called.append(who)
        return True


def test_only_who_knows_the_secret_may_ask_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_server, "ServerOnNode", Server)
    actor: Any = NodeServer(order().as_json())
    for secret, method in (
        ("", "kill"),
        ("another", "kill"),
        (SECRET[:-1], "kill"),
        ("é", "kill"),
        (SECRET, "_private"),
    ):
        with pytest.raises(InferenceServerError, match="belongs to another run"):
            actor.ask(secret, method)
    assert actor._server.called == []
    assert actor.ask(SECRET, "kill") == "killed"
    # What `infserver ps` and `infserver stop` ask.
    assert (actor.describe(), actor.stop_for("somebody")) == ("described", True)
    assert [name for name in vars(NodeServer) if not name.startswith("_")] == ["ask", "describe", "stop_for"]
