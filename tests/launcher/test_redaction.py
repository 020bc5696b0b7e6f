from __future__ import annotations

import pytest

from pytest_infserver import CommandServer, InferenceServer, VLLMServer
from pytest_infserver.launcher.redaction import find_secrets, is_secret_name, margin, mask_cut, redact

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
        ("--tokenizer", False),
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
    ],
)
def test_find_secrets(env: dict[str, str | None], argv: list[str], secrets: set[str]) -> None:
    assert find_secrets(env, argv) == secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"a {SECRET} b {SECRET}", "a ******** b ********"),
        (f"{SECRET}456", "********"),
        ("nothing here", "nothing here"),
    ],
)
def test_redact_hides_the_longest_first(text: str, shown: str) -> None:
    assert redact(text, frozenset({SECRET, f"{SECRET}456"})) == shown


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
        CommandServer(launch_command=["run", "{port}", "--api-key", "key-in-a-list"], env_vars={"HF_TOKEN": SECRET}),
    ],
)
def test_the_shown_command_holds_no_secret(server: InferenceServer) -> None:
    command = server.command()
    shown = str(command)
    assert command.secrets
    assert "HF_TOKEN=********" in shown
    assert "--api-key" in shown
    for secret in ("key-in-a-list", "second-of-them", "s a key", SECRET):
        assert secret not in shown
    assert SECRET not in repr(server)


def test_what_is_no_secret_is_shown() -> None:
    server = vllm({"tokenizer": "org/tokenizer", "max-num-batched-tokens": 100000000, "api-key": "short"})
    for text in ("--tokenizer org/tokenizer", "--max-num-batched-tokens 100000000", "--api-key short"):
        assert text in str(server.command())


CUT = b"abc-abc-abcdef"


@pytest.mark.parametrize("cut", range(1, len(CUT)))
@pytest.mark.parametrize("before", [b"", b"text ", CUT, CUT * 3])
def test_a_secret_that_the_beginning_cuts_is_masked(cut: int, before: bytes) -> None:
    data = CUT[cut:] + b" end"
    known = (before + CUT[:cut])[-margin(frozenset({CUT.decode()})) :]
    assert mask_cut(known, data, frozenset({CUT.decode()})) == b"******** end"


def test_whole_secrets_at_the_edges_are_masked_once() -> None:
    secrets = frozenset({CUT.decode()})
    assert mask_cut(CUT, CUT + b" " + CUT, secrets) == b"******** ********"
    assert mask_cut(b"", b"", secrets) == b""
    assert mask_cut(b"x", b"y", frozenset()) == b"y"


@pytest.mark.parametrize("cut", range(8, len(CUT)))
def test_a_secret_that_the_end_cuts_is_masked(cut: int) -> None:
    secrets = frozenset({CUT.decode(), "another-one-that-is-longer"})
    assert mask_cut(b"", b"key " + CUT[:cut], secrets) == b"key ********"


def test_a_secret_that_ends_as_it_begins_is_masked_whole() -> None:
    secret = "deadbeef-0123456789-deadbeef"
    assert mask_cut(b"", b"key " + secret.encode(), frozenset({secret})) == b"key ********"
