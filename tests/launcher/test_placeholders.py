"""What is replaced in words and variables, and what is not."""

from __future__ import annotations

import pytest

from pytest_infserver import CommandServer, VLLMServer
from pytest_infserver.launcher.placeholders import fill_text, named_in

VALUES = {"model": "org/m", "host": "::1", "port": "8000", "ports.a-b": "8001"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{host}:{port}", "::1:8000"),
        ('{"kv": {"port": {ports.a-b}}}', '{"kv": {"port": 8001}}'),
        ('{"a":{port}}', '{"a":8000}'),
        ("{{model}} and {{ model }}", "{{model}} and {{ model }}"),
        (r"\{port} {port}", "{port} 8000"),
        ("{ports.other} {pid} {Port} { port } {ports}", "{ports.other} {pid} {Port} { port } {ports}"),
        ("{% for m in messages %}{{m.host}}{% endfor %}", "{% for m in messages %}{{m.host}}{% endfor %}"),
        ("$PORT", "$PORT"),
    ],
)
def test_only_these_words_are_replaced(text: str, filled: str) -> None:
    assert fill_text(text, VALUES) == filled


def test_what_is_to_be_replaced_is_found() -> None:
    assert named_in(r"{port} {{model}} \{host} {ports.x}") == {"port", "ports.x"}


def test_they_stand_in_arguments_and_variables() -> None:
    server = VLLMServer(
        model="m",
        ports={"kv": 9001},
        env_vars={"KV": "{ports.kv}", "GONE": None},
        config={"server_args": {"kv-config": {"port": "{ports.kv}"}, "x": "{host}"}},
    )
    assert server.get_launch_command()[-4:] == ["--kv-config", '{"port": "9001"}', "--x", "127.0.0.1"]
    assert server.env_vars == {"KV": "9001", "GONE": None}


def test_a_port_in_a_variable_is_enough() -> None:
    server = CommandServer(launch_command=["serve"], env_vars={"LISTEN": "{host}:{port}"})
    assert server.env_vars == {"LISTEN": "127.0.0.1:8000"}
