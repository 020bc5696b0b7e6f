"""The files that say how a server was launched."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_infserver import CommandServer
from pytest_infserver.launcher.command import make_command
from pytest_infserver.launcher.startup.launch_files import environment_text, write_launch_files

SECRET = "s3cret-value-of-a-token"


@pytest.mark.usefixtures("nothing_left")
def test_the_environment_is_sorted_and_a_shell_can_read_it() -> None:
    env = {"B": "two words", "A": "1", "C": "it's\nmore", "EMPTY": "", "HF_TOKEN": ""}
    text = environment_text(env, frozenset())
    assert text.splitlines()[:2] == ["A=1", "B='two words'"]
    shown = subprocess.run(
        ["sh", "-c", f'{text}\nprintf \'%s|\' "$A" "$B" "$C" "$EMPTY"'],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert shown.stdout == "1|two words|it's\nmore||"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", SECRET),
        ("API_KEY", "short"),
        ("HARMLESS", f"prefix {SECRET} suffix"),
        ("DATABASE_URL", "postgres://user:hunter22@db.example/x"),
        ("QUOTED", f"it's {SECRET}"),
    ],
)
def test_secrets_are_masked(name: str, value: str) -> None:
    text = environment_text({name: value}, frozenset({SECRET}))
    assert "********" in text
    for word in (SECRET, "short", "hunter22"):
        assert word not in text


def test_a_url_without_a_password_stays() -> None:
    text = environment_text({"PROXY": "http://proxy.example:3128/a@b:c"}, frozenset())
    assert text == f"PROXY={shlex.quote('http://proxy.example:3128/a@b:c')}\n"


def test_only_its_user_can_read_the_environment_also_where_an_older_file_was_open(tmp_path: Path) -> None:
    old = tmp_path / "environment.txt"
    old.write_text("OLD=1")
    old.chmod(0o644)
    write_launch_files(tmp_path, make_command(["engine", "--api-key", SECRET], {"X": "1"}), {"X": "1", "Y": SECRET})
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    assert old.read_text() == "X=1\nY='********'\n"
    assert (tmp_path / "command.txt").read_text() == "X=1 engine --api-key ********\n"
    assert sorted(os.listdir(tmp_path)) == ["command.txt", "environment.txt"]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    for name in ("command.txt", "command.part", "environment.txt", "environment.part"):
        (tmp_path / name).symlink_to(target)
    write_launch_files(tmp_path, make_command(["engine"], {}), {})
    assert target.read_text() == "precious"


@pytest.mark.usefixtures("hard_limit")
def test_a_pipe_in_the_way_is_replaced_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("command.txt", "environment.txt"):
        os.mkfifo(tmp_path / name)
    write_launch_files(tmp_path, make_command(["engine"], {}), {})
    assert (tmp_path / "command.txt").read_text() == "engine\n"
    assert sorted(os.listdir(tmp_path)) == ["command.txt", "environment.txt"]


def test_words_that_are_no_unicode_are_written_as_they_are(tmp_path: Path) -> None:
    write_launch_files(tmp_path, make_command(["engine", os.fsdecode(b"\xff")], {}), {"A": os.fsdecode(b"\xfe")})
    assert b"\xff" in (tmp_path / "command.txt").read_bytes()
    assert b"\xfe" in (tmp_path / "environment.txt").read_bytes()


@pytest.mark.usefixtures("hard_limit")
def test_they_lie_beside_the_log_of_a_server(fake_server: Callable[..., CommandServer]) -> None:
    with fake_server("--api-key", SECRET, env_vars={"MY_TOKEN": SECRET, "COLOUR": "green"}) as server:
        folder = server.log_path.parent
        command, environment = (folder / "command.txt").read_text(), (folder / "environment.txt").read_text()
    assert f"--port {server.port}" in command
    assert "\nCOLOUR=green\n" in f"\n{environment}"
    assert SECRET not in command + environment


@pytest.mark.usefixtures("hard_limit")
def test_a_server_whose_files_cannot_be_written_starts_with_a_warning(
    fake_server: Callable[..., CommandServer], tmp_path: Path
) -> None:
    (tmp_path / "server_logs" / "fake" / "command.txt").mkdir(parents=True)
    server = fake_server()
    warnings: list[str] = []
    server.on_warning = warnings.append
    with server:
        assert server.running
    assert len(warnings) == 1
    assert "cannot be written beside its log" in warnings[0]
