"""What a user reads when a server fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_infserver import PortInUseError, ServerStartupError, ServerStartupTimeout
from pytest_infserver.launcher.command import Command, make_command
from pytest_infserver.launcher.diagnosis import messages
from pytest_infserver.launcher.diagnosis.log import ServerLog
from pytest_infserver.launcher.diagnosis.root_cause import reports_port_taken, root_cause
from pytest_infserver.launcher.startup.readiness import NotReady
from pytest_infserver.launcher.supervision.supervised_process import Exit, Survivor

SECRET = "sk-0123456789abcdef"


@pytest.fixture
def command() -> Command:
    return make_command(["/bin/engine", "--api-key", SECRET, "a b"], {"HF_TOKEN": "hf_verysecret", "X": "1"})


def log_with(tmp_path: Path, text: str) -> ServerLog:
    log = ServerLog(tmp_path, "server")
    log.path.parent.mkdir(parents=True)
    log.path.write_text(text)
    return log


def error(tmp_path: Path, command: Command, outcome: NotReady, text: str) -> ServerStartupError:
    log = log_with(tmp_path, text)
    cause = root_cause(log, secrets=command.secrets)
    taken = not outcome.timed_out and reports_port_taken(log, lambda port: port in (None, 8000))
    return messages.startup_error("llama (vllm)", outcome, cause, command, log, 0, taken)


def test_startup_error_says_everything_and_no_secret(tmp_path: Path, command: Command) -> None:
    outcome = NotReady("exited with code 3, before it was ready", Exit(3, 0))
    found = error(tmp_path, command, outcome, f"key {SECRET}\nValueError: bad token hf_verysecret\nbye\n")
    lines = str(found).splitlines()
    assert lines[0] == "llama (vllm) exited with code 3, before it was ready"
    assert lines[1] == "  cause:   ValueError: bad token ********"
    assert lines[2].startswith("  command: ")
    assert "/bin/engine --api-key" in lines[2]
    assert "'a b'" in lines[2]
    assert lines[3] == f"  log:     {tmp_path}/server/server.log"
    assert lines[-1] == "  | bye"
    assert SECRET not in str(found)
    assert "hf_verysecret" not in str(found)
    assert (found.exit_code, found.log_path) == (3, tmp_path / "server" / "server.log")


def test_message_is_short_whatever_the_log(tmp_path: Path, command: Command) -> None:
    text = "\n".join("x" * 10_000 for _ in range(100))
    assert len(str(error(tmp_path, command, NotReady("failed", Exit(1, 0)), text))) < 5000


@pytest.mark.parametrize(
    ("outcome", "log", "kind"),
    [
        (NotReady("exited", Exit(1, 0)), "boom", ServerStartupError),
        (NotReady("was late", timed_out=True), "", ServerStartupTimeout),
        (NotReady("exited", Exit(1, 0)), "[Errno 98] Address already in use", PortInUseError),
        (NotReady("does not listen", foreign_listener=True), "", PortInUseError),
        # While the server lives a taken port is some other port of it.
        (NotReady("was late", timed_out=True), "Address already in use", ServerStartupTimeout),
    ],
)
def test_kind_of_error(
    tmp_path: Path, command: Command, outcome: NotReady, log: str, kind: type[ServerStartupError]
) -> None:
    assert type(error(tmp_path, command, outcome, log)) is kind


def test_timeout_says_what_to_do(tmp_path: Path, command: Command) -> None:
    closed = str(error(tmp_path / "1", command, NotReady("was late", timed_out=True), ""))
    answering = str(error(tmp_path / "2", command, NotReady("was late", timed_out=True, status=503), ""))
    assert "raise startup_timeout" in closed
    assert "check that it listens on this host and port" in closed
    assert "raise startup_timeout" in answering
    assert "check 'health_endpoint'" in answering


def test_endless_command_is_cut(tmp_path: Path) -> None:
    text = str(error(tmp_path, make_command(["engine", "x" * 100_000], {}), NotReady("failed"), ""))
    assert len(text) < 5000


def test_death(command: Command) -> None:
    text = messages.death("llama", "exited with code 1", f"Error: {SECRET}", Path("/logs/server.log"), command.secrets)
    assert text.splitlines() == [
        "llama exited with code 1, while it was in use",
        "  cause:   Error: ********",
        "  log:     /logs/server.log",
    ]


@pytest.mark.parametrize("stuck", [False, True])
def test_survivors(stuck: bool) -> None:
    text = messages.survivors("llama", [Survivor(5, "engine --x", stuck), Survivor(6, "")], 30.0)
    assert "2 of its processes" in text
    assert "pid 5 (engine --x)" in text
    assert "pid 6 (no command line)" in text
    assert ("survived SIGKILL" in text) is stuck
    assert ("They were killed." in text) is not stuck
