"""llama-server's command line on xllamacpp: real processes, serving the tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from pytest_infserver.embedded_llamacpp import server as llamacpp_server
from pytest_infserver.models.builtin import builtin_path

ROOT = Path(llamacpp_server.__file__).parents[2]
TINY = str(builtin_path("builtin:tiny"))
READY_S = 30.0
REQUEST_S = 20.0
EXIT_S = 30.0
SENTENCE = "this tiny model knows only a few words and says them in order"


class Server:
    """A running server under test.

    Attributes:
        process: Its process.
        log: The file that gets its stderr.
        key: The API key to send, if not empty.
        url: Where it listens, with the prefix.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.key = ""
        self.url = ""

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=self._headers(), timeout=REQUEST_S)

    def post(self, path: str, **body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, headers=self._headers(), timeout=REQUEST_S)

    def stream(self, **body: Any) -> requests.Response:
        body |= {"stream": True}
        return requests.post(f"{self.url}/v1/completions", json=body, timeout=REQUEST_S, stream=True)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def complete(self, **body: Any) -> str:
        answer = self.post("/v1/completions", **{"prompt": "Once upon a time", "max_tokens": 12} | body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def wait_ready(self, prefix: str) -> None:
        """Wait until the server is healthy; its address is in its log, as it chooses the port itself."""
        give_up = time.monotonic() + READY_S
        while time.monotonic() < give_up:
            text = self.log.read_text()
            assert self.process.poll() is None, text
            found = re.search(r"listening on (http://\S+)", text)
            if found:
                self.url = found[1] + prefix
                if requests.get(f"{self.url}/health", timeout=REQUEST_S).status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"not ready after {READY_S} s: {self.log.read_text()}")


@contextmanager
def serving(folder: Path, *flags: str, prefix: str = "") -> Iterator[Server]:
    log = folder / f"server-{time.monotonic_ns()}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            # One thread: several wait for each other by spinning, which takes 50 times as long on a busy machine.
            command("--model", TINY, "--port", "0", "--threads", "1", *flags),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    server = Server(process, log)
    try:
        server.wait_ready(prefix)
        yield server
    finally:
        process.kill()
        process.communicate(timeout=EXIT_S)


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "pytest_infserver.embedded_llamacpp.server", *flags]


def environment(*folders: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))}


def run(*flags: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the server with flags that make it end by itself; `path` comes first on the import path."""
    return subprocess.run(
        command(*flags),
        env=environment(*([path] if path else [])),
        capture_output=True,
        text=True,
        timeout=READY_S,
    )


pytestmark = [pytest.mark.usefixtures("nothing_left")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests that change nothing in it."""
    pytest.importorskip("xllamacpp")
    flags = ("--metrics", "--alias", "tiny,small", "--ctx-size", "2048", "--parallel", "2")
    with serving(tmp_path_factory.mktemp("server"), *flags) as running:
        yield running


class TestServing:
    def test_health(self, server: Server) -> None:
        assert server.get("/health").json() == {"status": "ok"}

    def test_a_completion(self, server: Server) -> None:
        answer = server.post("/v1/completions", prompt="Hello", max_tokens=12).json()
        assert answer["usage"]["completion_tokens"] == 12
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["choices"][0]["text"].isprintable()

    def test_a_chat_without_jinja(self, tmp_path: Path) -> None:
        with serving(tmp_path, "--no-jinja") as server:
            messages = [{"role": "user", "content": "Hello"}]
            answer = server.post("/v1/chat/completions", messages=messages, max_tokens=8)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"]

    def test_a_chat(self, server: Server) -> None:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        answer = server.post("/v1/chat/completions", messages=messages, max_tokens=8).json()
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert answer["choices"][0]["message"]["content"].strip()

    def test_that_temperature_0_repeats_the_planted_sentence(self, server: Server) -> None:
        texts = {server.complete(temperature=0, max_tokens=40) for _ in range(3)}
        assert len(texts) == 1
        assert SENTENCE in texts.pop()

    def test_that_seeds_matter(self, server: Server) -> None:
        texts = [server.complete(seed=seed, max_tokens=24) for seed in (1, 2, 3, 4, 1)]
        assert len(set(texts)) > 1
        assert texts[0] == texts[-1]

    @pytest.mark.parametrize("seed", range(5))
    def test_that_even_wild_sampling_gives_plain_text(self, server: Server, seed: int) -> None:
        text = server.complete(seed=seed, max_tokens=100, temperature=2, top_k=0, top_p=1, min_p=0)
        assert text.isascii()
        assert text.isprintable()

    def test_that_a_stream_ends_with_done(self, server: Server) -> None:
        with server.stream(prompt="Hello", max_tokens=20, temperature=0) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            events = [line.removeprefix("data: ") for line in response.iter_lines(decode_unicode=True) if line]
        assert events[-1] == "[DONE]"
        text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
        assert len(events) > 10
        assert text == server.complete(prompt="Hello", max_tokens=20, temperature=0)

    @pytest.mark.parametrize("temperature", [0, 0.8, 1.5])
    @pytest.mark.parametrize("seed", [1, 2])
    def test_that_a_schema_is_kept_to(self, server: Server, temperature: float, seed: int) -> None:
        schema = {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "good": {"type": "boolean"},
            },
            "required": ["name", "age", "tags", "good"],
            "additionalProperties": False,
        }
        response = server.post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "Describe a person."}],
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
            temperature=temperature,
            seed=seed,
            max_tokens=400,
        )
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        person = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"
        assert list(person) == ["name", "age", "tags", "good"]
        assert isinstance(person["name"], str)
        assert isinstance(person["age"], int)
        assert isinstance(person["tags"], list)
        assert isinstance(person["good"], bool)

    @pytest.mark.parametrize("text", [SENTENCE, "Grüße aus 東京 🎉\n\tx = {'a': 1}", ""])
    def test_that_every_text_survives_tokens_and_back(self, server: Server, text: str) -> None:
        tokens = server.post("/tokenize", content=text).json()["tokens"]
        assert server.post("/detokenize", tokens=tokens).json()["content"] == text

    def test_that_known_words_are_one_token_each(self, server: Server) -> None:
        assert len(server.post("/tokenize", content=" " + SENTENCE).json()["tokens"]) == len(SENTENCE.split())

    def test_metrics(self, server: Server) -> None:
        assert "llamacpp:prompt_tokens_total" in server.get("/metrics").text

    def test_the_alias(self, server: Server) -> None:
        (model,) = server.get("/v1/models").json()["data"]
        assert set(model["aliases"]) == {"tiny", "small"}
        assert model["id"] in model["aliases"]

    def test_the_context_and_the_slots(self, server: Server) -> None:
        assert server.get("/props").json()["total_slots"] == 2
        assert [slot["n_ctx"] for slot in server.get("/slots").json()] == [1024, 1024]

    def test_that_a_prompt_over_the_context_is_refused(self, server: Server) -> None:
        answer = server.post("/v1/completions", prompt="x" * 3000, max_tokens=1)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "exceed_context_size_error"

    def test_that_the_log_goes_to_stderr(self, server: Server) -> None:
        assert "model loaded" in server.log.read_text()

    def test_that_it_is_one_process(self, server: Server) -> None:
        assert psutil.Process(server.process.pid).children(recursive=True) == []


class TestFlags:
    """Flags whose effect shows over HTTP, several to a server to save time."""

    @pytest.fixture(autouse=True)
    def _engine(self) -> None:
        pytest.importorskip("xllamacpp")

    def test_that_defaults_are_those_of_llama_server(self, tmp_path: Path) -> None:
        with serving(tmp_path) as server:
            props = server.get("/props").json()
            assert props["total_slots"] == 4
            assert props["ui"] is True
            assert props["model_path"] == TINY
            assert {slot["n_ctx"] for slot in server.get("/slots").json()} == {4096}
            assert server.get("/metrics").status_code == 501
            assert server.post("/props").status_code == 501
            assert server.post("/v1/embeddings", input="x").status_code == 501
            assert server.url.startswith("http://127.0.0.1:")

    def test_sampling_and_template(self, tmp_path: Path) -> None:
        (tmp_path / "plain.jinja").write_text("Q:{% for m in messages %}{{ m.content }}{% endfor %}")
        flags = ["--temp", "0.25", "--top-k", "7", "--top-p", "0.5", "--min-p", "0.125", "-s", "42", "-n", "9"]
        with serving(tmp_path, *flags, "--chat-template-file", str(tmp_path / "plain.jinja")) as server:
            props = server.get("/props").json()
            sampling = props["default_generation_settings"]["params"]
            assert props["chat_template"] == (tmp_path / "plain.jinja").read_text()
            assert [sampling[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")] == [
                0.25,
                7,
                0.5,
                0.125,
                42,
            ]
            assert server.post("/v1/completions", prompt="x").json()["usage"]["completion_tokens"] == 9

    def test_keys(self, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text("# comment\nthird\n")
        flags = ["--api-key", "first,second", "--api-key-file", str(tmp_path / "keys")]
        with serving(tmp_path, *flags) as server:
            assert server.post("/v1/completions", prompt="x", max_tokens=1).status_code == 401
            for key, status in {"first": 200, "second": 200, "third": 200, "fourth": 401, "# comment": 401}.items():
                server.key = key
                assert server.post("/v1/completions", prompt="x", max_tokens=1).status_code == status, key

    def test_key_in_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMA_API_KEY", "first,second")
        with serving(tmp_path, "--api-key", "third") as server:
            assert server.post("/v1/completions", prompt="x", max_tokens=1).status_code == 401
            for key, status in {"first": 200, "second": 200, "third": 200, "fourth": 401}.items():
                server.key = key
                assert server.post("/v1/completions", prompt="x", max_tokens=1).status_code == status, key

    def test_what_is_served(self, tmp_path: Path) -> None:
        with serving(tmp_path, "--no-slots", "--props", "--no-webui", "--slot_save_path", str(tmp_path)) as server:
            assert server.get("/slots").status_code == 501
            assert server.get("/").status_code == 404
            assert server.post("/props").status_code == 200
            server.post("/completion", prompt="x", n_predict=1, id_slot=0)
            assert server.post("/slots/0?action=save", filename="saved").status_code == 200
            assert (tmp_path / "saved").stat().st_size > 0

    def test_embeddings(self, tmp_path: Path) -> None:
        with serving(tmp_path, "--embeddings", "--pooling", "mean") as server:
            answer = server.post("/v1/embeddings", input=["one", "two"]).json()
            assert [len(item["embedding"]) for item in answer["data"]] == [64, 64]

    def test_reranking(self, tmp_path: Path) -> None:
        with serving(tmp_path, "--rerank") as server:
            answer = server.post("/v1/rerank", query="a", documents=["b", "c"]).json()
            assert {item["index"] for item in answer["results"]} == {0, 1}

    def test_engine_settings_in_the_log(self, tmp_path: Path) -> None:
        flags = ["-b", "256", "-ub", "64", "-t", "1", "-tb", "2", "-fa", "off", "--rope-freq-base", "5000"]
        flags += ["--rope-freq-scale", "0.5", "-ctk", "bf16", "--no-mmap", "--no-warmup", "-ngl", "all", "-lv", "4"]
        with serving(tmp_path, *flags) as server:
            log = server.log.read_text()
        for pattern in (
            r"n_batch += 256",
            r"n_ubatch += 64",
            r"n_threads = 1 \(n_threads_batch = 2\)",
            r"flash_attn += disabled",
            r"freq_base += 5000",
            r"freq_scale += 0\.5",
            r"K \(bf16\)",
            r"load_mode = none",
        ):
            assert re.search(pattern, log), pattern
        assert "load_mode = mmap" not in log
        assert "warming up" not in log

    def test_the_prompt_cache(self, tmp_path: Path) -> None:
        with serving(tmp_path, "--no-cache-prompt", "-np", "1", "--api-prefix", "/llm", prefix="/llm") as server:
            for _ in range(2):
                answer = server.post("/completion", prompt="the same prompt", n_predict=1).json()
            assert answer["timings"]["cache_n"] == 0

    def test_the_socket_timeout(self, tmp_path: Path) -> None:
        with serving(tmp_path, "--timeout", "1") as server:
            host, port = server.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=EXIT_S) as connection:
                connection.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
                begin = time.monotonic()
                assert connection.recv(100).startswith(b"HTTP/1.1 400")
            assert 0.5 < time.monotonic() - begin < EXIT_S


class TestCommandLine:
    """Everything that ends before a server runs; none of it needs the engine."""

    @pytest.mark.parametrize(
        "flag", ["--bad-flag", "--ctx", "--port=80", "-c512", "stray", "--hf-repo", "--ssl-key-file"]
    )
    def test_an_unknown_flag(self, flag: str) -> None:
        with pytest.raises(llamacpp_server.UsageError, match=f"^error: invalid argument: {flag}$"):
            llamacpp_server.parse(["--model", TINY, flag, "value"])

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--port", "abc"], "'abc' is not a whole number"),
            (["--port", "70000"], "70000 is not between 0 and 65535"),
            (["--port", "8_080"], "'8_080' is not a whole number"),
            (["-c", "1.5"], "'1.5' is not a whole number"),
            (["-np", "0"], "0 slots serve nobody"),
            (["--temp", "warm"], "'warm' is not a number"),
            (["--temp", "nan"], "'nan' is not finite"),
            (["-fa", "maybe"], "'maybe' is none of on, off, auto"),
            (["-ctk", "f64"], "'f64' is none of f32, f16"),
            (["-ngl", "most"], "'most' is not a whole number"),
            (["-s", "4294967296"], "4294967296 is not between"),
            (["-ts", "1,x"], "'x' is not a number"),
            (["--pooling", "sum"], "'sum' is none of none, mean"),
            (["--slot-save-path", "/nonexistent"], "not a directory: /nonexistent"),
            (["--lora", "/nonexistent"], "no such file: /nonexistent"),
            (["--api-key-file", "/nonexistent"], "no such file: /nonexistent"),
            (["--alias"], "expected value for argument"),
        ],
    )
    def test_a_wrong_value(self, flags: list[str], message: str) -> None:
        with pytest.raises(llamacpp_server.UsageError) as caught:
            llamacpp_server.parse(["--model", TINY, *flags])
        assert str(caught.value).startswith(f'error while handling argument "{flags[0]}": {message}')

    def test_that_values_are_parsed(self) -> None:
        line = [
            "-m",
            TINY,
            "-ngl",
            "auto",
            "--n_gpu_layers",
            "all",
            "-s",
            "-1",
            "-ts",
            "3/1",
            "-a",
            "a, b",
            "--no-slots",
        ]
        values = [value for _, value in llamacpp_server.parse(line)]
        assert values == [TINY, -1, -2, 2**32 - 1, [3.0, 1.0], ["a", "b"], False]

    def test_that_every_flag_is_there_once_and_in_the_help(self) -> None:
        flags = [flag for option in llamacpp_server.OPTIONS for flag in option.flags + option.off]
        assert len(flags) == len(set(flags))
        assert all(flag in llamacpp_server.usage() for flag in flags)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--model", TINY, "--bad-flag"], "error: invalid argument: --bad-flag"),
            (["--port", "0"], "error: --model is required"),
            (["-m", "/nonexistent.gguf"], "error: failed to load model: no such file: /nonexistent.gguf"),
            (["-m", TINY, "--port", "x"], "error while handling argument \"--port\": 'x' is not a whole number"),
        ],
    )
    def test_that_the_process_says_so_and_ends_with_1(self, flags: list[str], message: str) -> None:
        done = run(*flags)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{message}\n")

    def test_help(self) -> None:
        done = run("--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert "-c, --ctx-size VALUE" in done.stdout

    def test_the_version(self) -> None:
        engine = pytest.importorskip("xllamacpp")
        done = run("--version")
        assert (done.returncode, done.stderr) == (0, f"version: xllamacpp {engine.__version__}\n")

    def test_a_missing_package(self, tmp_path: Path) -> None:
        (tmp_path / "xllamacpp.py").write_text("raise ImportError('not here')")
        done = run("-m", TINY, path=tmp_path)
        assert done.returncode == 1
        assert "pip install 'pytest-infserver[llamacpp]'" in done.stderr
        assert "Traceback" not in done.stderr

    def test_an_engine_without_a_parameter(self, tmp_path: Path) -> None:
        (tmp_path / "xllamacpp.py").write_text(
            "class CommonParams: __slots__ = ('hostnames', 'port', 'n_parallel')\n__version__ = '1'"
        )
        done = run("-m", TINY, path=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("error: xllamacpp 1 does not take --model ")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_that_a_signal_ends_it_while_loading(self, tmp_path: Path, number: signal.Signals) -> None:
        # The real engine holds the interpreter's lock while it loads: so does a regular expression that
        # backtracks, and no handler written in Python can run meanwhile.
        (tmp_path / "xllamacpp.py").write_text(
            "import re, sys, types\n"
            "class CommonParams(types.SimpleNamespace):\n"
            "    model = types.SimpleNamespace()\n"
            "def Server(params):\n"
            "    print('loading', file=sys.stderr, flush=True)\n"
            "    re.match('(a*)*b', 'a' * 60)\n"
        )
        process = subprocess.Popen(command("-m", TINY), env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "loading\n"
            process.send_signal(number)
            assert process.wait(2) == -number
        finally:
            process.kill()
            process.communicate(timeout=EXIT_S)


class TestEnding:
    @pytest.fixture(autouse=True)
    def _engine(self) -> None:
        pytest.importorskip("xllamacpp")

    def test_a_busy_port(self, server: Server) -> None:
        done = run("-m", TINY, "--port", server.url.rpartition(":")[2])
        assert done.returncode == 1
        assert "couldn't bind" in done.stderr
        assert "error: the server did not start" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_file_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing of value")
        done = run("-m", str(tmp_path / "bad.gguf"), "--port", "0")
        assert done.returncode == 1
        assert "failed to load model" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_that_a_signal_ends_it_with_0(self, tmp_path: Path, number: signal.Signals) -> None:
        with serving(tmp_path) as server:
            server.complete()
            # It is healthy a moment before it sets its handlers.
            time.sleep(0.2)
            server.process.send_signal(number)
            assert server.process.wait(EXIT_S) == 0
            assert server.process.communicate(timeout=EXIT_S)[0] == ""
            assert "Traceback" not in server.log.read_text()

    def test_that_a_signal_ends_it_whichever_thread_gets_it(self, tmp_path: Path) -> None:
        with serving(tmp_path) as server:
            server.complete()
            # It is healthy a moment before it sets its handlers.
            time.sleep(0.2)
            # Of the threads of a stopped process that goes on the first to run gets what has arrived meanwhile.
            for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):
                server.process.send_signal(number)
            assert server.process.wait(EXIT_S) == 0

    def test_that_a_stream_does_not_delay_the_end(self, tmp_path: Path) -> None:
        with serving(tmp_path) as server, server.stream(prompt="x") as response:
            lines = response.iter_lines(decode_unicode=True)
            assert next(lines).startswith("data: ")
            assert any(slot["is_processing"] for slot in server.get("/slots").json())
            server.process.terminate()
            assert server.process.wait(EXIT_S) == 0
            # It was not sent to its end.
            with pytest.raises(requests.RequestException):
                assert "data: [DONE]" not in list(lines)

    def test_that_a_kill_leaves_nothing(self, tmp_path: Path) -> None:
        with serving(tmp_path) as server:
            server.process.kill()
            assert server.process.wait(EXIT_S) == -signal.SIGKILL
            host, port = server.url.removeprefix("http://").split(":")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, int(port)))
