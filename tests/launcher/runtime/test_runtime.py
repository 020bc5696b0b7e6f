"""What runs a server: its status is read as a whole, and what another process owns is asked of that one."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer, InferenceServerError, ServerState
from pytest_infserver.launcher.runtime.followed import FollowedRuntime, follow, note_end
from pytest_infserver.launcher.runtime.local import AttachedRuntime, LocalRuntime
from pytest_infserver.launcher.runtime.status import Status
from pytest_infserver.launcher.runtime.view import View
from pytest_infserver.launcher.supervision.exit import Exit
from pytest_infserver.system.http.address import Address

FakeServer = Callable[..., CommandServer]


def server(**settings: Any) -> CommandServer:
    return CommandServer(launch_command=["x", "{port}"], name="a", **settings)


class Owner:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def __getattr__(self, name: str) -> Callable[..., list[Path]]:
        def ask(_: object, *arguments: object) -> list[Path]:
            self.asked.append((name, *arguments) if arguments else name)
            return [Path("/trace")]

        return ask


def view(**changes: Any) -> View:
    values: dict[str, Any] = {
        "port": 8123,
        "pid": 4711,
        "supervisor_pid": 4710,
        "running": True,
        "launches": 2,
        "log_path": Path("/logs/a/server.log"),
        "launch_log_start": 50,
        "start_seconds": 1.5,
        "seconds": 10.0,
    }
    return View(**{**values, **changes})


# The status.


def test_changes_of_many_threads_are_all_kept(hard_limit: None) -> None:
    runtime = server().runtime
    fields = {"launches": 400, "launch_log_start": 400}

    def count(field: str) -> None:
        for number in range(1, 401):
            runtime.change(**{field: number})

    threads = [threading.Thread(target=count, args=(field,)) for field in fields]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {field: getattr(runtime.status, field) for field in fields} == fields


def test_nobody_changes_a_status_that_somebody_reads() -> None:
    runtime = server().runtime
    before = runtime.status
    runtime.change(state=ServerState.READY, launches=1)
    assert (before.state, before.launches) == (ServerState.NEW, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.launches = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        runtime.change(no_such_field=1)


def test_asking_for_the_state_changes_nothing(fake_server: FakeServer) -> None:
    made = fake_server().start()
    os.kill(made.pid or 0, signal.SIGKILL)
    assert made.wait_death(30)
    status = made.runtime.status
    assert (made.state, status.state) == (ServerState.DIED, ServerState.READY)
    assert made.runtime.status is status


def test_one_that_has_died_is_dead_until_it_starts_again(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake_server().start()
    made.kill()
    assert made.wait_death(30)
    seen: list[tuple[ServerState, bool]] = []

    def look(server: CommandServer) -> None:
        # Its process is gone by now, and another thread may ask.
        seen.append((made.state, made.runtime.view().running))

    monkeypatch.setattr("pytest_infserver.launcher.runtime.process_runtime.warn_of_leftovers", look)
    made.start()
    assert seen == [(ServerState.DIED, False)]
    assert made.running


@pytest.mark.parametrize(
    ("state", "launched"),
    [
        (ServerState.NEW, False),
        (ServerState.STARTING, True),
        (ServerState.READY, True),
        (ServerState.STOPPING, True),
        (ServerState.STOPPED, False),
        (ServerState.FAILED, False),
    ],
)
def test_whether_there_is_something_to_stop(state: ServerState, launched: bool) -> None:
    runtime = server().runtime
    runtime.change(state=state)
    assert runtime.launched is launched


def test_it_was_killed_only_if_kill_has_killed_it(fake_server: FakeServer) -> None:
    made = fake_server().start()
    assert not made.runtime.status.was_killed
    made.kill()
    assert made.wait_death(30)
    assert made.runtime.status.was_killed
    assert not Status(why_killed="hung and was killed").was_killed


# Which one a server has.


def test_a_server_of_ours_and_one_of_somebody_elses() -> None:
    assert type(server().runtime) is LocalRuntime
    attached = CommandServer(url="http://127.0.0.1:1", name="there")
    assert type(attached.runtime) is AttachedRuntime
    assert not attached.keep(60)
    assert attached.why_not_kept == "it was not started by us"
    assert not attached.take_over()


# A pause.


@pytest.mark.parametrize("restarts", [0, 1, 2])
def test_a_pause_outlives_restarts(fake_server: FakeServer, restarts: int) -> None:
    made = fake_server(heartbeat_interval=0.05).start()
    made.pause_heartbeat()
    made.pause_heartbeat()
    for _ in range(restarts):
        made.stop()
        made.start()
    made.resume_heartbeat()
    pulse = made.runtime.pulse()
    assert pulse is not None
    assert pulse.still
    made.resume_heartbeat()
    deadline = time.monotonic() + 30
    while (pulse := made.runtime.pulse()) is None or pulse.still or pulse.last is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # One more than was paused is forgotten.
    made.resume_heartbeat()
    made.pause_heartbeat()
    pulse = made.runtime.pulse()
    assert pulse is not None
    assert pulse.still


# A server that another process owns.


def test_what_its_owner_tells_counts() -> None:
    made = server(ports={"grpc": None})
    reach = Address(host="127.0.0.7", port=8123)
    told = view(reach=reach, secrets=frozenset({"hunter2-hunter2"}), command="x 8123", ports={"grpc": 9000})
    process = follow(made, told, Owner())  # type: ignore[arg-type]
    assert (made.state, made.pid, made.port, made.launches) == (ServerState.READY, 4711, 8123, 2)
    assert (made.reach, made.server_url) == (reach, "http://127.0.0.7:8123")
    assert "hunter2-hunter2" in made.secrets
    assert dict(made.ports) == {"grpc": 9000}
    again = made.runtime.view()
    assert (again.pid, again.command, again.start_seconds) == (4711, "x 8123", 1.5)
    assert again.seconds is not None
    assert 10 <= again.seconds < 60
    note_end(made, process, Exit(7, 0), None)
    assert made.state is ServerState.DIED
    assert "exited with code 7" in str(made.why_died())


def test_its_owner_is_asked_for_all_that_changes_it() -> None:
    made, owner = server(), Owner()
    follow(made, view(), owner)  # type: ignore[arg-type]
    made.start()
    made.stop()
    made.kill()
    made.pause_heartbeat()
    made.resume_heartbeat()
    assert owner.asked == ["start", "stop", "kill", "pause", "resume"]
    assert not made.keep(60)
    assert made.why_not_kept == "it is not this process that runs it"
    assert not made.take_over()


def test_profiles_on_another_machine_are_its_owners() -> None:
    made, owner = server(), Owner()
    follow(made, view(node="n2 (10.0.0.2)", address="10.0.0.2", remote=True), owner)  # type: ignore[arg-type]
    assert (made.node, made.host, made.remote, made.pid) == ("n2 (10.0.0.2)", "10.0.0.2", True, None)
    made.start_profile("p", "py-spy")
    assert made.stop_profile() == [Path("/trace")]
    assert owner.asked == [("start_profile", "p", "py-spy"), "stop_profile"]


def test_who_waits_for_an_end_hears_of_one_that_was_missed() -> None:
    made, owner = server(), Owner()
    first = follow(made, view(), owner)  # type: ignore[arg-type]
    assert follow(made, view(), owner) is not first  # type: ignore[arg-type]
    assert first.exit is None
    second = follow(made, view(), owner)  # type: ignore[arg-type]
    follow(made, view(pid=5000, launches=3, end=Exit(0, 0)), owner)  # type: ignore[arg-type]
    assert second.exit == Exit(0, 0)


def test_the_end_of_an_earlier_launch_is_not_that_of_this_one() -> None:
    made, owner = server(), Owner()
    first = follow(made, view(), owner)  # type: ignore[arg-type]
    follow(made, view(pid=5000, launches=3), owner)  # type: ignore[arg-type]
    note_end(made, first, Exit(-9, 0), "hung and was killed: x")
    assert made.state is ServerState.READY
    assert made.runtime.status.why_killed is None


def test_another_owner_takes_its_place_and_what_is_known_goes_on() -> None:
    made, owner, other = server(), Owner(), Owner()
    made.runtime.stop_refusal = "it is shared"
    log, profiling = made.runtime.log, made.runtime.profiling
    follow(made, view(), owner)  # type: ignore[arg-type]
    runtime = made.runtime
    assert isinstance(runtime, FollowedRuntime)
    follow(made, view(), owner)  # type: ignore[arg-type]
    assert made.runtime is runtime
    follow(made, view(), other)  # type: ignore[arg-type]
    assert made.runtime is not runtime
    assert (made.runtime.log, made.runtime.profiling) == (log, profiling)
    with pytest.raises(InferenceServerError, match="it is shared"):
        made.stop()
    made.runtime.stop_refusal = None
    made.stop()
    assert (owner.asked, other.asked) == ([], ["stop"])
