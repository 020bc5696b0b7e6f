"""What tests do with a server: its names for requests, URLs, process, log and reset."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from pytest_infserver import (
    CommandServer,
    InferenceServerError,
    LlamaCppServer,
    LogTimeoutError,
    RemoteServer,
    ServerDiedError,
    SGLangServer,
    VLLMServer,
)
from pytest_infserver.launcher.operations.reset import reset


def get(server: CommandServer, path: str) -> None:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.url_for(path), timeout=10).close()


@pytest.mark.parametrize(
    ("kind", "args", "names"),
    [
        (VLLMServer, [], ["some/model"]),
        (VLLMServer, ["--served-model-name", "a", "b"], ["a", "b"]),
        (VLLMServer, {"served_model_name": "a"}, ["a"]),
        (VLLMServer, ["--served-model-name=a", "--max-model-len", "9"], ["a"]),
        (
            VLLMServer,
            ["--enable-lora", "--lora-modules", "sql=./x", '{"name": "c", "path": "y"}'],
            ["some/model", "sql", "c"],
        ),
        (SGLangServer, ["--served-model-name", "a", "--lora-paths", "l=./x"], ["a", "l"]),
        (LlamaCppServer, ["--alias", "a,b", "--lora", "x.gguf"], ["a", "b"]),
        (LlamaCppServer, ["-a", "a"], ["a"]),
        (LlamaCppServer, [], ["some/model"]),
    ],
)
def test_the_name_for_requests_is_told_by_the_command(kind: Any, args: Any, names: list[str]) -> None:
    server = kind(model="some/model", config={"server_args": args}, binary_path="engine")
    assert server.model == "some/model"
    assert (server.api_model, list(server.api_models)) == (names[0], names)


def test_the_builtin_model_is_called_as_it_is_configured() -> None:
    server = LlamaCppServer(model="builtin:tiny")
    assert server.api_model == "builtin:tiny"


def test_a_server_that_does_not_say_its_model_is_asked(fake_server: Callable[..., CommandServer]) -> None:
    server = fake_server()
    assert server.api_model == ""
    server.start()
    assert server.api_model == RemoteServer(url=server.server_url).api_model == "fake"
    assert RemoteServer(url=server.server_url, model="mine").api_model == "mine"


def test_url_for_takes_a_path_or_its_parts() -> None:
    server = RemoteServer(url="http://127.0.0.1:8000/prefix")
    root = "http://127.0.0.1:8000/prefix"
    assert server.url_for("/v1/models") == server.url_for("v1", "models") == server.url_for("/v1/", "/models")
    assert server.url_for("v1", "", "models/") == f"{root}/v1/models/"
    assert server.url_for("") == f"{root}/"


def test_the_process_ends_by_a_signal_and_tells_how(fake_server: Callable[..., CommandServer]) -> None:
    server = fake_server().start()
    process = server.process
    assert (process.pid, process.poll(), process.returncode) == (server.pid, None, None)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=10) == process.poll() == process.returncode == -signal.SIGKILL
    process.terminate()
    server.start()
    assert server.process.pid != process.pid
    assert (server.process.poll(), process.poll()) == (None, -signal.SIGKILL)


def test_a_shared_server_gets_no_signal(fake_server: Callable[..., CommandServer]) -> None:
    server = fake_server().start()
    server.runtime.stop_refusal = "it is shared"
    for deed in (server.process.kill, server.process.terminate):
        with pytest.raises(InferenceServerError, match="it is shared"):
            deed()
    assert server.process.poll() is None


def test_without_a_process_it_says_why(fake_server: Callable[..., CommandServer]) -> None:
    server = fake_server()
    with pytest.raises(InferenceServerError, match="start it first"):
        _ = server.process
    with pytest.raises(InferenceServerError, match="attached"):
        _ = RemoteServer(url="http://127.0.0.1:1").process


def test_a_line_of_the_log_is_waited_for(fake_server: Callable[..., CommandServer]) -> None:
    server = fake_server("--say", "step 1 done").start()
    assert server.wait_for_log(r"step (\d) done").group(1) == "1"
    mark = server.log_size
    later = threading.Timer(0.2, get, (server, "/say?text=step+2+done"))
    later.start()
    assert server.wait_for_log(re.compile(r"step (\d) done"), since=mark, timeout=10).group(1) == "2"
    later.join()
    with pytest.raises(LogTimeoutError, match=r"'no such line' within 0\.1 s \(log: .*(\n.*)+step 2 done") as caught:
        server.wait_for_log("no such line", timeout=0.1)
    assert isinstance(caught.value, TimeoutError)


def test_no_line_is_waited_for_from_a_server_that_is_gone(fake_server: Callable[..., CommandServer]) -> None:
    server = fake_server().start()
    begin = time.monotonic()
    later = threading.Timer(0.2, lambda: server.process.kill())
    later.start()
    with pytest.raises(ServerDiedError):
        server.wait_for_log("no such line")
    later.join()
    server.stop()
    with pytest.raises(InferenceServerError, match="does not run"):
        server.wait_for_log("no such line")
    assert time.monotonic() - begin < 20


def test_reset_says_what_was_refused(fake_server: Callable[..., CommandServer]) -> None:
    reset(fake_server(reset="/reset", name="good").start())
    with pytest.raises(InferenceServerError, match=r"POST /nothing was answered 404.*'reset:'"):
        reset(fake_server(reset=["/reset", "/nothing"], name="bad").start())


def test_what_a_maintainer_catches_as_runtime_error(fake_server: Callable[..., CommandServer]) -> None:
    with pytest.raises(RuntimeError, match="code 3"):
        fake_server("--exit", "3").start()
