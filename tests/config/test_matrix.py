"""``matrix:`` under a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_infserver import ConfigError, load_server_configs
from pytest_infserver.pool.collection.variants import changed

HEAD = "servers:\n  a:\n    backend: command\n    launch_command: [x, '{port}']\n    matrix:\n"


def names(tmp_path: Path, matrix: str) -> list[str]:
    path = tmp_path / "servers.yaml"
    path.write_text(HEAD + "".join(f"      {line}\n" for line in matrix.splitlines()))
    return [config.name for config in load_server_configs(path)]


def test_each_combination_is_a_server(tmp_path: Path) -> None:
    assert names(tmp_path, "model: [org/m1, m2]\nconfig.server_args.tp: [1, 2]") == [
        "a-m1-1",
        "a-m1-2",
        "a-m2-1",
        "a-m2-2",
    ]
    one, *_ = load_server_configs(tmp_path / "servers.yaml")
    assert (one.model, one.config) == ("org/m1", {"server_args": {"tp": 1}})


def test_servers_whose_values_read_alike_have_names_of_their_own(tmp_path: Path) -> None:
    both = names(tmp_path, "model: [a/x, b/x]")
    assert len(set(both)) == 2
    assert all(name.startswith("a-x-") for name in both)
    # A name is the same in each run: links and caches are found by it.
    assert names(tmp_path, "model: [a/x, b/x]") == both


def test_exclude_and_include_are_those_of_github_actions(tmp_path: Path) -> None:
    matrix = "model: [m1, m2]\ngpus: [1, 2]\nexclude: [{model: m2, gpus: 2}]"
    matrix += "\ninclude: [{model: m1, port: 9000}, {model: m3}]"
    assert names(tmp_path, matrix) == ["a-m1-1-9000", "a-m1-2-9000", "a-m2-1", "a-m3"]
    ports = [config.port for config in load_server_configs(tmp_path / "servers.yaml")]
    assert ports == [9000, 9000, None, None]


def test_a_file_with_one_server_may_have_one(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("backend: command\nlaunch_command: [x, '{port}']\nmatrix: {gpus: [1, 2]}\n")
    assert [config.name for config in load_server_configs(path)] == ["command-1", "command-2"]


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ("modl: [a]", "unknown key 'modl'; did you mean 'model'"),
        ("model: a", "expected a list of values"),
        ("model: []", "expected a list of values"),
        ("exclude: [{model: a}]", "is no key of the matrix"),
        ("model: [a]\nexclude: [{model: a}]", "stands for no server"),
        ("model: [a]\nexclude: 3", "expected a list of mappings"),
        (f"gpus: {list(range(100))}\nnodes: {list(range(1, 101))}", "10000 servers"),
        ("gpus: [1, lots]", "'gpus'"),
    ],
)
def test_mistakes_are_errors_with_their_place(tmp_path: Path, matrix: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        names(tmp_path, matrix)
    assert "servers.yaml:" in str(caught.value)


def test_a_value_meets_what_the_server_has_in_another_spelling_as_a_variants_does(tmp_path: Path) -> None:
    path = tmp_path / "servers.yaml"
    base = (
        "    backend: command\n    launch_command: [x, '{port}']\n"
        "    config: {server_args: {tensor_parallel_size: 4, keep: 1}}\n"
        "    profile: {tool: nsys, args: [--trace=cuda]}\n    ready: {log: started}\n"
    )
    path.write_text(
        f"servers:\n  base:\n{base}  a:\n{base}"
        "    matrix:\n      config.server_args.tensor-parallel-size: [1, 2]\n      profile: [{tool: py-spy}]\n"
        "      ready: [{tcp: true}]\n"
    )
    configured, one, two = load_server_configs(path)
    settings = {"server_args": {"tensor-parallel-size": 2}, "profile": {"tool": "py-spy"}, "ready": {"tcp": True}}
    variant = changed(configured, settings, "a test")
    assert one.config == {"server_args": {"tensor-parallel-size": 1, "keep": 1}}
    assert two.config == {"server_args": {"tensor-parallel-size": 2, "keep": 1}}
    assert (two.config, two.profile, two.ready) == (variant.config, variant.profile, variant.ready)
