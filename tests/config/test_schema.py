from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pytest_infserver.config.loading import load_file
from pytest_infserver.config.model import ProfileConfig, ServerConfig, keys
from pytest_infserver.config.schema import json_schema
from pytest_infserver.errors import ConfigError
from pytest_infserver.launcher.backends.registry import _BUILTIN

ROOT = Path(__file__).parent.parent.parent

GOOD = [
    "{backend: vllm, model: m}",
    "{backend: vllm, model: m, port: 8000, gpus: 2, startup_timeout: 0.5, debug_mode: yes}",
    '{backend: vllm, model: "${MODEL}", port: "${PORT:-1}"}',
    "{backend: vllm, model: m, port: null, env_vars: {A: x, B: 1, C: 0.5, D: null}}",
    "{backend: vllm, model: m, config: {api_server_args: {a: 1, b: true, c: null, d: {e: 1}, f: [1, x]}}}",
    "{backend: sglang, model: m, config: {server_args: [--tp, 4, 0.9, {a: 1}]}}",
    "{backend: my.module:Server, model: m, config: {anything: [1, {x: y}]}}",
    "{backend: vllm, model: m, profile: {enabled: true, tool: nsys, output_dir: p, args: [--x]}}",
    "{backend: vllm, model: m, profile: {args: []}}",
    "{backend: vllm, model: m, profile: {tool: py-spy, on_demand: true, flush_timeout: 1.5}}",
    '{backend: command, launch_command: [run, 1, "{port}"], health_endpoint: /h, endpoints: {api: /api}}',
    "{backend: vllm, model: m, cpus: 0.5, nodes: 2, gpus: 4, resources: {big: 1, small: 0.001}}",
    "{backend: vllm, model: m, cpus: 0, resources: {}}",
    "{backend: vllm, model: m, log_limit: 500 MB, on_log_limit: fail}",
    "{backend: vllm, model: m, log_limit: 0}",
    '{backend: remote, name: r, url: "http://127.0.0.1:9000"}',
    "{servers: {a: {backend: vllm, model: m}}}",
    "{defaults: {backend: vllm, model: m}, servers: {a: null, b: {}, c: {port: 1}}}",
    "{defaults: null, servers: {a-1.b_2: {backend: vllm, model: m}}}",
    "{defaults: {startup_timeout: 900}, servers: {a: {backend: vllm}, b: {backend: sglang}}}",
]
BAD = [
    "[]",
    "{}",
    "{model: m}",
    "{backend: vllm, modle: m}",
    "{backend: 7}",
    "{backend: vllm, port: 0}",
    "{backend: vllm, log_limit: 10 GiB}",
    "{backend: vllm, log_limit: -1}",
    "{backend: vllm, on_log_limit: stop}",
    "{backend: vllm, port: 65536}",
    "{backend: vllm, port: '8000'}",
    "{backend: vllm, port: true}",
    "{backend: vllm, startup_timeout: 0}",
    "{backend: vllm, startup_timeout: -1}",
    "{backend: vllm, startup_timeout: 10000000000}",
    "{backend: vllm, debug_mode: 'true'}",
    "{backend: vllm, gpus: -1}",
    "{backend: vllm, gpus: 5000}",
    "{backend: vllm, cpus: -1}",
    "{backend: vllm, cpus: all}",
    "{backend: vllm, cpus: true}",
    "{backend: vllm, nodes: 0}",
    "{backend: vllm, nodes: 1.5}",
    "{backend: vllm, resources: [big]}",
    "{backend: vllm, resources: {big: -1}}",
    "{backend: vllm, resources: {GPU: 1}}",
    "{backend: vllm, resources: {memory: 1000}}",
    "{backend: vllm, resources: {big: 0.00001}}",
    "{backend: vllm, cpus: 0.00001}",
    "{backend: vllm, name: a/b}",
    "{backend: vllm, url: 'localhost:8000'}",
    "{backend: vllm, env_vars: [A=1]}",
    "{backend: vllm, env_vars: {A: true}}",
    "{backend: vllm, config: [--x]}",
    "{backend: vllm, profile: nsys}",
    "{backend: vllm, profile: {tool: nsis}}",
    "{backend: vllm, profile: {enabld: true}}",
    "{backend: vllm, profile: {on_demand: 'yes'}}",
    "{backend: vllm, profile: {flush_timeout: 0}}",
    "{backend: command, launch_command: run me}",
    "{backend: command, launch_command: []}",
    "{backend: command, launch_command: [run, true]}",
    "{backend: vllm, endpoints: {api: api}}",
    "{backend: vllm, health_endpoint: health}",
    "{servers: {}}",
    "{servers: null}",
    "{servers: [a]}",
    "{servers: {a: {model: m}}}",
    "{servers: {a/b: {backend: vllm}}}",
    "{servers: {a: {backend: vllm, prot: 1}}}",
    "{defaults: {prot: 1}, servers: {a: {backend: vllm}}}",
    "{defaults: {backend: vllm}}",
    "{model: m, servers: {a: {backend: vllm}}}",
]
# The backend finds these, the schema as well.
BAD_ARGUMENTS = [
    "{backend: vllm, model: m, config: {api_server_args: --x 1}}",
    "{backend: vllm, model: m, config: {server_args: [--x, true]}}",
]


def errors(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(json_schema())
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


def test_the_schema_is_a_schema_and_plain_json() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize("text", GOOD)
def test_what_is_accepted_is_valid(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "m")
    path = tmp_path / "s.yaml"
    # An interpolated port must stand outside of quotes, which the flow form does not allow.
    path.write_text(text.replace('"${PORT:-1}"', "1"))
    assert load_file(path)
    assert errors(text) == []


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_is_refused_by_both(text: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_file(path)
    assert errors(text)


@pytest.mark.parametrize("text", BAD_ARGUMENTS)
def test_a_mistake_in_the_arguments(text: str) -> None:
    assert errors(text)


@pytest.mark.parametrize("model", [ServerConfig, ProfileConfig])
def test_every_key_is_described(model: Any) -> None:
    properties = json_schema()["$defs"]["server"]["properties"]
    if model is ProfileConfig:
        properties = properties["profile"]["anyOf"][0]["properties"]
    assert properties.keys() == keys(model).keys()
    assert all(value["description"] for value in properties.values())


# Those in a folder 'tasks' are lm_eval's.
EXAMPLES = [path for path in sorted((ROOT / "conftest_examples").rglob("*.yaml")) if path.parent.name != "tasks"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_examples_are_valid(path: Path) -> None:
    assert errors(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("{backend: vllm, modle: m}", "$", "modle"),
        ("{bakend: vllm, model: m}", "$", "bakend"),
        ("{backend: vllm, port: 0}", "$.port", "0"),
        ("{backend: vllm, profile: {enabld: true}}", "$.profile", "enabld"),
        ("{servers: {a: {backend: vllm, modle: m}}}", "$.servers.a", "modle"),
        ("{servers: {a: {bakend: vllm, model: m}}}", "$.servers.a", "bakend"),
        ("{servers: {a: {model: m}}}", "$.servers.a", "backend"),
        ("{servers: {a: null, b: {backend: vllm}}}", "$.servers.a", "object"),
        ("{defaults: {bakend: vllm}, servers: {a: {model: m}}}", "$.defaults", "bakend"),
        ("{defaults: {backend: vllm}, servers: {a: {modle: m}}}", "$.servers.a", "modle"),
        ("{servrs: {a: {backend: vllm}}}", "$", "servrs"),
        ("{servers: {a: {backend: vllm}}, model: m}", "$", "model"),
        ("{model: m}", "$", "backend"),
    ],
)
def test_a_mistake_has_one_message_at_its_place(text: str, place: str, word: str) -> None:
    (error,) = jsonschema.Draft202012Validator(json_schema()).iter_errors(yaml.safe_load(text))
    assert error.json_path == place
    assert word in error.message


def test_an_editor_can_offer_the_backends_and_say_the_defaults() -> None:
    properties = json_schema()["$defs"]["server"]["properties"]
    assert set(properties["backend"]["anyOf"][0]["enum"]) == set(_BUILTIN)
    # One of the user's own is as good.
    assert errors("{backend: mine, model: m}") == []
    assert properties["host"]["default"] == "127.0.0.1"
    assert properties["stop_timeout"]["default"] == 30
    assert properties["debug_mode"]["default"] is False
    assert "default" not in properties["model"]


def test_it_has_an_id_of_its_own() -> None:
    schema = json_schema()
    assert schema["$id"] == "urn:pytest-infserver:configuration"
    # References within it are found under that id.
    jsonschema.validate({"backend": "vllm", "model": "m"}, schema, jsonschema.Draft202012Validator)
