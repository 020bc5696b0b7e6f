"""The line that says why, out of logs as the engines write them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_infserver import LlamaCppServer, SGLangServer, TransformersServer, VLLMServer
from pytest_infserver.launcher.diagnosis.log import ServerLog
from pytest_infserver.launcher.diagnosis.root_cause import last_lines, reports_port_taken, root_cause

pytestmark = pytest.mark.usefixtures("hard_limit")


class GrowingLog(ServerLog):
    """A log to which the server writes whenever somebody has looked at its size."""

    more = b""

    def size(self) -> int:
        size = super().size()
        with self.path.open("ab") as file:
            file.write(self.more)
        return size


VLLM_ENGINE = """\
(APIServer pid=100) INFO 11-22 19:00:01 [utils.py:325] non-default args: {'model': 'tiny', 'port': 8000}
(EngineCore pid=130) INFO 11-22 19:00:20 [core.py:90] Initializing a V1 LLM engine
(EngineCore pid=130) ERROR 11-22 19:00:31 [core.py:700] EngineCore failed to start.
(EngineCore pid=130) ERROR 11-22 19:00:31 [core.py:700] Traceback (most recent call last):
(EngineCore pid=130) ERROR 11-22 19:00:31 [core.py:700]   File "/x/core.py", line 691, in run_engine_core
(EngineCore pid=130) ERROR 11-22 19:00:31 [core.py:700]     raise ValueError(
(EngineCore pid=130) ERROR 11-22 19:00:31 [core.py:700] ValueError: Available memory on node 0 is 1.00/7.70 GiB
(EngineCore pid=130) Process EngineCore:
(APIServer pid=100) Traceback (most recent call last):
(APIServer pid=100)   File "/x/bin/vllm", line 8, in <module>
(APIServer pid=100) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
/x/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked shared_memory objects
"""
VLLM_FLAG = """\
INFO 11-22 19:00:01 [__init__.py:216] Automatically detected platform cpu.
usage: vllm serve [model_tag] [options]
vllm serve: error: unrecognized arguments: --bad-flag
"""
VLLM_MODEL = """\
(APIServer pid=7) Traceback (most recent call last):
(APIServer pid=7)   File "/x/hub.py", line 106, in _inner_fn
(APIServer pid=7) huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name': '/no/such'.
(APIServer pid=7) The above exception was the direct cause of the following exception:
(APIServer pid=7) Traceback (most recent call last):
(APIServer pid=7)   File "/x/config.py", line 30, in get_config
(APIServer pid=7) OSError: Can't load the configuration of '/no/such'.
"""
VLLM_PORT = """\
(APIServer pid=7) Traceback (most recent call last):
(APIServer pid=7)   File "/x/api_server.py", line 1, in create_server_socket
(APIServer pid=7)     sock.bind(addr)
(APIServer pid=7) OSError: [Errno 98] Address already in use
"""
SGLANG_FLAG = "usage: launch_server.py [-h]\nlaunch_server.py: error: unrecognized arguments: --mem-fraction-reserved\n"
SGLANG_CRASH = """\
[2026-11-22 19:00:00] server_args=ServerArgs(model_path='x')
Multi-thread loading shards: 43% Completed | 3/7 [00:01<00:01]\rMulti-thread loading shards: 57% Completed | 4/7
[2026-11-22 19:00:09] Scheduler hit an exception: Traceback (most recent call last):
  File "/x/scheduler.py", line 1, in run_scheduler_process
RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.

[2026-11-22 19:00:09] Received sigquit from a child process. It usually means the child failed.
Killed
"""
LLAMA_MODEL = """\
build: 1 (abc) with cc for x86_64-linux-gnu
main: loading model
gguf_init_from_file_impl: failed to open GGUF file 'missing.gguf' (No such file or directory)
llama_model_load: error loading model: llama_model_loader: failed to load model from missing.gguf
main: exiting due to model loading error
Traceback (most recent call last):
  File "/x/llamacpp_server.py", line 1, in main
RuntimeError: Failed to init server, please check the input params.
"""
LLAMA_PORT = (
    "main: HTTP server is listening\nstart: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8000\n"
)
LLAMA_FLAG = "error: invalid argument: --bad-flag\nusage: llama-server [options]\n"
TRANSFORMERS_PORT = """\
INFO:     Started server process [5]
ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use
INFO:     Application shutdown complete.
"""
CUDA = """\
(EngineCore pid=4711) ERROR 11-22 19:01:02 [core.py:700] CUDA error: an illegal memory access was encountered
(APIServer pid=4700) ERROR 11-22 19:01:03 [serving.py:10] Error in chat completion stream generator.
(APIServer pid=4700) INFO:     Application shutdown complete.
"""
CHAIN = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'weights'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
my.module.WeightsError: the file has no weights
"""

CASES = {
    "vllm engine": (VLLMServer, VLLM_ENGINE, "ValueError: Available memory on node 0 is 1.00/7.70 GiB"),
    "vllm flag": (VLLMServer, VLLM_FLAG, "error: unrecognized arguments: --bad-flag"),
    "vllm model": (VLLMServer, VLLM_MODEL, "'/no/such'"),
    "vllm port": (VLLMServer, VLLM_PORT, "OSError: [Errno 98] Address already in use"),
    "vllm cuda": (VLLMServer, CUDA, "CUDA error: an illegal memory access was encountered"),
    "sglang flag": (SGLangServer, SGLANG_FLAG, "error: unrecognized arguments: --mem-fraction-reserved"),
    "sglang crash": (SGLangServer, SGLANG_CRASH, "RuntimeError: Not enough memory."),
    "llamacpp model": (LlamaCppServer, LLAMA_MODEL, "missing.gguf"),
    "llamacpp port": (LlamaCppServer, LLAMA_PORT, "couldn't bind HTTP server socket"),
    "llamacpp flag": (LlamaCppServer, LLAMA_FLAG, "error: invalid argument: --bad-flag"),
    "transformers port": (TransformersServer, TRANSFORMERS_PORT, "address already in use"),
    "chained": (None, CHAIN, "my.module.WeightsError: the file has no weights"),
    "module": (None, "/x/python: No module named sglang\n", "No module named sglang"),
    "plain": (None, "hello\n\nsomething failed here\nbye\n", "something failed here"),
    "carriage returns": (None, "load 10%\rload 20%\rValueError: bad shard\rload 30%\r", "ValueError: bad shard"),
}


@pytest.fixture
def log(tmp_path: Path) -> Callable[[str | bytes], ServerLog]:
    def write(text: str | bytes) -> ServerLog:
        log = ServerLog(tmp_path, "server")
        log.path.parent.mkdir(exist_ok=True)
        log.path.write_bytes(text.encode() if isinstance(text, str) else text)
        return log

    return write


def test_no_line_that_tells_nothing_is_called_a_cause(log: Callable[[str | bytes], ServerLog]) -> None:
    assert root_cause(log('listening\n127.0.0.1 - - "GET /api HTTP/1.1" 200 -\n')) is None


@pytest.mark.parametrize("case", CASES)
def test_root_cause(log: Callable[[str | bytes], ServerLog], case: str) -> None:
    backend, text, expected = CASES[case]
    cause = root_cause(log(text), backend.cause_patterns if backend else ())
    assert cause is not None
    assert expected in cause


@pytest.mark.parametrize("text", ["", "\n\n  \r\n"])
def test_silent_server_has_no_cause(log: Callable[[str | bytes], ServerLog], text: str) -> None:
    assert root_cause(log(text)) is None


def test_missing_log_has_no_cause(tmp_path: Path) -> None:
    assert root_cause(ServerLog(tmp_path, "server")) is None
    assert last_lines(ServerLog(tmp_path, "server"), 3) == []


def test_earlier_launch_does_not_count(log: Callable[[str | bytes], ServerLog]) -> None:
    before = "ValueError: of the launch before\n"
    assert root_cause(log(before + "KeyError: of this one\n"), start=len(before)) == "KeyError: of this one"
    assert root_cause(log(before), start=len(before)) is None


def test_what_the_terminal_would_eat_is_taken_out(log: Callable[[str | bytes], ServerLog]) -> None:
    text = b"\x1b[1;31mValueError: \xff\xfe bad \x1b[0m\x07 weights\x00\n"
    assert root_cause(log(text)) == "ValueError: \ufffd\ufffd bad   weights"


def test_colours_do_not_hide_an_exception(log: Callable[[str | bytes], ServerLog]) -> None:
    text = "\x1b[31mERROR\x1b[0m something failed\n\x1b[1;36m(EngineCore pid=5)\x1b[0;0m \x1b[31mValueError: x\x1b[0m\n"
    assert root_cause(log(text)) == "(EngineCore pid=5) ValueError: x"


def test_long_line_is_shortened(log: Callable[[str | bytes], ServerLog]) -> None:
    cause = root_cause(log("ValueError: " + "x" * 1_000_000))
    assert cause is not None
    assert len(cause) < 1000
    assert cause.startswith("ValueError: xxx")
    assert cause.endswith(" ...")


def test_last_lines(log: Callable[[str | bytes], ServerLog]) -> None:
    assert last_lines(log("a\n\nb\r\n 10%\r 20%\nc"), 3) == ["10%", "20%", "c"]


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("11-22 19:00:01 OSError: [Errno 98] Address already in use", True),
        (
            "[Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use",
            True,
        ),
        ("start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8000", True),
        ("Error: listen EADDRINUSE: address already in use 127.0.0.1:8000", True),
        ("Error: listen EADDRINUSE: address already in use :::8000", True),
        ("metrics port 9090: address already in use", False),
        ("[Errno 98] error while attempting to bind on address ('127.0.0.1', 9090): address already in use", False),
        ("all is well on port 8000", False),
    ],
)
def test_port_taken(log: Callable[[str | bytes], ServerLog], line: str, taken: bool) -> None:
    assert reports_port_taken(log(f"before\n{line}\nafter\n"), lambda port: port in (None, 8000)) is taken


def test_no_piece_of_a_secret_is_left_where_a_line_is_cut(log: Callable[[str | bytes], ServerLog]) -> None:
    secret = "sk-0123456789abcdefghij"
    long = log(f"ValueError: {'x' * 480} {secret} and more\n")
    for text in (root_cause(long, secrets=frozenset({secret})), *last_lines(long, 1, secrets=frozenset({secret}))):
        assert "sk-0" not in str(text)
        assert "****" in str(text)


@pytest.mark.parametrize("where", ["first", "last"])
def test_long_log(log: Callable[[str | bytes], ServerLog], where: str) -> None:
    noise = b"INFO 11-22 19:00:01 request 4711 finished: 200 OK, 123 tokens, 45.6 tokens/s, queue 0, cache 12.3 %\n"
    filler, cause = noise * 50_000, b"ValueError: the cause\n"
    big = log(cause + filler if where == "first" else filler + cause)
    begin = time.monotonic()
    assert root_cause(big, VLLMServer.cause_patterns) == "ValueError: the cause"
    assert time.monotonic() - begin < 40


@pytest.mark.parametrize(
    "unit", [b"A", b"a.", b"A.B ", b"(EngineCore pid=1) ERROR ", b"Error: ", b"\x1b[31m", b"_Error"]
)
def test_no_pattern_is_slow_on_a_line_of_a_megabyte(log: Callable[[str | bytes], ServerLog], unit: bytes) -> None:
    big = log(unit * (1_000_000 // len(unit)))
    begin = time.monotonic()
    for backend in (VLLMServer, SGLangServer, LlamaCppServer, TransformersServer):
        root_cause(big, backend.cause_patterns)
    assert time.monotonic() - begin < 20


def test_patterns_of_the_backend_come_first(log: Callable[[str | bytes], ServerLog]) -> None:
    text = "CUDA error: x\nValueError: y\nmy own words\n"
    assert root_cause(log(text), [re.compile(rb"own words")]) == "my own words"


def test_noise_is_no_cause(log: Callable[[str | bytes], ServerLog]) -> None:
    """Lines of SGLang 0.5.23 without its kernels, whose start failed for want of memory."""
    text = (
        "[2026-11-24 11:45:51] Ignore import error when loading sglang.srt.models.inkling: No module named 'cutlass'\n"
        "[2026-11-24 11:45:52] Scheduler hit an exception: Traceback (most recent call last):\n"
        '  File "/e/sglang/srt/managers/scheduler.py", line 3050, in run_scheduler_process\n'
        "    raise ValueError(\n"
        "ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.0001.\n"
        "\n"
        "[2026-11-24 11:45:52] Received sigquit from a child process. It usually means the child failed.\n"
    )
    cause = root_cause(log(text), SGLangServer.cause_patterns, noise=SGLangServer.noise_patterns)
    assert cause is not None
    assert cause.startswith("ValueError: Loaded weights leave no GPU memory")


def test_half_a_secret_at_an_edge_of_what_is_read_is_not_shown(tmp_path: Path) -> None:
    secret = "s3" * 200
    secrets = frozenset({secret})
    log = ServerLog(tmp_path, "server")
    log.path.parent.mkdir()
    for before in range(32 * 1024 - 400, 32 * 1024, 57):
        log.path.write_text(secret + "x" * before)
        assert "s3" not in "".join(last_lines(log, 5, secrets=secrets))
    # Masked secrets take little room: a line that is cut is short then.
    for shift in range(0, 400, 57):
        log.path.write_text(f"Error: {'y' * shift} {secret * 40}\n")
        cause = root_cause(log, secrets=secrets)
        assert cause is not None
        assert cause.startswith("Error: ")
        assert "s3s3" not in cause


def test_lines_that_the_windows_of_a_long_log_cut_are_no_causes(tmp_path: Path) -> None:
    secret = "s3" * 2000
    log = ServerLog(tmp_path, "server")
    log.path.parent.mkdir()
    with log.path.open("wb") as file:
        file.truncate(16 * 1024 * 1024)
        for edge in (2 * 1024 * 1024, 8 * 1024 * 1024):
            file.seek(edge - 2000 - 7)
            file.write(b"\nError: " + secret.encode() + b" failed\n")
    assert "s3s3" not in (root_cause(log, secrets=frozenset({secret})) or "")


FLOOD = (b"x" * 1023 + b"\n") * (11 << 10)


@pytest.mark.parametrize("before", [b"", FLOOD], ids=["short", "long"])
def test_a_cause_is_found_in_a_log_that_grows_while_it_is_read(tmp_path: Path, before: bytes) -> None:
    log = GrowingLog(tmp_path, "a")
    log.path.parent.mkdir()
    log.path.write_bytes(before + b"RuntimeError: the reason\n")
    log.more = FLOOD
    assert root_cause(log, ()) == "RuntimeError: the reason"
