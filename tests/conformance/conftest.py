"""Servers in this process for the conformance suite, and how its statements are asked without pytest."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from pytest_infserver.conformance import areas
from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.target import Target
from pytest_infserver.system.http.address import parse_address
from pytest_infserver.system.http.fetch import Limits

from .servers.stand_in import StandIn, serving

SECONDS = 30.0
"""Limit of a request that is going to be answered."""


def pytest_configure(config: pytest.Config) -> None:
    """Know the mark of the suite's own tests."""
    config.addinivalue_line("markers", "conformance_full: a statement of --conformance-level full")


def statements() -> dict[str, FunctionType]:
    """Return the suite's tests by ``area.name``."""
    found = {}
    for module in pkgutil.walk_packages(areas.__path__, f"{areas.__name__}."):
        area = module.name.rpartition(".")[2]
        if area.startswith("test_"):
            for name, value in vars(importlib.import_module(module.name)).items():
                if name.startswith("test_") and inspect.isfunction(value):
                    found[f"{area.removeprefix('test_')}.{name.removeprefix('test_')}"] = value
    return found


def ask_all(statement: FunctionType, ask: Ask) -> None:
    """Ask one statement, with each of its parameters."""
    marks = [mark for mark in getattr(statement, "pytestmark", ()) if mark.name == "parametrize"]
    if not marks:
        statement(ask)
        return
    (mark,) = marks
    for value in mark.args[1]:
        statement(ask, value)


def ask_of(url: str, seconds: float = SECONDS, max_bytes: int = 1 << 20) -> Ask:
    """Return what asks a server."""
    return Ask(Target("one", parse_address(url), "", Limits(seconds, max_bytes)))


@pytest.fixture
def stand_in() -> Iterator[Callable[..., StandIn]]:
    """Start stand-ins: ``stand_in("no done", missing=("/v1/rerank",))``."""
    with ExitStack() as stack:

        def start(*wrong: str, **settings: Any) -> StandIn:
            return stack.enter_context(serving(StandIn(*wrong, **settings)))

        yield start


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 and its key, of an authority that nobody trusts."""
    trustme = pytest.importorskip("trustme")
    file = tmp_path / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    return file
