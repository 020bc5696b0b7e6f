"""Every code and YAML block of the seed document works; the engines are stand-ins that record their command."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pytest_infserver import load_server_config

HERE = Path(__file__).parent
FAKE_ENGINE = HERE.parent / "fake_engine.py"
PROFILERS = HERE.parent / "launcher" / "profiling"
LIMIT = 60

BLOCKS = {
    title: (language, text)
    for title, language, text in re.findall(
        r"^## (.+?)\n\n```(\w+)\n(.*?)\n```$", (HERE / "blocks.md").read_text(), re.MULTILINE | re.DOTALL
    )
}

ENGINE = """\
#!{python}
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
os.execv(sys.executable, [sys.executable, "-S", {engine!r}, *sys.argv[1:]])
"""


@dataclass
class Seed:
    """A folder with stand-in engines on PATH, in which blocks run as scripts."""

    folder: Path
    port: int

    def text(self, title: str) -> str:
        # The documented port may be in use on this machine.
        return BLOCKS[title][1].replace("8000", str(self.port))

    def write_yaml(self, title: str, change: Callable[[str], str] = lambda text: text) -> Path:
        path = self.folder / "config.yaml"
        path.write_text(change(self.text(title)))
        return path

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        return self._execute([sys.executable, "-c", code])

    def run_shell(self, command: str) -> subprocess.CompletedProcess[str]:
        return self._execute(["bash", "-c", command])

    def commands(self) -> list[list[str]]:
        record = self.folder / "record"
        return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []

    def install_profilers(self) -> None:
        """Put stand-ins for nsys and rocprofv3 on PATH."""
        for name in ("nsys", "rocprofv3"):
            path = self.folder / "bin" / name
            path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {PROFILERS / f"fake_{name}.py"} "$@"\n')
            path.chmod(0o755)

    def traces(self) -> list[Path]:
        """Return the files in the folder for traces, relative to that."""
        folder = self.folder / "profiles"
        return sorted(path.relative_to(folder) for path in folder.glob("*/**/*") if path.is_file())

    def _execute(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            # With what the tests themselves run with: a checkout need not be what is installed.
            "PYTHONPATH": os.pathsep.join(
                [str(self.folder / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "RECORD": str(self.folder / "record"),
            "FAKE_EVENTS": str(self.folder / "events"),
        }
        return subprocess.run(
            argv, cwd=self.folder, env=env, capture_output=True, text=True, timeout=LIMIT, check=False
        )


@pytest.fixture
def seed(tmp_path: Path, nothing_left: None) -> Seed:
    for name, path in {
        "vllm": tmp_path / "bin" / "vllm",
        "my-backend-binary": tmp_path / "bin" / "my-backend-binary",
        "sglang.launch_server": tmp_path / "packages" / "sglang" / "launch_server.py",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ENGINE.format(python=sys.executable, name=name, engine=str(FAKE_ENGINE)))
        path.chmod(0o755)
    (tmp_path / "packages" / "sglang" / "__init__.py").touch()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return Seed(tmp_path, port)


def expected(port: int, words: str) -> list[str]:
    return shlex.split(words.replace("ADDRESS", f"--host 127.0.0.1 --port {port}"))


LLAMA = "vllm serve meta-llama/Llama-2-7b-hf ADDRESS"
COMMANDS = {
    "quick start": LLAMA,
    "context manager": LLAMA,
    "factory function": LLAMA,
    "debug mode": f"{LLAMA} --tensor-parallel-size 4",
    "vllm list": f"{LLAMA} --tensor-parallel-size 4 --pipeline-parallel-size 1 --gpu-memory-utilization 0.9"
    " --max-model-len 8192 --max-num-seqs 512 --max-num-batched-tokens 8192 --dtype bfloat16 --trust-remote-code"
    " --disable-log-requests",
    "vllm dictionary": "vllm serve openai/gpt-oss-120b ADDRESS --tensor-parallel-size 4 --gpu-memory-utilization 0.9"
    """ --max-model-len 8192 --trust-remote-code --disable-log-requests --kv-cache-dtype '{"auto": "fp8"}'""",
    "vllm mixed": f"{LLAMA} --tensor-parallel-size 4 --gpu-memory-utilization 0.9 --trust-remote-code"
    """ --kv-cache-dtype '{"auto": "fp8"}'""",
    "sglang list": "sglang.launch_server --model-path meta-llama/Llama-2-7b-hf ADDRESS --tp 4 --context-length 8192"
    " --mem-fraction-static 0.9",
    "tensor parallel": "vllm serve openai/gpt-oss-120b ADDRESS --tensor-parallel-size 4 --gpu-memory-utilization 0.9"
    """ --max-model-len 4096 --trust-remote-code --disable-log-requests --kv-cache-dtype '{"auto": "fp8"}'""",
}
YAML_COMMANDS = {
    "yaml format": f"{LLAMA} --tensor-parallel-size 1",
    "yaml list": f"{LLAMA} --tensor-parallel-size 4 --gpu-memory-utilization 0.9 --max-model-len 8192"
    " --trust-remote-code --disable-log-requests",
    "yaml dictionary": "vllm serve openai/gpt-oss-120b ADDRESS --tensor-parallel-size 4 --gpu-memory-utilization 0.9"
    """ --max-model-len 8192 --trust-remote-code --disable-log-requests --kv-cache-dtype '{"auto": "fp8"}'""",
}


def without_profile(text: str) -> str:
    return text.replace("enabled: true", "enabled: false")


@pytest.mark.parametrize("title", COMMANDS)
def test_python_block(seed: Seed, title: str) -> None:
    code = seed.text(title)
    if title == "debug mode":  # the document shows only how the server is made
        code = f"from pytest_infserver import VLLMServer\n{code}\nserver.start()\nserver.stop()"
    result = seed.run(code)
    assert result.returncode == 0, result.stderr
    assert seed.commands() == [expected(seed.port, COMMANDS[title])]
    if title == "context manager":
        assert f"'health': 'http://127.0.0.1:{seed.port}/health'" in result.stdout


@pytest.mark.parametrize("title", YAML_COMMANDS)
def test_yaml_block(seed: Seed, title: str) -> None:
    seed.write_yaml(title, without_profile)
    result = seed.run(seed.text("start from yaml"))
    assert result.returncode == 0, result.stderr
    assert seed.commands() == [expected(seed.port, YAML_COMMANDS[title])]


def test_commented_sglang_block_in_yaml(seed: Seed) -> None:
    text = seed.text("yaml dictionary")
    block = "\n".join(line.removeprefix("# ") for line in text[text.index("# config:") :].splitlines())
    (seed.folder / "config.yaml").write_text(f"backend: sglang\nmodel: m\nport: {seed.port}\n{block}\n")
    result = seed.run(seed.text("start from yaml"))
    assert result.returncode == 0, result.stderr
    words = "sglang.launch_server --model-path m ADDRESS --tp 4 --context-length 8192"
    assert seed.commands() == [expected(seed.port, words)]


def test_yaml_with_profile(seed: Seed) -> None:
    seed.install_profilers()
    config = load_server_config(seed.write_yaml("yaml format"))
    assert config.profile is not None
    assert (config.profile.enabled, config.profile.tool, config.profile.args) == (True, "nsys", ("--trace=cuda,nvtx",))
    assert config.profile.output_dir == str(seed.folder / "profiles")
    result = seed.run(seed.text("start from yaml"))
    assert result.returncode == 0, result.stderr
    # nsys is around the engine, whose command is the same.
    assert seed.commands() == [expected(seed.port, YAML_COMMANDS["yaml format"])]
    assert [str(path) for path in seed.traces()] == ["vllm/server.nsys-rep"]
    assert "--trace=cuda,nvtx" in (seed.folder / "events").read_text()


def test_yaml_with_profile_is_refused_without_the_profiler(seed: Seed) -> None:
    path = seed.write_yaml("yaml format")
    path.write_text(f"{path.read_text()}\n  binary_path: {seed.folder / 'no-nsys'}\n")
    result = seed.run(seed.text("start from yaml"))
    assert result.returncode == 1
    assert "ProfileError" in result.stderr
    assert seed.commands() == []


def test_yaml_defaults(seed: Seed) -> None:
    path = seed.folder / "config.yaml"
    path.write_text("backend: vllm\nmodel: m\n")
    config = load_server_config(path)
    assert (config.heartbeat_interval, config.heartbeat_timeout, config.startup_timeout) == (5, 30, 600)
    assert (config.output_dir, config.debug_mode, config.port) == ("./server_logs", False, None)


@pytest.mark.parametrize(
    ("title", "tool", "trace"),
    [
        ("profile nsys", "nsys", "vllm/server.nsys-rep"),
        ("profile pytorch", "pytorch", "vllm/server/rank0.1.pt.trace.json.gz"),
        ("profile amd", "amd", "vllm/server/host/*_results.pftrace"),
    ],
)
def test_profile_block(seed: Seed, title: str, tool: str, trace: str) -> None:
    seed.install_profilers()
    path = seed.folder / "config.yaml"
    path.write_text(f"backend: vllm\nmodel: m\nport: {seed.port}\n{seed.text(title)}\n")
    profile = load_server_config(path).profile
    assert profile is not None
    assert profile.tool == tool
    assert list(profile.args) == yaml.safe_load(seed.text(title))["profile"].get("args", [])
    result = seed.run(seed.text("start from yaml"))
    assert result.returncode == 0, result.stderr
    (made,) = seed.traces()
    assert made.match(trace)
    if tool == "nsys":
        # YAML has taken the comma for one between two words.
        assert "--trace=cuda,nvtx" in (seed.folder / "events").read_text()
    (command,) = seed.commands()
    assert command[: len(command) if tool != "pytorch" else -2] == expected(seed.port, "vllm serve m ADDRESS")


def test_command_line_block(seed: Seed) -> None:
    seed.write_yaml("yaml format", without_profile)
    result = seed.run_shell(seed.text("command line").replace("sleep(60)", "sleep(0.1)"))
    assert result.returncode == 0, result.stderr
    assert seed.commands() == [expected(seed.port, YAML_COMMANDS["yaml format"])]


@pytest.mark.parametrize("title", ["vllm request", "sglang request"])
def test_request_block(seed: Seed, title: str) -> None:
    code = f"""
from pytest_infserver import create_server
with create_server("vllm", model="meta-llama/Llama-2-7b-hf", port={seed.port}):
    exec({seed.text(title)!r})
    print(response.status_code, response.json()["choices"][0]["text"])
"""
    result = seed.run(code)
    assert (result.returncode, result.stdout) == (0, "200 !dlrow ,olleH\n"), result.stderr


def test_own_backend_block(seed: Seed) -> None:
    code = f"""
from pytest_infserver import InferenceServer
{seed.text("own backend")}
with MyBackendServer(model="m", port={seed.port}) as server:
    print(server.list_endpoints()["api"], server.get_backend_name(), server.check_health())
"""
    result = seed.run(code)
    assert result.stdout == f"http://127.0.0.1:{seed.port}/api mybackend True\n", result.stderr
    assert seed.commands() == [["my-backend-binary", "--model", "m", "--port", str(seed.port)]]


def test_every_block_is_covered() -> None:
    others = {"profile nsys", "profile pytorch", "profile amd", "start from yaml", "command line", "own backend"}
    others |= {"vllm request", "sglang request"}
    assert set(BLOCKS) == set(COMMANDS) | set(YAML_COMMANDS) | others
