"""llama.cpp's own llama-server, for which the embedded one stands elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from isolation import port_of_nobody

from pytest_infserver import ConfigError, LlamaCppServer, ServerStartupError
from pytest_infserver.compat_llamacpp import ServerProcess
from pytest_infserver.launcher.clients.openai_clients import make_session
from pytest_infserver.launcher.engine.known_options import learned
from pytest_infserver.models.builtin import ensure_builtin

from .answers import MESSAGES, post
from .conftest import all_gone, tree
from .provision import llama_server_binary
from .test_arguments import documented

pytestmark = pytest.mark.engine("llama-server")
LIMIT = 120.0
Make = Callable[..., LlamaCppServer]


@pytest.fixture
def binary() -> str:
    return str(llama_server_binary())


@pytest.fixture
def make(binary: str, tmp_path: Path, nothing_left: None) -> Iterator[Make]:
    """Make servers that run the binary: ``make({"slots": True}, api_key="...")``."""
    made: list[LlamaCppServer] = []

    def make(arguments: Any = None, model: str | None = "builtin:tiny", **settings: Any) -> LlamaCppServer:
        server = LlamaCppServer(
            model,
            **{
                "binary_path": binary,
                "config": {"server_args": {"threads": 1, **(arguments or {})}},
                "output_dir": tmp_path / "server_logs",
                "debug_mode": True,
                "startup_timeout": LIMIT,
                **settings,
            },
        )
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


def check_what_is_listed(server: LlamaCppServer) -> None:
    with make_session(server) as session:
        for name, url in server.list_endpoints().items():
            # It has one for GET and one for POST.
            answers = (session.get(url, timeout=LIMIT), session.post(url, json={}, timeout=LIMIT))
            assert any(answer.status_code not in (401, 404) for answer in answers), name


def test_it_answers_and_leaves_nothing(make: Make) -> None:
    server = make().start()
    assert (
        post(server, "/v1/chat/completions", messages=MESSAGES, max_tokens=6).json()["usage"]["completion_tokens"] == 6
    )
    assert [one["id"] for one in requests.get(server.url_for("/v1/models"), timeout=LIMIT).json()["data"]] == [
        server.api_model
    ]
    check_what_is_listed(server)
    processes = tree(server)
    server.stop()
    assert all_gone(processes)
    assert server.leak_report is not None
    assert server.leak_report.findings == ()


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({}, {"api_key": "a-key-of-some-length"}),
        ({"api-key": "a-key-of-some-length"}, {}),
        ({"api-prefix": "/below/here"}, {}),
        ({"alias": "called,so"}, {}),
        ({}, {"uds": "llama.sock"}),
        ({"reuse-port": True, "metrics": True, "slots": True}, {}),
    ],
    ids=["key", "key in its arguments", "prefix", "names", "socket", "more endpoints"],
)
def test_it_is_reached_wherever_it_is(
    make: Make, tmp_path: Path, arguments: dict[str, Any], settings: dict[str, Any]
) -> None:
    if "uds" in settings:
        settings = {"uds": str(tmp_path / settings["uds"])}
    with make(arguments, **settings) as server, make_session(server) as session:
        assert server.check_health()
        body = {"model": server.api_model, "messages": MESSAGES, "max_tokens": 2}
        answer = session.post("/v1/chat/completions", json=body, timeout=LIMIT)
        assert answer.status_code == 200, answer.text
        check_what_is_listed(server)


def test_a_router_has_no_model_and_starts_its_servers_itself(make: Make, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny.gguf").symlink_to(ensure_builtin("builtin:tiny", print))
    with make({"models-dir": str(models)}, model=None) as server:
        names = server.api_models
        assert list(names) == ["tiny"]
        answer = post(server, "/v1/chat/completions", model="tiny", messages=MESSAGES, max_tokens=2)
        assert answer.status_code == 200, answer.text
        processes = tree(server)
        # The router, and the server that it has started.
        assert len(processes) >= 2
    assert all_gone(processes)


def test_its_death_is_told(make: Make) -> None:
    server = make().start()
    psutil.Process(server.pid).send_signal(signal.SIGKILL)
    assert server.wait_death(LIMIT)
    assert "killed by SIGKILL" in str(server.runtime.why_died())


def test_why_it_does_not_start_is_in_the_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing of value")
    with pytest.raises(ServerStartupError, match=r"failed to load model|error loading model"):
        make(model=str(tmp_path / "bad.gguf")).start()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Options are compared with what the binary has, which is learned anew."""
    monkeypatch.delenv("INFSERVER_CHECK_OPTIONS")
    monkeypatch.setattr(learned, "cache_dir", lambda: tmp_path)


def test_a_misspelt_option_is_refused_before_the_second_start(make: Make, checked: None) -> None:
    with make():
        pass
    server = make({"ctx-sizes": 64})
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="llama-server has no option --ctx-sizes; did you mean --ctx-size"):
        server.start()
    assert server.launches == 0
    assert time.monotonic() - begin < 3


def test_no_option_that_is_documented_or_in_its_help_is_refused(
    make: Make, checked: None, binary: str, tmp_path: Path
) -> None:
    with make():
        pass
    parser = learned.find_program("llama-server", binary, dict(os.environ))
    assert parser is not None
    table = learned.learned_table(parser)
    assert table is not None
    for place, one in documented("llamacpp", tmp_path):
        assert table.mistake(one.server_args()) is None, place
    text = subprocess.run([binary, "--help"], capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    flags = {word.rstrip(",") for line in text.splitlines() if line.startswith("-") for word in line.split()[:6]}
    flags = {word for word in flags if word.startswith("--") and word.strip("-")}
    assert len(flags) > 150
    known = {flag for option in table.options for flag in option.flags}
    assert flags - known == set()


def test_the_class_of_its_own_tests_runs_it(binary: str, monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    monkeypatch.setenv("LLAMA_SERVER_BIN_PATH", binary)
    server = ServerProcess()
    server.model_file, server.n_threads, server.n_slots = "builtin:tiny", 1, 2
    server.server_slots = server.server_metrics = True
    server.server_port = port_of_nobody()
    server.start(LIMIT)
    try:
        assert server.make_request("GET", "/props").body["total_slots"] == 2
        data = {"prompt": "Once", "n_predict": 4, "stream": True}
        assert [*server.make_stream_request("POST", "/completion", data)][-1]["stop"]
        assert server.make_request("GET", "/metrics").status_code == 200
    finally:
        server.stop()
