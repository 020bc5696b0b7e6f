"""What suites of engines call their servers by, on this package's launcher."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_servers import FAKE_ENGINE

from pytest_infserver import ConfigError, VLLMServer
from pytest_infserver.compat_llamacpp import ServerError, ServerProcess, server_instances
from pytest_infserver.compat_sglang import kill_process_tree, popen_launch_server
from pytest_infserver.compat_vllm import RemoteOpenAIServer
from pytest_infserver.launcher.clients.joined_stream import join_chat
from pytest_infserver.launcher.startup import ports


@pytest.fixture
def in_folder(installed_vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{installed_vllm.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)


def arguments(url: str) -> list[str]:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/argv", timeout=10) as answer:
        words: list[str] = json.load(answer)["argv"]
    return words


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        number: int = one.getsockname()[1]
    return number


def test_a_module_fixture_of_vllm(in_folder: None) -> None:
    pytest.importorskip("openai")
    overrides = {"num_layers": 2}
    with RemoteOpenAIServer(
        "some/model", ["--max-model-len", "99"], env_dict={"A": "1"}, max_wait_seconds=20, override_hf_configs=overrides
    ) as server:
        assert (
            server.url_for("v1", "models")
            == f"{server.url_root}/v1/models"
            == f"http://{server.host}:{server.port}/v1/models"
        )
        assert server.get_client().models.list().data[0].id == "fake"
        client = server.get_async_client(timeout=5)
        assert (client.timeout, client.api_key, client.max_retries) == (5, "token-abc123", 0)

        async def model() -> str:
            return (await client.models.list()).data[0].id

        assert asyncio.run(model()) == "fake"
        words = arguments(server.url_root)
        assert words[words.index("--hf-overrides") + 1] == json.dumps(overrides)
        assert words[words.index("--seed") + 1] == "0"
        process = server.proc
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == process.returncode is not None


def test_its_clients_of_anthropic(in_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client(SimpleNamespace):
        """Has what it was made with."""

    package = SimpleNamespace(Anthropic=Client, AsyncAnthropic=Client)
    monkeypatch.setitem(sys.modules, "anthropic", package)  # type: ignore[arg-type]
    with RemoteOpenAIServer("some/model", [], max_wait_seconds=20) as server:
        for client in (server.get_client_anthropic(timeout=5), server.get_async_client_anthropic(timeout=5)):
            assert (client.base_url, client.api_key, client.timeout) == (server.url_root, "token-abc123", 5)
        assert server.uds is None


def test_its_unix_socket(in_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VLLMServer, "start", lambda server: server)
    assert RemoteOpenAIServer("some/model", ["--uds", "/tmp/vllm.sock"]).uds == "/tmp/vllm.sock"


@pytest.mark.parametrize("form", ["--port {}", "--port={}"])
def test_a_port_of_the_arguments(in_folder: None, free_port: int, form: str) -> None:
    words = form.format(free_port).split()
    with pytest.raises(ConfigError, match="auto_port=False"):
        RemoteOpenAIServer("some/model", words)
    with RemoteOpenAIServer("some/model", [*words, "--seed", "7"], auto_port=False, seed=3) as server:
        assert server.port == free_port
        assert arguments(server.url_root).count("--seed") == 1


def test_a_start_that_fails_is_a_runtime_error(in_folder: None) -> None:
    with pytest.raises(RuntimeError, match="code 3"):
        RemoteOpenAIServer("some/model", ["--exit", "3"])


@pytest.fixture
def sglang(in_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A python that has a fake sglang."""
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(
        f"import runpy\nrunpy.run_path({str(FAKE_ENGINE)!r}, run_name='__main__')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_class_of_sglang(sglang: None, free_port: int, nothing_left: None) -> None:
    url = f"http://127.0.0.1:{free_port}"
    output = io.StringIO()
    env: dict[str, Any] = {**os.environ, "MINE": "1"}
    env.pop("HOME", None)
    process = popen_launch_server(
        "some/model", url, timeout=20, other_args=["--say", "hello"], env=env, return_stdout_stderr=(output, output)
    )
    assert (process.poll(), ports.is_listener(free_port, process.pid, process.pid)) == (None, True)
    assert "--model-path" in arguments(url)
    kill_process_tree(process.pid)
    assert process.poll() is not None
    assert "hello\n" in output.getvalue()
    with pytest.raises(ConfigError, match="another program"):
        popen_launch_server("some/model", url, timeout=20, pd_separated=True)


def test_the_tree_of_any_process_can_be_killed(nothing_left: None) -> None:
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    kill_process_tree(child.pid)
    assert child.wait(10) == -signal.SIGKILL
    kill_process_tree(child.pid)


@pytest.fixture
def llama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int, nothing_left: None
) -> Iterator[ServerProcess]:
    """A server as a preset of llama.cpp's makes it, not started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", str(free_port))
    server = ServerProcess()
    server.server_path, server.model_file, server.model_alias = sys.executable, "builtin:tiny", "tinyllama-2"
    server.n_ctx, server.n_slots, server.n_predict, server.n_threads = 512, 2, 8, 1
    yield server
    server.stop()


def test_a_server_of_llamacpp(llama: ServerProcess, tmp_path: Path) -> None:
    llama.server_slots, llama.api_key, llama.log_path = True, "a-key", str(tmp_path / "own.log")
    llama.start(timeout_seconds=30)
    assert llama in server_instances
    key = {"Authorization": "Bearer a-key"}
    assert llama.make_request("GET", "/props").status_code == 401
    props = llama.make_request("GET", "/props", headers=key)
    assert (props.status_code, props.body["total_slots"]) == (200, 2)
    assert "application/json" in props.headers["Content-Type"]
    assert llama.make_request("OPTIONS", "/props", headers={"Origin": "http://x"}).body is None
    slots = llama.make_request("GET", "/slots", headers=key)
    assert {slot["n_ctx"] for slot in slots.body} == {256}
    answer = llama.make_request("POST", "/completion", {"prompt": "this", "temperature": 0}, key)
    assert answer.body["tokens_predicted"] == 8
    events = list(llama.make_stream_request("POST", "/completion", {"prompt": "this", "stream": True}, key))
    assert events[-1]["stop"]
    with pytest.raises(ServerError) as refused:
        next(llama.make_stream_request("POST", "/completion", {"prompt": "this", "stream": True}))
    assert refused.value.code == 401
    assert "listening" in (tmp_path / "own.log").read_text()
    process = llama.process
    assert process is not None
    llama.stop()
    assert (process.poll(), llama.process) == (0, None)
    assert llama not in server_instances


@pytest.mark.parametrize("stream", [False, True])
def test_any_request_of_llamacpp_has_one_form(llama: ServerProcess, stream: bool) -> None:
    llama.start(timeout_seconds=30)
    body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "stream": stream}
    answer = llama.make_any_request("POST", "/v1/chat/completions", body)
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert (choice["message"]["role"], choice["message"].get("tool_calls")) == ("assistant", None)
    assert len(choice["message"]["content"].split()) >= 5


def test_attributes_of_llamacpp_become_flags(llama: ServerProcess) -> None:
    llama.server_path, llama.seed, llama.n_batch, llama.cache_ram = "/no/such/llama-server", 0, 0, 0
    llama.spec_synth_rates, llama.lora_files, llama.kv_unified = [0.5, 1], ["a.gguf", "b.gguf"], False
    llama.enable_ctx_shift, llama.fa, llama.no_ui = True, "on", True
    with pytest.raises(RuntimeError, match="/no/such/llama-server"):
        llama.start()
    assert llama.server is not None
    words = " ".join(llama.server.server_args())
    assert words.startswith("--no-jinja --no-slots --temp 0.8 --seed 0 --alias tinyllama-2 --ctx-size 512 --threads 1")
    for given in ("--cache-ram 0", "--spec-synth-rates 0.5,1", "--context-shift --spec", "--flash-attn on", "--no-ui"):
        assert given in words
    assert words.endswith("--lora a.gguf --lora b.gguf")
    assert "--batch-size" not in words
    assert "--kv-unified" not in words


def test_tool_calls_of_a_stream_are_put_together() -> None:
    def chunk(**delta: Any) -> dict[str, Any]:
        return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    def call(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "id": f"call-{index}", "function": function}

    end = {"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}], "usage": {"n": 3}}
    pieces = [chunk(reasoning_content="I "), chunk(reasoning_content="think"), chunk(content="")]
    pieces += [chunk(tool_calls=[call(0, name="sum", arguments='{"a"')]), chunk(tool_calls=[call(0, arguments=": 1}")])]
    body = join_chat([*pieces, chunk(tool_calls=[call(1, name="now")]), end, {"id": "1", "choices": []}])
    assert (body["id"], body["usage"]) == ("1", {"n": 3})
    [choice] = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("I think", "")
    assert [(one["id"], one["function"]) for one in choice["message"]["tool_calls"]] == [
        ("call-0", {"name": "sum", "arguments": '{"a": 1}'}),
        ("call-1", {"name": "now", "arguments": ""}),
    ]


def test_a_gap_is_filled_by_the_tiny_model(llama: ServerProcess) -> None:
    llama.start(timeout_seconds=30)
    gap = {"input_prefix": "def f():\n    return ", "input_suffix": "\n", "temperature": 0}
    filled = llama.make_request("POST", "/infill", gap)
    assert filled.status_code == 200, filled.body
    assert filled.body["tokens_predicted"] == 8
    # The marks are tokens also where a prompt has them as text.
    prompt = {"content": "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", "parse_special": True}
    tokens = llama.make_request("POST", "/tokenize", prompt).body["tokens"]
    assert len(tokens) == 5


def test_several_hosts_of_llamacpp(llama: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them answer; where none is named it is the first one."""
    monkeypatch.setenv("LLAMA_ARG_HOST", "192.0.2.1")
    llama.server_host = "127.0.0.1, 127.0.0.2"
    llama.start(timeout_seconds=30)
    assert llama.make_url("/x").startswith("http://127.0.0.1:")
    for host in (None, "127.0.0.1", "127.0.0.2"):
        assert llama.make_request("GET", "/health", host=host).status_code == 200


def test_a_llamacpp_without_a_model_is_a_router(llama: ServerProcess, tmp_path: Path) -> None:
    program = tmp_path / "router"
    program.write_text('#!/bin/sh\necho "error: given $*" >&2\nexit 1\n')
    program.chmod(0o755)
    llama.model_file, llama.server_path = None, str(program)
    with pytest.raises(RuntimeError, match="exited with code 1"):
        llama.start()
    assert llama.server is not None
    assert "given --host 127.0.0.1" in llama.server.read_log()


@pytest.mark.parametrize("name", ["compat_llamacpp", "compat_sglang", "compat_vllm"])
def test_a_drop_in_is_short_enough_to_be_read(name: str) -> None:
    path = Path(__file__).parents[1] / "pytest_infserver" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 150
