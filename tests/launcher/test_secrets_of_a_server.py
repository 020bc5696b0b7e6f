"""What a server tells of itself has no secrets in it, whoever asks and whatever goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_infserver import CommandServer, ProfileError, ServerStartupError
from pytest_infserver.launcher.diagnosis import messages
from pytest_infserver.launcher.diagnosis.journal import Journal
from pytest_infserver.launcher.diagnosis.log_follower import LogFollower
from pytest_infserver.launcher.health.hang import _Report
from pytest_infserver.launcher.keeping.handover import control_socket_and_info
from pytest_infserver.launcher.leaks.report import as_text, judged
from pytest_infserver.launcher.profiling.chosen import profile_settings
from pytest_infserver.launcher.profiling.tools import TOOLS
from pytest_infserver.leak_finding import Finding

SECRET = "sk-supersecret-123456"
COLOURED = "sk-supersecret-\x1b[1;36m123456"
SECRETS = frozenset({SECRET})


@pytest.fixture
def server(tmp_path: Path) -> CommandServer:
    return CommandServer(
        launch_command=["run", "{port}"],
        health_endpoint="/",
        output_dir=str(tmp_path),
        env_vars={"API_KEYS": SECRET},
        model=f"https://bob:hunter22@host/{SECRET}",
    )


def test_events(tmp_path: Path, server: CommandServer) -> None:
    server.journal.open(tmp_path)
    server.journal.note("failed", error=f"bad {COLOURED}", leaks=[{"kind": "file", "text": SECRET, "fails": True}])
    server.journal.note("attached", url=server.model)
    text = (tmp_path / "events.jsonl").read_text()
    assert [json.loads(line)["event"] for line in text.splitlines()] == ["failed", "attached"]
    assert "supersecret" not in f"{text} {server.journal.events}"
    assert "hunter22" not in text
    assert "\\u001b" not in text


def test_numbers_in_events_need_no_secrets() -> None:
    def secrets() -> frozenset[str]:
        raise AssertionError

    journal = Journal(secrets)
    journal.note("ready", seconds=1.5, pid=None)
    assert journal.events[0].fields == {"seconds": 1.5, "pid": None}


def test_warnings_progress_and_errors(server: CommandServer) -> None:
    heard: list[str] = []
    server.on_warning = server.on_progress = heard.append
    server.warn(f"bad {COLOURED}")
    server.runtime.note_download(f"from {COLOURED}")
    error = ServerStartupError(f"bad {COLOURED}", exit_code=2)
    messages.hide_secrets(error, server.secrets)
    assert heard == ["bad ********", "from ********"]
    assert (str(error), error.exit_code) == ("bad ********", 2)


def test_a_start_that_fails(tmp_path: Path) -> None:
    server = CommandServer(
        launch_command=[str(tmp_path / SECRET), "--api-keys", SECRET, "{port}"],
        health_endpoint="/",
        output_dir=str(tmp_path / "logs"),
    )
    with pytest.raises(ServerStartupError) as caught:
        server.start()
    assert "********" in str(caught.value)
    assert SECRET not in f"{caught.value} {server.journal.events}"


def test_profiles_and_their_errors(server: CommandServer) -> None:
    profiler = TOOLS["py-spy"](server, profile_settings(server.settings, "py-spy"))
    error = profiler.error(f"not with {COLOURED}", f"said {COLOURED}\nsk-supersecret-1".encode())
    assert isinstance(error, ProfileError)
    assert "supersecret" not in str(error)


def test_reports_of_hangs(tmp_path: Path) -> None:
    report = _Report(tmp_path, SECRETS)
    report.open()
    report.write(f"heading {COLOURED}\n")
    report.write(f"output {COLOURED} and sk-supersecret".encode())
    report.close()
    assert report.path is not None
    assert report.path.read_text() == "heading ********\noutput ******** and ********"


def test_leaks() -> None:
    finding = Finding("file", f"/tmp/{COLOURED}", f"by {SECRET}", 7, f"run {COLOURED}", 1.0)
    text = as_text("llama", judged([finding], [], SECRETS))
    assert "supersecret" not in text
    assert "\x1b" not in text


def test_lines_that_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(f"  in {COLOURED}\n{'x' * 20_000}{SECRET}\nlast sk-supersecret")
    follower = LogFollower(SECRETS)
    lines = [*follower.new_lines(path, 0), *follower.last_line()]
    assert (lines[0], lines[-1]) == ("  in ********", "last ********")


def test_what_others_are_told(server: CommandServer) -> None:
    told = f"{control_socket_and_info(server)['info']} {server.command()!r} {server.command()}"
    assert "supersecret" not in told
    assert "hunter22" not in told
    attached = CommandServer(url="http://bob:hunter22@127.0.0.1:1")
    assert "hunter22" not in repr(attached)
