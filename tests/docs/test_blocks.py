"""Blocks of the pages that need more than `test_pages.py` does: what they say comes out is what comes out."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import BLOCKS, ROOT, write_files

from pytest_infserver import VLLMServer, load_server_configs
from pytest_infserver.launcher.backends.registry import known_backends
from pytest_infserver.options import OPTIONS

LIMIT = 120
COMMANDS = [one.text for one in BLOCKS if one.page.name == "README.md" and " && pytest" in one.text]
RunInline = Callable[..., pytest.RunResult]


def one_block(page: str, language: str, containing: str = "") -> str:
    """Return the text of a page's only block of a language that has these words."""
    path = ROOT / page
    (found,) = [one.text for one in BLOCKS if one.page == path and one.language == language and containing in one.text]
    return found


def words_of(page: str, containing: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in one_block(page, "bash", containing).splitlines()]


def run(argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.fixture
def first_test(tmp_path: Path, nothing_left: None) -> Path:
    """A folder with the two files of "Your first test"."""
    write_files(ROOT / "README.md", tmp_path)
    return tmp_path


def test_the_two_front_door_commands_are_what_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for command in COMMANDS:
        install, test = command.split(" && ")
        # CI installs by uv what the second one needs: that is quicker.
        assert install in script or install.removeprefix("pip install ").replace("[test]", "[dev]") in script
        assert test in script


@pytest.mark.run
@pytest.mark.promise
def test_first_test(first_test: Path) -> None:
    command = shlex.split(one_block("README.md", "bash", "--infserver-config servers.yaml"))
    result = run([*command, "-p", "no:cacheprovider"], first_test)
    assert "2 passed" in result.stdout, result.stdout + result.stderr


@pytest.mark.run
@pytest.mark.promise
def test_commands_without_a_file(first_test: Path) -> None:
    (first_test / "servers.yaml").unlink()
    started, _ = words_of("docs/options.md", "--infserver-url")
    result = run([*started, "-p", "no:cacheprovider"], first_test)
    assert "2 passed" in result.stdout, result.stdout + result.stderr


@pytest.mark.promise
def test_attaching_without_a_file(run_inline: RunInline, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(one_block("README.md", "python", "def test_completion"))
    _, attached = words_of("docs/options.md", "--infserver-url")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    attached = [closed if word.startswith("http") else word for word in attached]
    result = run_inline(*attached[1:])
    assert f"remote cannot be attached: {closed} refused the connection" in result.stdout.str()


def test_launch_argument_table(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "arguments.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?)\s\| (`.*?`|nothing.*?)\s\|$", page, re.MULTILINE)
    rows = [row for row in rows if ": " in row[0]]
    assert len(rows) == 6
    for keys, words in rows:
        spellings = [f"{keys.split(': ')[0].strip('`')}: null"] if words.startswith("nothing") else []
        spellings += re.findall(r"`(.*?)`", keys)
        expected = [] if words.startswith("nothing") else shlex.split(words.strip("`"))
        for spelling in spellings:
            if ": " not in spelling:
                continue
            path = tmp_path / "servers.yaml"
            path.write_text(f"backend: vllm\nmodel: m\nconfig:\n  server_args:\n    {spelling}\n")
            (config,) = load_server_configs(path)
            assert VLLMServer.from_config(config).server_args() == expected, spelling


@pytest.mark.promise
def test_marker_block(pytester: pytest.Pytester, run_inline: RunInline) -> None:
    (pytester.path / "test_markers.py").write_text(
        one_block("docs/choosing-tests.md", "python", "@pytest.mark.backend")
    )
    (pytester.path / "servers.yaml").write_text(one_block("docs/yaml.md", "yaml", "llama-tp2"))
    result = run_inline("--infserver-config", "servers.yaml", "--collect-only", "-q", "--strict-markers")
    collected = result.stdout.str()
    assert set(re.findall(r"::test_(\w)\[(.*)\]", collected)) == {
        *[("a", name) for name in ("llama-tp1", "llama-tp2", "sgl")],
        *[("b", name) for name in ("llama-tp1", "llama-tp2", "mine", "staging")],
        *[("c", name) for name in ("llama-tp1", "llama-tp2")],
    }


TINY = """
defaults: {backend: llamacpp, model: builtin:tiny}
servers:
  llama-tp1: {}
  llama-tp2: {}
  llama-tp8: {gpus: 8}
"""


@pytest.mark.promise
def test_variants_block(pytester: pytest.Pytester, run_inline: RunInline) -> None:
    block = one_block("docs/settings.md", "python", "def test_small_context")
    (pytester.path / "test_variants.py").write_text(
        f"import pytest\nfrom pytest_infserver import variant\n{block}\ndef test_plain(inference_server): ...\n"
    )
    (pytester.path / "servers.yaml").write_text("servers:\n  llama: {backend: llamacpp, model: builtin:tiny}\n")
    result = run_inline("--infserver-config", "servers.yaml", "--collect-only", "-q", "--strict-markers")
    collected = re.findall(r"::test_(\w+\[.*\])", result.stdout.str())
    assert sorted(collected) == [
        "both[llama+extra_args=--no-mmap]",
        "both[llama]",
        "plain[llama]",
        "small_context[llama]",
    ]


@pytest.mark.run
@pytest.mark.promise
def test_needs_and_exclusive_block(tmp_path: Path, nothing_left: None) -> None:
    (tmp_path / "test_tp.py").write_text(
        f"import pytest\n{one_block('docs/choosing-tests.md', 'python', 'infserver_needs')}"
    )
    (tmp_path / "servers.yaml").write_text(TINY)
    command = ["pytest", "--infserver-config=servers.yaml", "--infserver-server=llama-tp[12]", "-p", "no:cacheprovider"]
    result = run(command, tmp_path)
    assert "3 passed" in result.stdout, result.stdout + result.stderr


@pytest.mark.promise
def test_too_few_gpus_block(pytester: pytest.Pytester, run_inline: RunInline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (pytester.path / "test_tp.py").write_text("def test_large(inference_server): pass\n")
    (pytester.path / "servers.yaml").write_text(TINY)
    result = run_inline("--infserver-config=servers.yaml")
    assert result.ret == 4
    assert result.stderr.str().strip().splitlines()[-1] == one_block("docs/gpus.md", "text", "needs 8 GPUs")


@pytest.mark.run
@pytest.mark.promise
def test_keep_block(tmp_path: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "test_tp.py").write_text("def test_it(inference_server): pass\n")
    (tmp_path / "servers.yaml").write_text("name: smollm2\nbackend: llamacpp\nmodel: builtin:tiny\n")
    result = run(
        ["pytest", "--infserver-config=servers.yaml", "--infserver-keep=1m", "-p", "no:cacheprovider"], tmp_path
    )
    assert "1 passed" in result.stdout, result.stdout + result.stderr
    titles, row = (line.split() for line in run(["infserver", "ps"], tmp_path).stdout.splitlines())
    shown_titles, shown_row = (line.split() for line in one_block("docs/keep.md", "text", "LEFT").splitlines())
    assert titles == shown_titles
    assert row[:3] == shown_row[:3] == ["smollm2", "kept", "builtin:tiny"]
    assert "smollm2 (pid" in run(["infserver", "stop", "--all"], tmp_path).stdout
    assert run(["infserver", "ps"], tmp_path).stdout == "no server runs\n"


CLUSTER_TESTS = """
import pytest, subprocess

def test_it(inference_server):
    assert inference_server.node

@pytest.mark.infserver_needs("llama-tp1", "llama-tp2")
def test_ps(inference_servers):
    print()
    print(subprocess.run({!r}, capture_output=True, text=True, check=True).stdout)
"""


@pytest.mark.cluster
@pytest.mark.skipif(sys.platform != "linux", reason="several nodes on one machine")
def test_cluster_blocks(tmp_path: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from cluster.ray_nodes import RayNodes

    (tmp_path / "servers.yaml").write_text(TINY.replace("builtin:tiny", "builtin:tiny, cpus: 0.5"))
    (tmp_path / "pytest.ini").write_text("[pytest]\ninfserver_config = servers.yaml\ninfserver_server = llama-tp[12]\n")
    local, auto, ps = words_of("docs/cluster.md", "--cluster")
    (tmp_path / "test_on_nodes.py").write_text(CLUSTER_TESTS.format(ps))
    result = run([*local, "-k", "test_it", "-p", "no:cacheprovider"], tmp_path)
    assert "= 2 passed, 1 deselected" in result.stdout, result.stdout + result.stderr
    nodes = RayNodes(tmp_path, {"gpu-1": {"num_cpus": 1, "node_ip_address": "127.0.0.2"}})
    try:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        result = run([*auto, "-k", "test_ps", "-s", "-p", "no:cacheprovider"], tmp_path)
    finally:
        nodes.close()
    assert "1 passed, 2 deselected" in result.stdout, result.stdout + result.stderr
    shown = one_block("docs/cluster.md", "text", "MODEL         NODE").splitlines()
    lines = result.stdout.splitlines()
    head = next(index for index, line in enumerate(lines) if line.split() == shown[0].split())
    rows = [re.split(r"\s{2,}", line) for line in lines[head + 1 : head + 3]]
    for row, expected in zip(sorted(rows), (re.split(r"\s{2,}", line) for line in shown[1:]), strict=True):
        # Both run by then, on the only node; how long and how large nobody knows.
        assert [row[0], row[2], row[3]] == [expected[0], expected[2], "gpu-1 (127.0.0.2)"]
        assert len(row) == len(expected)
        assert re.sub(r"^pid \d+ on \S+", "", row[-1]).startswith(" (pytest --infserver-cluster auto")


@pytest.mark.run
@pytest.mark.promise
def test_profiling_blocks(tmp_path: Path, nothing_left: None) -> None:
    (tmp_path / "test_speed.py").write_text(one_block("docs/profiling.md", "python", "infserver_profile"))
    (tmp_path / "servers.yaml").write_text("name: llama\nbackend: llamacpp\nmodel: builtin:tiny\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\ninfserver_config = servers.yaml\n")
    command = words_of("docs/profiling.md", "--infserver-profile")[0]
    result = run([*command, "-s", "-p", "no:cacheprovider", "-p", "no:randomly"], tmp_path)
    assert "2 passed" in result.stdout, result.stdout + result.stderr
    shown = result.stdout.splitlines()
    for line in one_block("docs/profiling.md", "text", "infserver profiles").splitlines():
        assert line in shown
    assert f"PosixPath('{tmp_path}/profiles/llama/decode.svg')" in result.stdout


def test_python_api_block(first_test: Path) -> None:
    result = run(
        [sys.executable, "-c", one_block("docs/python-api.md", "python", "start_server_from_config")], first_test
    )
    assert result.returncode == 0, result.stderr
    assert "'chat': 'http://127.0.0.1:" in result.stdout


@pytest.mark.promise
def test_own_backend_block(tmp_path: Path, nothing_left: None) -> None:
    (tmp_path / "mine.py").write_text(one_block("docs/backends.md", "python", "class MyBackendServer"))
    text = "backend: mine:MyBackendServer\nmodel: m\nport: 9\nconfig: {server_args: {ctx-size: 5}}\n"
    (tmp_path / "servers.yaml").write_text(text)
    result = run(["infserver", "check", "servers.yaml"], tmp_path)
    assert result.stdout == "mybackend: my-backend-binary --model m --port 9 --ctx-size 5\n", result.stderr


@pytest.mark.promise
def test_config_error_block(pytester: pytest.Pytester, run_inline: RunInline) -> None:
    (pytester.path / "servers.yaml").write_text("servers:\n llama:\n  modle: x\n")
    result = run_inline("--infserver-config", "servers.yaml")
    assert result.ret == 4
    assert result.stderr.str().strip().splitlines()[-1] == one_block("docs/yaml.md", "text", "modle")


def test_option_table_is_complete() -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(--infserver-[\w-]+)(?: [A-Z=/]+|\[=[A-Z]+\])?` \| .+ \|$", page, re.MULTILINE)
    assert documented == [option.flag for option in OPTIONS]


def test_backend_table_is_complete() -> None:
    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \| `\w+Server` \|", page, re.MULTILINE)
    assert set(documented) == {"vllm", "sglang", "llamacpp", "transformers", "command", "remote"}
    assert set(documented) <= set(known_backends())
