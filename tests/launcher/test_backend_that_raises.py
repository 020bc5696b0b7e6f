"""A backend of the user's that raises, in each of its methods and properties and at each moment of a server's life."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer, ConfigError, LeakError, ServerConfig, ServerState, UserCodeError
from pytest_infserver.launcher.backends import registry
from pytest_infserver.launcher.factory import create_from_config
from pytest_infserver.launcher.health.liveness import notice_death
from pytest_infserver.launcher.runtime.followed import follow
from pytest_infserver.launcher.runtime.local import LocalRuntime

pytestmark = pytest.mark.usefixtures("nothing_left", "hard_limit")

LIMIT = 20.0
ENGINE = str(Path(__file__).parent.parent / "fake_engine.py")
COMMAND = [sys.executable, "-S", ENGINE, "--host", "{host}", "--port", "{port}"]
METHODS = ["get_backend_name", "get_binary_path", "get_launch_command", "get_health_endpoint", "derived_ports"]
PROPERTIES = ["endpoint_paths", "api_key", "api_key_variables", "fatal_patterns", "download_patterns", "phases"]
PROPERTIES += ["first_phase", "changed_options", "install_hint"]


class Mine(CommandServer):
    """Runs the fake engine; raises where it is told to."""

    raising: BaseException | None = None
    calls: list[int]

    def get_backend_name(self) -> str:
        return "mine-that-raises"

    def get_launch_command(self) -> list[str]:
        self.calls.append(self.port)
        return super().get_launch_command()


def users_code_that_raises(name: str, error: BaseException) -> type[Mine]:
    """Return a backend whose method or property raises once its server is ``armed``."""

    def users_function(self: Any, *arguments: Any) -> Any:
        if getattr(self, "armed", False):
            raise error
        return getattr(super(broken, self), name)(*arguments)

    def users_property(self: Any) -> Any:
        if getattr(self, "armed", False):
            raise error
        return getattr(super(broken, self), name)

    method = callable(getattr(Mine, name))
    broken = type("Broken", (Mine,), {name: users_function if method else property(users_property)})
    return broken


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Make a server: ``make(backend, "--say", "x", debug_mode=True)``."""
    made: list[Mine] = []

    def make(backend: type[Mine] = Mine, *arguments: str, **settings: Any) -> Mine:
        settings = {"output_dir": tmp_path / "server_logs", "startup_timeout": 30, "name": "a", **settings}
        server = backend(launch_command=[*COMMAND, *arguments], **settings)
        server.calls = []
        made.append(server)
        return server

    yield make
    for server in made:
        server.armed = False  # type: ignore[attr-defined]
        server.stop()


# Where one method of a backend asks another one the first is the one that has raised.
OUTER = {"get_binary_path": "get_launch_command", "endpoint_paths": "get_health_endpoint"}


def assert_told(error: BaseException, name: str) -> None:
    text = str(error)
    assert f"Broken.{OUTER.get(name, name)}" in text.splitlines()[0]
    assert "KeyError: 'users bug'" in text.splitlines()[0]
    assert "in users_" in text
    assert "pytest_infserver/" not in text


@pytest.mark.parametrize("name", [*METHODS[1:], *PROPERTIES])
def test_while_it_starts_the_start_fails(make, name: str) -> None:
    server = make(users_code_that_raises(name, KeyError("users bug")), host="0.0.0.0")
    server.armed = True
    with pytest.raises(UserCodeError) as caught:
        server.start()
    assert_told(caught.value, name)
    assert server.state is ServerState.FAILED
    assert server.runtime.starting_seconds is None
    assert server.pid is None
    server.armed = False
    assert server.start().running


@pytest.mark.parametrize("name", ["cause_patterns", "noise_patterns", "fatal_patterns"])
def test_what_a_failed_start_is_searched_with(make, name: str) -> None:
    server = make(users_code_that_raises(name, KeyError("users bug")), "--exit", "3")
    server.armed = True
    with pytest.raises(Exception, match=f"Broken.{name} raised KeyError: 'users bug'"):
        server.start()
    assert server.state is ServerState.FAILED


@pytest.mark.parametrize("name", ["get_backend_name", "requires_model", "config_keys"])
def test_while_it_is_configured_that_is_an_error_of_the_configuration(monkeypatch, name: str) -> None:
    backend = users_code_that_raises(name, KeyError("users bug"))
    backend.armed = True  # type: ignore[attr-defined]
    monkeypatch.setitem(registry._registered, "broken", backend)
    with pytest.raises(ConfigError) as caught:
        create_from_config(ServerConfig(backend="broken", launch_command=("x", "{port}")))
    assert f"Broken.{name}" in str(caught.value)
    assert "KeyError: 'users bug'" in str(caught.value)
    assert "in users_" in str(caught.value)


def test_a_backend_that_cannot_be_made_is_an_error_of_the_configuration(monkeypatch) -> None:
    class Broken(Mine):
        def __init__(self, **settings: Any) -> None:
            raise OSError("users bug")

    monkeypatch.setitem(registry._registered, "broken", Broken)
    with pytest.raises(ConfigError, match=r"(?s)Broken\(\) raised OSError: users bug.*in __init__"):
        create_from_config(ServerConfig(backend="broken"))


@pytest.mark.parametrize("error", [KeyError("users bug"), SystemExit(3), pytest.skip.Exception("users bug")])
def test_while_it_is_checked(make, error: BaseException) -> None:
    server = make(users_code_that_raises("get_health_endpoint", error), heartbeat_interval=0.05).start()
    server.armed = True
    with pytest.raises(UserCodeError, match=type(error).__name__):
        server.check_health()
    # The heartbeat goes on and says so.
    deadline = time.monotonic() + LIMIT
    while (pulse := server.runtime.pulse()) is None or "could not be asked" not in str(pulse.last):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "\n" not in str(pulse.last)
    server.armed = False
    while not server.runtime.pulse().last.ok:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_that_nobody_can_ask_it_is_no_sign_of_its_end(make) -> None:
    server = make(users_code_that_raises("get_health_endpoint", KeyError("users bug"))).start()
    server.armed = True
    notice_death(server)
    begin = time.monotonic()
    with pytest.raises(UserCodeError):
        notice_death(server, thorough=True)
    # It would be waited for 6 s if it seemed to be on its way.
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("name", ["cause_patterns", "noise_patterns"])
def test_when_it_has_died(make, name: str) -> None:
    server = make(users_code_that_raises(name, KeyError("users bug"))).start()
    server.armed = True
    server.runtime.process.stop(0)
    assert server.wait_death(LIMIT)
    reason = server.why_died()
    assert reason.startswith("a (mine-that-raises) ")
    assert f"Broken.{name} raised KeyError: 'users bug'" in reason
    assert "in users_property" in reason


def test_when_it_is_stopped_it_is_gone_all_the_same(make) -> None:
    server = make(users_code_that_raises("known_leftovers", KeyError("users bug")), debug_mode=True).start()
    server.armed = True
    with pytest.raises(UserCodeError) as caught:
        server.stop()
    assert_told(caught.value, "known_leftovers")
    assert (server.state, server.pid) == (ServerState.STOPPED, None)
    assert server.leak_report is not None


def test_what_it_leaves_is_known_even_so(make) -> None:
    backend = users_code_that_raises("known_leftovers", KeyError("users bug"))
    words = ["--children", "1", "--stubborn-children", "--forget-children"]
    server = make(backend, *words, debug_mode=True, stop_timeout=1).start()
    server.armed = True
    with pytest.raises((UserCodeError, LeakError)):
        server.stop()
    assert [finding.kind for finding in server.leak_report.findings] == ["process"]


# How often it is asked.


def test_its_command_is_asked_for_once_in_a_start(make) -> None:
    server = make(port=8471)
    for start in (1, 2):
        server.start()
        assert server.calls == [8471] * start
        assert (server.api_key, server.secrets) == (None, server.command().secrets)
        server.list_endpoints()
        server.stop()
    assert server.calls == [8471] * 2


def test_another_port_is_another_command(make, monkeypatch) -> None:
    server = make()
    server.start()
    assert server.calls.count(server.port) == 1
    assert len(server.calls) <= 2
    assert str(server.port) in server.command().argv


def test_who_only_follows_a_server_asks_nothing(make) -> None:
    owner = make().start()
    follower = make()
    follow(follower, owner.runtime.view(), None)
    for _ in range(3):
        assert (follower.api_key, follower.secrets) == (None, owner.secrets)
        assert follower.check_health()
    assert follower.calls == []
    follower.runtime = LocalRuntime(follower)
