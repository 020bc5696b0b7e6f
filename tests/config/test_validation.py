from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.config.loading import load_file
from pytest_infserver.config.model import ProfileConfig, ServerConfig, keys
from pytest_infserver.config.tree import Tree, labelled
from pytest_infserver.config.validation import build_config, nearest
from pytest_infserver.errors import ConfigError


def test_the_defaults_of_the_contract() -> None:
    config = build_config(Tree({}))
    assert (config.heartbeat_interval, config.heartbeat_timeout, config.startup_timeout) == (5, 30, 600)
    assert (config.stop_timeout, config.download_timeout, config.hang_timeout) == (30, 3600, 300)
    assert (config.host, config.port, config.output_dir) == ("127.0.0.1", None, "./server_logs")
    assert (config.debug_mode, config.profile, config.own_listener) == (False, None, True)


def test_null_counts_as_not_given() -> None:
    assert build_config(Tree(dict.fromkeys(keys(ServerConfig)))) == ServerConfig()


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("port: 0", 1, "'port': expected a port from 1 to 65535, not 0"),
        ("port: 65536", 1, "'port': expected a port from 1 to 65535, not 65536"),
        ("port: yes", 1, "'port': expected a port from 1 to 65535, not true"),
        ("port: '8000'", 1, "'port': expected a port from 1 to 65535, not \"8000\"; write it without quotes"),
        ("model: 7", 1, "'model': expected a text, not 7; put it in quotes"),
        ("model: [a]", 1, "'model': expected a text, not a list"),
        ("startup_timeout: 0", 1, "'startup_timeout': expected a positive number of seconds, not 0"),
        ("stop_timeout: -3", 1, "'stop_timeout': expected a positive number of seconds, not -3"),
        ("heartbeat_timeout: .nan", 1, "'heartbeat_timeout': expected a positive number of seconds, not NaN"),
        ("hang_timeout: .inf", 1, "'hang_timeout': expected a positive number of seconds up to 1000000000"),
        ("debug_mode: maybe", 1, "'debug_mode': expected true or false, not \"maybe\""),
        ("gpus: 1.5", 1, "'gpus': expected a whole number from 0 to 4096, not 1.5"),
        ("cpus: -1", 1, "'cpus': expected 0, or a number from 0.0001 to 1000000, not -1"),
        ("cpus: '2'", 1, "'cpus': expected 0, or a number from 0.0001 to 1000000, not \"2\"; write it without quotes"),
        ("nodes: 0", 1, "'nodes': expected a whole number from 1 to 1024, not 0"),
        ("resources: {big: .inf}", 13, "'resources.big': expected 0, or a number from 0.0001 to 1000000, not Infinity"),
        (
            "resources: {memory: 1}",
            13,
            "'resources.memory': memory is Ray's own: use a name that 'ray start --resources' has given",
        ),
        ("resources: {GPU: 1}", 13, "'resources.GPU': write 'gpus: N' beside 'resources', not GPU in it"),
        ("url: gpu-box:8000", 1, "'url': expected a URL that starts with http:// or https://"),
        ("env_vars: [A=1]", 1, "'env_vars': expected a mapping of names to values, not a list"),
        ("env_vars: {A: '1', B: on}", 20, "'env_vars.B': expected a text, a number or null"),
        ("config: [--x]", 1, "'config': expected a mapping of names to values, not a list"),
        ("profile: nsys", 1, "'profile' must be a mapping such as {enabled: true, tool: nsys}"),
        ("profile: {tool: nsis}", 11, "'profile.tool': expected one of nsys, pytorch, amd, py-spy; not \"nsis\""),
        ("profile: {enabld: true}", 11, "unknown key 'enabld' in 'profile'; did you mean 'enabled'?"),
        ("profile: {args: --x}", 11, "'profile.args': expected a list such as [a, b], not one text"),
        ("profile: {args: [a, no]}", 21, "'profile.args.1': expected a text or a number, not false"),
        ("launch_command: run {port}", 1, "'launch_command': expected a list such as [a, b], not one text"),
        ("launch_command: []", 1, "'launch_command': expected a list whose first word is the binary"),
        ("endpoints: {api: api}", 13, "'endpoints.api': expected a path that starts with '/', not \"api\""),
        ("health_endpoint: health", 1, "'health_endpoint': expected a path that starts with '/', not \"health\""),
        ("startup_timout: 3", 1, "unknown key 'startup_timout'; did you mean 'startup_timeout'?"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_wrong_value_is_shown_with_its_place(
    tmp_path: Path, line: str, column: int, message: str, several: bool
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"servers:\n  a:\n    {line}\n    backend: vllm\n" if several else f"backend: vllm\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    place, label = (f"3:{column + 4}", "server 'a': ") if several else (f"2:{column}", "")
    assert str(caught.value).startswith(f"{path}:{place}: {label}{message}")
    assert "\n" not in str(caught.value)
    assert (caught.value.file, caught.value.line) == (str(path), 3 if several else 2)


def test_a_profile_object_is_taken_as_it_is() -> None:
    profile = ProfileConfig(tool="amd")
    assert build_config(labelled({"profile": profile}, "x")).profile is profile


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"port": 1, "env_vars": {"A": None}, "profile": {"tool": "amd", "args": []}},
        {"launch_command": ["a", 1], "endpoints": {"x": "/y"}},
    ],
)
def test_keywords_make_the_same_configuration_again(settings: dict[str, Any]) -> None:
    config = build_config(Tree({**settings, "backend": "vllm"}))
    assert build_config(Tree({**config.keywords(), "backend": "vllm"})) == config


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("modle", "; did you mean 'model'?"),
        ("MODEL", "; did you mean 'model'?"),
        ("xyz", "; known are: model, port"),
        (5, "; known are: model, port"),
    ],
)
def test_nearest(word: object, hint: str) -> None:
    assert nearest(word, ["port", "model"]) == hint
