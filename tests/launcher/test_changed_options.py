"""Options that an engine's newer versions do not have any more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import ConfigError, SGLangServer, VLLMServer, load_server_config
from pytest_infserver.launcher.engine.changed_options import ChangedOption, OutdatedOption, up_to_date
from pytest_infserver.launcher.factory import create_from_config

CHANGED = (
    ChangedOption("--quiet", "it is quiet now", since="0.12", dropped=True),
    ChangedOption("--old", "write --new", since="0.12"),
    ChangedOption("--kind", "write its name", value=re.compile(r"^\{")),
)


def unasked() -> str:
    raise AssertionError("the version does not matter here")


@pytest.mark.parametrize(
    "argv",
    [
        ["engine", "--quietly", "--kind", "fp8", "old", "-quiet"],
        ["engine"],
        ["engine", "--name", "quiet"],
    ],
)
def test_the_version_is_asked_only_where_it_matters(argv: list[str]) -> None:
    assert up_to_date(argv, argv, CHANGED, "vllm", unasked) == (argv, [])


@pytest.mark.parametrize("version", ["0.12.0", "0.12", "0.32.0+cpu", "0.12.0rc1", "1.0", "v0.13"])
@pytest.mark.parametrize("flag", ["--quiet", "--quiet=true", "--quiet true"])
def test_what_is_the_default_now_is_left_out_with_a_note(version: str, flag: str) -> None:
    given = ["--a", "1", *flag.split(), "--b"]
    argv, notes = up_to_date(["engine", *given], given, CHANGED, "vllm", lambda: version)
    assert argv == ["engine", "--a", "1", "--b"]
    assert notes == [f"vllm {version} has no --quiet: it is quiet now; it is left out"]


@pytest.mark.parametrize("version", ["0.11.9", "0.2.0", "0.1.dev1+gabc", "unknown", "", None])
def test_an_older_or_unknown_version_gets_what_was_written(version: str | None) -> None:
    argv = ["engine", "--quiet", "--old", "x"]
    assert up_to_date(argv, argv, CHANGED, "vllm", lambda: version) == (argv, [])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--old", "x"], "vllm 0.12.1 has no --old: write --new"),
        (["--old=x"], "vllm 0.12.1 has no --old: write --new"),
        (["--kind", '{"auto": "fp8"}'], "vllm 0.12.1 takes no such value for --kind: write its name"),
        (["--kind", "fp8", '--kind={"a": 1}'], "vllm 0.12.1 takes no such value for --kind: write its name"),
    ],
)
def test_what_has_to_be_replaced_is_an_error(argv: list[str], message: str) -> None:
    with pytest.raises(OutdatedOption) as caught:
        up_to_date(argv, argv, CHANGED, "vllm", lambda: "0.12.1")
    assert str(caught.value) == message


def server(installed_vllm: Path, arguments: Any, **settings: Any) -> VLLMServer:
    folder = installed_vllm.parent.parent
    return VLLMServer(
        model="m",
        binary_path=str(installed_vllm),
        output_dir=folder / "logs",
        config={"api_server_args": arguments},
        startup_timeout=30,
        **settings,
    )


@pytest.mark.parametrize(
    "arguments", [["--seed", "1", "--disable-log-requests"], {"seed": 1, "disable_log_requests": True}]
)
def test_a_start_without_a_dropped_option(installed_vllm: Path, arguments: Any, nothing_left: None) -> None:
    warnings: list[str] = []
    one = server(installed_vllm, arguments)
    one.on_warning = warnings.append
    assert "--disable-log-requests" in one.get_launch_command()
    with one:
        assert one.command().argv[-2:] == ("--seed", "1")
        assert "--disable-log-requests" not in " ".join(map(str, one.command().argv))
    [warning] = warnings
    assert warning.startswith("vllm: vllm 0.32.0+cpu has no --disable-log-requests: requests are logged only with")
    assert warning.endswith("; it is left out")


def test_an_option_to_replace_is_an_error_before_the_launch(installed_vllm: Path) -> None:
    one = server(installed_vllm, {"kv-cache-dtype": {"auto": "fp8"}})
    message = "vllm 0.32.0+cpu takes no such value for --kv-cache-dtype: write its name alone, as in"
    with pytest.raises(ConfigError, match=re.escape(message)):
        one.start()
    assert one.launches == 0
    # What asks for the command's secrets afterwards, as a report does, is not refused.
    assert isinstance(one.secrets, frozenset)
    assert one.api_key is None


def test_the_error_points_into_the_yaml_file(installed_vllm: Path, tmp_path: Path) -> None:
    file = tmp_path / "servers.yaml"
    arguments = "config:\n  api_server_args:\n    seed: 1\n    task: generate\n"
    file.write_text(f"backend: vllm\nmodel: m\nbinary_path: {installed_vllm}\n{arguments}")
    with pytest.raises(ConfigError, match=r"servers\.yaml:7:5: .*has no --task: write --runner"):
        create_from_config(load_server_config(file)).command()


def test_an_engine_that_does_not_tell_its_version_gets_what_was_written(tmp_path: Path) -> None:
    command = tmp_path / "vllm"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    one = server(command, ["--disable-log-requests", "--kv-cache-dtype", '{"auto": "fp8"}'])
    assert one.command().argv[-3:] == ("--disable-log-requests", "--kv-cache-dtype", '{"auto": "fp8"}')


@pytest.mark.parametrize("backend", [VLLMServer, SGLangServer])
def test_a_dropped_option_has_no_value_and_a_version(backend: Any) -> None:
    assert all(option.since for option in backend.changed_options if option.dropped)
    flags = [option.flag for option in backend.changed_options]
    assert len(flags) == len(set(flags))
    assert backend.packages


@pytest.mark.parametrize("flag", ["--disable_log_requests", "--disable-log_requests"])
def test_underscores_are_dashes(installed_vllm: Path, flag: str) -> None:
    command, notes = server(installed_vllm, [flag, "--seed", "1"]).command_and_notes()
    assert command.argv[-2:] == ("--seed", "1")
    assert "log" not in " ".join(command.argv[1:])
    assert len(notes) == 1


def test_what_a_subclass_launches_beside_the_arguments_is_its_own(installed_vllm: Path, tmp_path: Path) -> None:
    class Mine(VLLMServer):
        def get_launch_command(self) -> list[str]:
            return [self.binary_path, "mine.py", "--task", "demo", *self.server_args(), "--device", "cuda"]

    settings: Any = {"model": "m", "binary_path": str(installed_vllm), "output_dir": tmp_path / "logs"}
    arguments = {"api_server_args": ["--disable-log-requests", "--seed", "1"]}
    command = Mine(**settings, config=arguments).command().argv
    assert command[1:] == ("mine.py", "--task", "demo", "--seed", "1", "--device", "cuda")
    assert Mine(**settings).command().argv[1:] == ("mine.py", "--task", "demo", "--device", "cuda")

    class Other(VLLMServer):
        def get_launch_command(self) -> list[str]:
            return [self.binary_path, "other.py"]

    assert Other(**settings, config={"api_server_args": {"task": "x"}}).command().argv[1:] == ("other.py",)
