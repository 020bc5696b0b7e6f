from __future__ import annotations

from collections import OrderedDict
from datetime import date
from typing import Any

import pytest

from pytest_infserver.launcher.engine.arguments import ArgumentsError, left_out, option_values, to_argv, to_flag


@pytest.mark.parametrize(
    ("key", "flag"),
    [
        ("max-model-len", "--max-model-len"),
        ("max_model_len", "--max-model-len"),
        ("--max_model_len", "--max_model_len"),
        ("-tp", "-tp"),
        ("hf_overrides.rope_theta", "--hf-overrides.rope_theta"),
        ("a_b.c_d.e_f", "--a-b.c_d.e_f"),
    ],
)
def test_to_flag(key: str, flag: str) -> None:
    assert to_flag(key) == flag


@pytest.mark.parametrize(
    ("arguments", "argv"),
    [
        ([], []),
        ({}, []),
        (["--a", "b c", "--d=e", 4, 0.9], ["--a", "b c", "--d=e", "4", "0.9"]),
        (("--a", "-1"), ["--a", "-1"]),
        (["--a_b", "--a_b"], ["--a_b", "--a_b"]),
        ({"a": "1", "b": 2, "c": 0.9, "d": ""}, ["--a", "1", "--b", "2", "--c", "0.9", "--d", ""]),
        ({"on": True, "off": False, "none": None, "no-x": True}, ["--on", "--no-x"]),
        ({"kv": {"auto": "fp8", "n": [1]}}, ["--kv", '{"auto": "fp8", "n": [1]}']),
        ({"kv": {}}, ["--kv", "{}"]),
        ({"lora": [["a"], ["b", 2]]}, ["--lora", "a", "--lora", "b", "2"]),
        ({"lora": ["a=1", "b=2", 3]}, ["--lora", "a=1", "b=2", "3"]),
        ({"lora": [{"name": "x"}, {"name": "y"}]}, ["--lora", '{"name": "x"}', '{"name": "y"}']),
        ({"x": "$HOME; rm -rf `pwd`"}, ["--x", "$HOME; rm -rf `pwd`"]),
        (OrderedDict(z=1, a=2), ["--z", "1", "--a", "2"]),
        ({"--tp": "4", "tp": 4}, ["--tp", "4"]),
        ({"--x": True, "x": True}, ["--x"]),
        ({"--x": False, "x": None}, []),
        ({"--x": {"a": 1}, "x": {"a": 1}}, ["--x", '{"a": 1}']),
        ({"--tp": 4, "-tp": 2}, ["--tp", "4", "-tp", "2"]),
    ],
)
def test_formats(arguments: Any, argv: list[str]) -> None:
    assert to_argv(arguments) == argv


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        ({"--tp": "4", "tp": 2}, "tp", "'--tp' and 'tp' are both --tp, with different values"),
        ({"a_b": 1, "a-b": 2}, "a-b", "'a_b' and 'a-b' are both --a-b, with different values"),
        ({"x": True, "--x": False}, "--x", "'x' and '--x' are both --x, with different values"),
        ({"x": True, "--x": "true"}, "--x", "'x' and '--x' are both --x, with different values"),
        (["--a", True], 1, "true in a list has no meaning: write the flag itself"),
        (["--a", None], 1, "null in a list has no meaning: write the flag itself"),
        ({"a": [1, False]}, "a", "false in a list has no meaning: write the flag itself"),
        ({"a": date(2024, 1, 1)}, "a", "a date cannot be an argument: make it a text"),
        ({"a": {"b": date(2024, 1, 1)}}, "a", "a dict cannot be an argument: make it a text"),
        ({"a": "x\0"}, "a", "a null byte cannot be part of an argument"),
        ({5: "x"}, 5, "5 cannot be the name of an option"),
        ({"": "x"}, "", '"" cannot be the name of an option'),
    ],
)
def test_what_has_no_meaning_is_an_error(arguments: Any, key: str | int, message: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        to_argv(arguments)
    assert str(caught.value) == message
    assert caught.value.key == key


def test_the_arguments_are_not_changed() -> None:
    arguments = {"a": [1], "b": {"c": 1}}
    to_argv(arguments)
    assert arguments == {"a": [1], "b": {"c": 1}}


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["--port", "1"], [["1"]]),
        (["--port=1"], [["1"]]),
        (["-p", "1", "--port", "2"], [["1"], ["2"]]),
        (["--port", "1", "2", "--x", "3"], [["1", "2"]]),
        (["--port", "--x", "3"], [[]]),
        (["--port", "-1", "-2.5"], [["-1", "-2.5"]]),
        (["--ports", "1", "port", "2", "--x", "--port-range"], []),
        (["--port=a=b", "c"], [["a=b"]]),
        (["--port="], [[""]]),
        (["--port"], [[]]),
    ],
)
def test_option_values(argv: list[str], values: list[list[str]]) -> None:
    assert option_values(argv, "--port", "-p") == values


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["--api-key", "-Zx81kd92kf", "b", "-c", "1"], [["-Zx81kd92kf", "b"]]),
        (["--api-key", "--Zx81-kd92kf", "-c", "1"], [["--Zx81-kd92kf"]]),
        (["--api-key", "a", "-Zx81kd92kf"], [["a"]]),
        (["--api-key", "--port", "1"], [[]]),
        (["--api-key", "-c", "1"], [[]]),
    ],
)
def test_a_secret_may_begin_with_a_dash(argv: list[str], values: list[list[str]]) -> None:
    assert option_values(argv, "--api-key") == values


@pytest.mark.parametrize(
    ("configured", "argv", "missing"),
    [
        (["--ctx-size", "5"], ["run", "--ctx-size", "5"], []),
        (["--ctx-size", "5"], ["run", "--ctx-size=5"], []),
        (["--ctx-size=5", "--seed", "-1"], ["run", "--port", "9"], ["--ctx-size", "--seed"]),
        (["--a", "--b", "1", "--a"], ["sh", "-c", "exec run --b 1"], ["--a"]),
        (["one", "two"], ["run", "two"], ["one"]),
        ([], ["run"], []),
    ],
)
def test_what_a_command_leaves_out(configured: list[str], argv: list[str], missing: list[str]) -> None:
    assert left_out(configured, argv) == missing
