"""The command line and the environment of a server, and how they are shown."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from pytest_infserver import ServerStartupError
from pytest_infserver.launcher.command import make_command, require_binary


def test_environment_is_ours_with_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("CHANGED", "1")
    monkeypatch.setenv("UNSET", "1")
    env = make_command(["engine"], {"CHANGED": "2", "NEW": "3", "UNSET": None, "NEVER": None}).env
    assert (env["KEPT"], env["CHANGED"], env["NEW"]) == ("1", "2", "3")
    assert "UNSET" not in env
    assert "NEVER" not in env
    assert os.environ["UNSET"] == "1"


def test_server_is_not_taken_for_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    env = make_command(["engine"], {}).env
    assert "PYTEST_CURRENT_TEST" not in env
    assert "PYTEST_XDIST_WORKER" not in env


@pytest.mark.parametrize(("given", "seen"), [({}, "1"), ({"PYTHONUNBUFFERED": "0"}, "0")])
def test_output_of_python_is_not_kept_back(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str | None], seen: str
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert make_command(["engine"], given).env["PYTHONUNBUFFERED"] == seen


@pytest.mark.usefixtures("nothing_left")
def test_shown_command_can_be_typed() -> None:
    command = make_command(["printenv", "GREETING"], {"GREETING": "it's\na $HOME `id`", "GONE": None})
    shown = str(command)
    assert shown.startswith("env -u GONE ")
    done = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "it's\na $HOME `id`\n"
    assert shlex.split(str(make_command(["a b", '{"x": 1}'], {}))) == ["a b", '{"x": 1}']


def test_secrets_are_masked() -> None:
    command = make_command(
        ["engine", "--api-key", "sk-long-enough", "--auth-token=tok-long-enough", "--tokenizer", "some/tokenizer"],
        {"HF_TOKEN": "hf_long_enough"},
    )
    for text in (str(command), repr(command.secrets), str(command).upper()):
        assert "tok-long" not in text or text == repr(command.secrets)
    shown = str(command)
    assert "long-enough" not in shown
    assert "long_enough" not in shown
    assert "some/tokenizer" in shown


def executable(path: Path) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_binary_is_found_by_path_and_by_the_servers_own_path(tmp_path: Path) -> None:
    binary = executable(tmp_path / "my-engine")
    require_binary(make_command([binary], {}), "llama", "")
    require_binary(make_command(["my-engine"], {"PATH": str(tmp_path)}), "llama", "")


@pytest.mark.parametrize(
    ("binary", "where"),
    [
        ("no-such-engine", "is not on PATH (/somewhere)"),
        ("/no/such/engine", "does not exist"),
        ("{folder}/text", "is not an executable file"),
        ("{folder}", "is not an executable file"),
    ],
)
def test_missing_binary_says_where_it_was_looked_for(tmp_path: Path, binary: str, where: str) -> None:
    (tmp_path / "text").write_text("")
    word = binary.format(folder=tmp_path)
    with pytest.raises(ServerStartupError) as caught:
        require_binary(make_command([word], {"PATH": "/somewhere"}), "llama (vllm)", "Install it with 'pip x'.")
    message = str(caught.value)
    assert message.startswith(f"llama (vllm) cannot start: the binary '{word}' {where}.")
    assert "Install it with 'pip x'." in message
    assert "binary_path" in message
