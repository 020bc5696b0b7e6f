"""The pool alone, with servers that are only objects."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.errors import InferenceServerError, LeakError, ServerDiedError, ServerStartupError
from pytest_infserver.launcher.liveness import notice_death
from pytest_infserver.pool.pool import MAX_RESTARTS, Pool


class Fake:
    """As much of a server as the pool looks at."""

    attached = True
    log_path = Path("server.log")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "new"
        self.launches = 0
        self.log_size = 100
        self.launch_log_start = 40
        self.refusal: str | None = None
        self.start_error: Exception | None = None
        self.stop_error: Exception | None = None

    @property
    def running(self) -> bool:
        return self.state == "ready"

    @property
    def launched(self) -> bool:
        return self.state in ("ready", "died")

    def start(self) -> None:
        self.launches += 1
        if self.start_error is not None:
            self.state = "failed"
            raise self.start_error
        self.state = "ready"

    def stop(self) -> None:
        assert self.refusal is None
        self.state = "stopped"
        if self.stop_error is not None:
            raise self.stop_error

    def why_died(self) -> str | None:
        return f"{self.name} died" if self.state == "died" else None

    def refuse_stop(self, reason: str | None) -> None:
        self.refusal = reason

    def __str__(self) -> str:
        return self.name


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, events: list[str]) -> Pool:
    monkeypatch.setattr("pytest_infserver.launcher.factory.create_from_config", Fake)

    def note(word: str) -> Any:
        return lambda server: events.append(f"{word} {server.name} {server.state}")

    configs: Any = {"a": "a", "b": "b"}
    hooks = {word: note(word) for word in ("started", "stopping", "stopped")}
    return Pool(configs, progress=lambda text: None, **hooks)


def fake(pool: Pool, name: str = "a") -> Any:
    return pool.server(name)


def test_a_server_starts_with_its_first_lease_and_is_unwanted_after_its_last(pool, events) -> None:
    pool.plan(["a", "a", "b"])
    assert events == []
    first, second = pool.acquire("a"), pool.acquire("a")
    assert first.server is second.server is pool.server("a")
    assert first.error is None
    assert first.log_start == 100
    assert events == ["started a ready"]
    pool.done("a")
    assert pool.unwanted() == []
    assert pool.unwanted(soon="a") == ["a"]
    assert pool.unwanted(soon="b") == []
    pool.done("a")
    assert pool.unwanted() == pool.launched() == ["a"]
    assert pool.stop("a") == []
    assert events == ["started a ready", "stopping a ready", "stopped a stopped"]
    assert pool.launched() == []


def test_a_server_that_is_kept_is_never_unwanted_but_closed(pool, events) -> None:
    pool.plan([])
    pool.keep("a")
    pool.acquire("a")
    assert pool.unwanted() == []
    assert pool.close() == []
    assert events[-1] == "stopped a stopped"


def test_a_test_may_not_stop_it_before_or_after(pool) -> None:
    server = pool.acquire("a").server
    assert "shared with other tests" in fake(pool).refusal
    pool.stop("a")
    assert "has been stopped" in fake(pool).refusal
    assert server is pool.server("a")


def test_a_failed_start_is_remembered_and_its_log_shown_once(pool, events) -> None:
    fake(pool).start_error = ServerStartupError("no")
    first, second = pool.acquire("a"), pool.acquire("a")
    assert first.error is second.error is fake(pool).start_error
    assert fake(pool).launches == 1
    assert (first.log_start, second.log_start) == (40, 100)
    assert events == []
    assert pool.close() == []


def test_an_error_of_a_backend_is_a_start_error_with_the_users_traceback(pool) -> None:
    fake(pool).start_error = ValueError("users bug")
    error = pool.acquire("a").error
    assert isinstance(error, ServerStartupError)
    assert "ValueError: users bug" in str(error)
    assert "pytest_infserver/" not in str(error)


def test_a_dead_server_is_restarted_three_times(pool, events) -> None:
    pool.plan(["a"] * 9)
    for _ in range(MAX_RESTARTS + 1):
        lease = pool.acquire("a")
        assert lease.error is None
        fake(pool).state = "died"
        assert pool.death(lease.server) == "a died"
        assert pool.death(lease.server) is None
    assert isinstance(pool.acquire("a").error, ServerDiedError)
    assert fake(pool).launches == MAX_RESTARTS + 1
    assert pool.incidents == []
    assert pool.close() == []


def test_a_death_that_nobody_was_told_of_is_an_incident(pool) -> None:
    pool.acquire("a")
    fake(pool).state = "died"
    assert pool.acquire("a").error is None
    assert pool.incidents == ["between two tests: a died"]
    fake(pool).state = "died"
    pool.close()
    assert len(pool.incidents) == 2


def test_what_goes_wrong_at_a_stop_keeps_no_other_server_from_it(pool, events) -> None:
    pool.acquire("a")
    pool.acquire("b")
    fake(pool).stop_error = LeakError("left something")
    fake(pool, "b").stop_error = RuntimeError("users bug")
    errors = pool.close()
    assert errors[0] == "left something"
    assert "RuntimeError: users bug" in errors[1]
    assert events[-1] == "stopped b stopped"
    assert pool.close() == []


@pytest.mark.parametrize("word", ["_stopping", "_stopped"])
def test_a_hook_that_raises_does_not_keep_the_server_alive(pool, word) -> None:
    def hook(server: object) -> None:
        raise InferenceServerError("users bug")

    setattr(pool, word, hook)
    pool.acquire("a")
    assert pool.stop("a") == ["users bug"]
    assert fake(pool).state == "stopped"


class Listener:
    """A server for `notice_death`: with or without somebody on its port."""

    attached = False
    running = True
    host = "127.0.0.1"

    def __init__(self, port: int, pid: int | None = None) -> None:
        self.port = port
        self.pid = pid
        self.server_url = f"http://127.0.0.1:{port}"
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
