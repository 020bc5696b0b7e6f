"""What is a secret, by its name and by where it stands."""

from __future__ import annotations

import json

import pytest

from pytest_infserver import CommandServer, InferenceServer, VLLMServer
from pytest_infserver.system.secrets import find_secrets, is_secret_name

SECRET = "hf_0123456789"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("--api-key", True),
        ("--hf_token", True),
        ("OPENAI_API_KEY", True),
        ("db.password", True),
        ("CLIENT_SECRET", True),
        ("credential", True),
        ("API_KEYS", True),
        ("DB_CREDENTIALS", True),
        ("ACCESS_TOKENS", True),
        ("PGPASSWORD", True),
        ("OPENAI_APIKEY", True),
        ("--apikey", True),
        ("--api-keys", True),
        ("AUTH", True),
        ("REDISCLI_AUTH", True),
        ("PAT", True),
        ("GITHUB_PAT", True),
        ("PASSPHRASE", True),
        ("PASSWD", True),
        ("--passwd", True),
        ("DB_PWD", True),
        ("SMTP_PASS", True),
        ("API_KEY_2", True),
        ("SECRET1", True),
        ("apiKey", True),
        ("accessToken", True),
        ("awsSecretAccessKey", True),
        ("x-api-key", True),
        ("Authorization", True),
        ("--tokenizer", False),
        ("--max-tokens", False),
        ("--num-speculative-tokens", False),
        ("bos_token", False),
        ("PATH", False),
        ("PWD", False),
        ("OLDPWD", False),
        ("SSH_AUTH_SOCK", False),
        ("--api-key-file", False),
        ("--ssl-key-file", False),
        ("TOKEN_PATH", False),
        ("apiKeyFile", False),
        ("FILE_TOKEN", True),
        ("GIT_AUTHOR_NAME", False),
        ("XAUTHORITY", False),
        ("PYTHONPATH", False),
        ("COMPASS", False),
        ("--keywords", False),
        ("", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("--max-num-batched-tokens", False),
        ("--keyboard", False),
        ("MONKEY", False),
        ("HOME", False),
    ],
)
def test_names(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


@pytest.mark.parametrize(
    ("env", "argv", "secrets"),
    [
        ({"HF_TOKEN": SECRET, "HOME": "/home/somebody"}, [], {SECRET}),
        ({"HF_TOKEN": "1234567"}, [], set()),
        ({"HF_TOKEN": "12345678"}, [], {"12345678"}),
        ({"HF_TOKEN": None, "API_KEY": ""}, [], set()),
        ({}, ["--api-key", SECRET], {SECRET}),
        ({}, [f"--api-key={SECRET}"], {SECRET}),
        ({}, ["--api-key", "first-key-1", "second-key", "--port", "12345678"], {"first-key-1", "second-key"}),
        ({}, ["--api-key=short", "a-positional-word"], set()),
        ({}, ["--api-key", "--served-model-name", "a-long-model-name"], set()),
        ({}, ["--tokenizer", "a/tokenizer", "--max-num-batched-tokens", "100000000"], set()),
        ({}, ["serve", "api-key", "a-positional-word"], set()),
        ({}, ["--api-keys", f"{SECRET},another-key-1"], {f"{SECRET},another-key-1", SECRET, "another-key-1"}),
        ({}, ["--api-key", "-Zx81kd92kf", "-Zx99kd92kf"], {"-Zx81kd92kf"}),
        ({}, ["--api-key", "--Zx81kd92kf"], {"--Zx81kd92kf"}),
        ({}, ["--hf-token", "-tp", "2"], set()),
        ({"BASIC_AUTH": "somebody:hunter22222"}, [], {"somebody:hunter22222", "hunter22222"}),
        ({"AUTH": "Bearer 0123456789"}, [], {"Bearer 0123456789", "0123456789"}),
        ({"PWD": "/home/somebody", "OLDPWD": "/home/somebody", "SSH_AUTH_SOCK": "/tmp/ssh-1/agent"}, [], set()),
        ({"TOKENS": "100000000", "MAX_TOKENS": "100000000"}, [], set()),
        ({"DATABASE_URL": "postgres://somebody:hunter%4022@db.example/x"}, [], {"hunter%4022", "hunter@22"}),
        ({"INDEX": "https://host/simple?access_token=0123456789&x=0123456780"}, [], {"0123456789"}),
        ({"PYTEST_ADDOPTS": f"-x --infserver-env HF_TOKEN={SECRET}"}, [], {SECRET}),
        ({}, ["sh", "-c", f"serve --api-key '{SECRET}' --port 1"], {SECRET}),
        ({}, ["docker", "run", "-e", f"HF_TOKEN={SECRET}"], {SECRET}),
        ({}, [f"--infserver-env=HF_TOKEN={SECRET}"], {SECRET}),
        (
            {},
            ["--config", '{"storage": {"api_key": "in-json-1", "keys": ["in-a-list"], "url": "x"}}'],
            {"in-json-1", "in-a-list"},
        ),
        ({}, ['--config={"credentials": {"user": {"name": "in-json-2"}}}'], {"in-json-2"}),
        ({"CONFIG": '[{"auth": "in-json-3", "model": "a-long-model-name"}]'}, [], {"in-json-3"}),
        ({}, ["--config", json.dumps({"env": json.dumps({"token": "in-json-4"})})], {"in-json-4"}),
        ({}, ["--config", '{"max_tokens": 100000000, "password": 123456789}'], {"123456789"}),
        ({}, ["--config", '{"api_key": "not-json-1'], set()),
        ({}, ["--config", "[" * 100_000], set()),
        ({"A": "a=" * 10_000}, [], set()),
    ],
)
def test_find_secrets(env: dict[str, str | None], argv: list[str], secrets: set[str]) -> None:
    assert find_secrets(env, argv) == secrets


def test_what_belongs_to_a_flag_of_a_secret_is_the_same_for_all() -> None:
    server = CommandServer(launch_command=["run", "{port}", "--api-key", "-Zx81kd92kf", "--alias", "m"])
    assert server.api_key == "-Zx81kd92kf"
    assert "-Zx81kd92kf" in server.secrets
    bare = CommandServer(launch_command=["run", "{port}", "--api-key", "--served-model-name", "a-long-model-name"])
    assert bare.api_key is None


def vllm(arguments: object) -> InferenceServer:
    return VLLMServer(model="m", config={"api_server_args": arguments}, env_vars={"HF_TOKEN": SECRET})


@pytest.mark.parametrize(
    "server",
    [
        vllm(["--api-key", "key-in-a-list"]),
        vllm(["--api-key=key-in-a-list"]),
        vllm({"api_key": "key-in-a-list"}),
        vllm({"api-key": ["key-in-a-list", "second-of-them"]}),
        vllm({"api-key": "it's a key"}),
        vllm({"api_keys": "key-in-a-list,second-of-them"}),
        vllm({"config": {"nested": {"api_key": "key-in-a-list"}}, "api-key": "second-of-them"}),
        vllm({"config": {"api_key": 'key "in" a-list'}, "api-key": "second-of-them"}),
        CommandServer(launch_command=["run", "{port}", "--api-key", "key-in-a-list"], env_vars={"HF_TOKEN": SECRET}),
    ],
)
def test_the_shown_command_holds_no_secret(server: InferenceServer) -> None:
    command = server.command()
    shown = str(command)
    assert command.secrets
    assert "HF_TOKEN=********" in shown
    assert "--api-key" in shown
    for secret in ("key-in-a-list", "second-of-them", "s a key", "a-list", SECRET):
        assert secret not in shown
        assert secret not in repr(command)
    assert SECRET not in repr(server)


def test_what_is_no_secret_is_shown() -> None:
    server = vllm({"tokenizer": "org/tokenizer", "max-num-batched-tokens": 100000000, "api-key": "short"})
    for text in ("--tokenizer org/tokenizer", "--max-num-batched-tokens 100000000", "--api-key short"):
        assert text in str(server.command())
