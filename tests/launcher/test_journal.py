"""The events of a server: in memory, and as lines beside its log."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from pytest_infserver import CommandServer, InferenceServerError, UserCodeError
from pytest_infserver.launcher.diagnosis import journal as module
from pytest_infserver.launcher.diagnosis.journal import FILE, Event, Journal


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_an_event_is_a_line_of_json_as_soon_as_it_happens(tmp_path: Path) -> None:
    journal = Journal()
    journal.open(tmp_path)
    journal.note("died", 12.34567, how="was killed by SIGKILL", cause="a\nb", path=tmp_path)
    [line] = lines(tmp_path)
    assert line == {
        "time": 12.346,
        "event": "died",
        "how": "was killed by SIGKILL",
        "cause": "a\nb",
        "path": str(tmp_path),
    }


def test_what_happened_before_the_folder_was_known_is_written_then(tmp_path: Path) -> None:
    journal = Journal()
    journal.note("starting")
    assert not list(tmp_path.iterdir())
    journal.open(tmp_path)
    journal.note("launched")
    assert [line["event"] for line in lines(tmp_path)] == ["starting", "launched"]


def test_a_restart_goes_on_in_the_file_and_another_server_replaces_it(tmp_path: Path) -> None:
    first, second, third = Journal(), Journal(), Journal()
    for _ in range(2):
        first.open(tmp_path)
        first.note("launched")
    assert len(lines(tmp_path)) == 2
    second.open(tmp_path)
    second.note("launched")
    assert len(lines(tmp_path)) == 1
    third.open(tmp_path, goes_on=True)
    third.note("taken_over")
    assert [line["event"] for line in lines(tmp_path)] == ["launched", "taken_over"]


def test_single_tests_are_written_but_not_remembered_and_memory_is_bounded(tmp_path: Path) -> None:
    journal = Journal()
    journal.open(tmp_path)
    journal.note("test", id="a")
    for _ in range(10_005):
        journal.note("phase", phase="importing")
    assert len(journal.events) == 10_000
    assert lines(tmp_path)[0]["event"] == "test"


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    journal = Journal()
    heard: list[Event] = []
    journal.on_event = heard.append
    (tmp_path / FILE).mkdir()
    journal.open(tmp_path)
    journal.note("launched")
    journal.open(tmp_path / "absent")
    journal.note("ready")
    assert [event.kind for event in journal.events] == [event.kind for event in heard] == ["launched", "ready"]


def test_a_full_disk_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(module, "open_append", lambda path: os.open("/dev/full", os.O_WRONLY))
    journal = Journal()
    journal.open(tmp_path)
    journal.note("launched")
    assert len(journal.events) == 1


@pytest.mark.usefixtures("hard_limit")
@pytest.mark.parametrize("planted", ["pipe", "link", "hard link"])
@pytest.mark.parametrize("goes_on", [True, False])
def test_what_others_have_put_there_is_neither_written_nor_waited_for(
    tmp_path: Path, planted: str, goes_on: bool
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if planted == "pipe":
        os.mkfifo(tmp_path / FILE)
    elif planted == "link":
        (tmp_path / FILE).symlink_to(precious)
    else:
        os.link(precious, tmp_path / FILE)
    journal = Journal()
    journal.open(tmp_path, goes_on=goes_on)
    journal.note("launched")
    assert len(journal.events) == 1
    assert precious.read_text() == "precious"
    if not goes_on:
        # A new server has replaced it.
        assert [line["event"] for line in lines(tmp_path)] == ["launched"]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    journal = Journal()
    journal.open(tmp_path)
    text = "x" * 5000

    def write() -> None:
        for _ in range(50):
            journal.note("phase", phase=text)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [line["phase"] for line in lines(tmp_path)] == [text] * 200


def test_text_that_is_no_unicode_does_not_break_the_file(tmp_path: Path) -> None:
    journal = Journal()
    journal.open(tmp_path)
    journal.note("failed", error="\udc80 broken")
    assert lines(tmp_path)[0]["event"] == "failed"


# A real server.


def kinds(server: CommandServer) -> list[str]:
    return [event.kind for event in server.journal.events]


@pytest.mark.usefixtures("hard_limit", "nothing_left")
def test_a_life_from_its_start_to_its_stop(fake_server: Any) -> None:
    server = fake_server()
    with server:
        assert kinds(server)[:2] == ["starting", "launched"]
        assert kinds(server)[-1] == "ready"
    assert kinds(server)[-2:] == ["stopping", "stopped"]
    written = lines(server.log_path.parent)
    assert [line["event"] for line in written] == kinds(server)
    assert written[-1]["how"] == "was killed by SIGTERM" or "exited" in written[-1]["how"]
    assert written[-1]["max_rss_bytes"] > 1_000_000
    assert server.stop_seconds is not None


@pytest.mark.usefixtures("hard_limit", "nothing_left")
def test_a_death_is_noted_once_with_its_time_and_cause(fake_server: Any) -> None:
    with fake_server() as server:
        with contextlib.suppress(requests.RequestException):
            requests.get(server.url_for("/exit?code=3"), timeout=20)
        assert server.wait_death(20)
        for _ in range(3):
            assert server.why_died()
    assert kinds(server).count("died") == 1
    [died] = [event for event in server.journal.events if event.kind == "died"]
    assert died.fields["how"] == "exited with code 3"
    [ready] = [event for event in server.journal.events if event.kind == "ready"]
    assert ready.time <= died.time


@pytest.mark.usefixtures("hard_limit", "nothing_left")
def test_a_failed_start_is_noted_with_its_reason(fake_server: Any) -> None:
    server = fake_server("--exit", "7")
    with pytest.raises(InferenceServerError):
        server.start()
    assert kinds(server)[-1] == "failed"
    assert server.journal.events[-1].fields["how"].startswith("exited with code")


def test_a_start_without_a_binary_is_noted_in_memory(tmp_path: Path) -> None:
    server = CommandServer(launch_command=["/does/not/exist", "{port}"], output_dir=str(tmp_path))
    with pytest.raises(InferenceServerError):
        server.start()
    assert kinds(server) == ["starting", "failed"]
    assert "does not exist" in server.journal.events[-1].fields["error"]


def test_whoever_listens_and_fails_keeps_no_server_from_starting_and_stopping(fake_server: Any) -> None:
    told: list[str] = []

    def fail(event: Event) -> None:
        told.append(event.kind)
        raise RuntimeError("can't start new thread")

    server = fake_server()
    server.journal.on_event = fail
    server.start()
    assert server.running
    server.stop()
    assert {"starting", "launched", "ready", "stopping", "stopped"} <= set(told)
    assert lines(server.log_path.parent)[-1]["event"] == "stopped"


def test_an_interrupt_before_the_stop_leaves_nothing_running(fake_server: Any) -> None:
    def interrupt(event: Event) -> None:
        if event.kind == "stopping":
            server.journal.on_event = lambda event: None
            raise KeyboardInterrupt

    server = fake_server()
    server.journal.on_event = interrupt
    server.start()
    pid = server.pid
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert not server.runtime.launched


def test_a_start_that_fails_tells_no_secret(fake_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = fake_server(env_vars={"MY_TOKEN": "very-secret-value-1"})

    def fail() -> None:
        raise ValueError("not with very-secret-value-1")

    monkeypatch.setattr(server, "require_engine", fail)
    with pytest.raises(UserCodeError, match="not with") as caught:
        server.start()
    assert "very-secret-value-1" not in str(caught.value)
    assert "ValueError: not with ********" in server.journal.events[-1].fields["error"]


@pytest.mark.usefixtures("hard_limit")
@pytest.mark.usefixtures("nothing_left")
def test_a_fork_does_not_wait_for_a_lock_of_its_parent(tmp_path: Path) -> None:
    journal = Journal()
    journal.open(tmp_path)
    with journal._lock:
        child = os.fork()
        if child == 0:
            journal.note("ready")
            os._exit(len(journal.events))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
