"""All mistakes of a configuration file, each once and at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_infserver.launcher.checks.mistakes import find_mistakes


def mistakes(folder: Path, *texts: str) -> tuple[list[str], list[str]]:
    """Return the names of the servers that can be used, and what is wrong, as ``file:line:column: message``."""
    files = []
    for number, text in enumerate(texts, 1):
        files.append(folder / f"{number}.yaml")
        files[-1].write_text(text)
    servers, found = find_mistakes(map(str, files))
    return list(servers), [str(error).removeprefix(f"{folder}/") for error in found]


MANY = """\
defaults:
  startup_timout: 4
servers:
  a: {backend: vlm, model: m}
  b: {backend: vllm, port: "8000", model: m, gpsu: 1}
  c: {backend: vllm, model: "${INFSERVER_NOT_SET}"}
  d: {backend: vllm, model: m, profile: {tool: nsis, enabld: 1}}
  e: {backend: vllm}
  good: {backend: command, launch_command: [run, "{port}"]}
  g:
    bakend: vllm
    model: m
    model: k
"""


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFSERVER_NOT_SET", raising=False)
    found = mistakes(tmp_path, MANY)[1]
    assert [message.split(": ")[0] for message in found] == [
        f"1.yaml:{place}" for place in ("2:3", "4:7", "5:22", "5:46", "6:29", "7:42", "7:54", "8:3", "11:5", "13:5")
    ]
    for message, word in zip(
        found,
        ("startup_timeout", "vllm", "quotes", "gpus", "INFSERVER_NOT_SET", "nsys", "enabled", "'model'", "backend", ""),
        strict=True,
    ):
        assert word in message


def test_what_is_lacking_only_because_of_a_mistake_is_none(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "backend: vllm\nmodle: m\n")[1] == [
        "1.yaml:2:1: unknown key 'modle'; did you mean 'model'?"
    ]
    assert len(mistakes(tmp_path, "servers: {a: {bakend: vllm}}")[1]) == 1
    alias = "servers: {a: &x {backend: vllm, modle: m}, b: {<<: *x}, c: *x}"
    assert len(mistakes(tmp_path, alias)[1]) == 1


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("backend: vlm\nmodle: m\nport: x\n", ["1:1", "2:1", "3:1"]),
        ("modle: m\nbackend: vllm\nport: 0\n", ["1:1", "3:1"]),
        ("backend: vllm\n", ["1:1"]),
        ("", ["1.yaml"]),
        ("[]", ["1:1"]),
        ("a: [\n", ["2:1"]),
        ("servers: {}", ["1:1"]),
        ("servers: [a]", ["1:1"]),
        ("model: m\nservers: {a: {backend: vllm, model: m}}\nmore: 1\n", ["1:1", "3:1"]),
        ("backend: vllm\nmodel: m\nconfig: {server_args: [true]}\n", ["3:24"]),
        ("backend: vllm\nmodel: m\nconfig: {server_args: {a-b: 1, a_b: 2}}\n", ["3:32"]),
        ("backend: 'no_such_module:Server'\nport: x\n", ["1:1", "2:1"]),
    ],
)
def test_places(tmp_path: Path, text: str, places: list[str]) -> None:
    found = mistakes(tmp_path, text)[1]
    assert [message.split(": ")[0].removeprefix("1.yaml:") for message in found] == places


def test_each_file_is_looked_at_and_names_are_unique_over_all(tmp_path: Path) -> None:
    good = "servers: {a: {backend: vllm, model: m}, b: {backend: vllm, model: m}}"
    assert mistakes(tmp_path, good) == (["a", "b"], [])
    servers, found = mistakes(tmp_path, good, "port: x", good.replace("b:", "c:"))
    assert [message.partition(": ")[0] for message in found] == ["2.yaml:1:1", "3.yaml:1:11"]
    assert "this name is taken" in found[1]
    assert servers == ["a", "b", "c"]


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    servers, (error,) = find_mistakes([str(tmp_path / "none.yaml")])
    assert servers == {}
    assert "cannot read the configuration" in str(error)
