"""The engines' own parsers accept every option that our documents and examples name."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import InferenceServer, SGLangServer, VLLMServer
from pytest_infserver.launcher.factory import create_from_config, load_files

from .conftest import HERE
from .provision import environment

ROOT = HERE.parent.parent
LIMIT = 600
ENGINE_OPTION = re.compile(r"--[a-z][a-z0-9-]+")


def documented(backend: str, folder: Path) -> Iterator[tuple[str, InferenceServer]]:
    """Return each server of a backend in the pages and the examples, and where it stands."""
    files = [*sorted((ROOT / "conftest_examples").rglob("*.yaml")), HERE / "servers.yaml"]
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, block in enumerate(re.findall(r"^```yaml\n(.*?)\n```$", page.read_text(), re.M | re.S)):
            file = folder / f"{page.stem}-{number}.yaml"
            file.write_text(block)
            files.append(file)
    for file in files:
        if f"backend: {backend}" not in file.read_text():
            continue
        for config in load_files([file]).values():
            if config.backend == backend:
                # A profiler that is documented need not be here.
                server = create_from_config(dataclasses.replace(config, profile=None))
                yield f"{file.parent.name}/{file.name}: {config.name}", server


@functools.lru_cache
def parsed(engine: str, argvs: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    python = environment(engine) / "bin" / "python"
    answer = subprocess.run(
        [str(python), str(HERE / "parse_arguments.py"), engine],
        input=json.dumps(argvs),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def after_the_launcher(server: InferenceServer, command: Sequence[str]) -> list[str]:
    """Return what of a launch command the engine's parser gets to see."""
    words = list(command)
    return words[words.index("serve" if "serve" in words else "sglang.launch_server") + 1 :]


@pytest.mark.parametrize("engine", [pytest.param(name, marks=pytest.mark.engine(name)) for name in ("vllm", "sglang")])
def test_documented_options(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, binary = ("VLLM_BINARY", "vllm") if engine == "vllm" else ("SGLANG_BINARY", "sglang")
    monkeypatch.setenv(key, str(environment(engine) / "bin" / binary))
    # Another entry point than the server's has a parser of its own.
    servers = {place: one for place, one in documented(engine, tmp_path) if one.settings.entrypoint is None}
    assert len(servers) >= 4
    # What is left out with a warning, as --disable-log-requests, is documented as that.
    argvs = tuple(tuple(after_the_launcher(one, one.command().argv)) for one in servers.values())
    complaints = dict(zip(servers, parsed(engine, argvs)["complaints"], strict=True))
    assert {place: text for place, text in complaints.items() if text} == {}


@pytest.mark.engine("transformers")
def test_documented_options_of_transformers(tmp_path: Path) -> None:
    # Click complains of an option that it does not know before it shows the help.
    command = [str(environment("transformers") / "bin" / "transformers"), "serve", "model", "--help"]
    servers = list(documented("transformers", tmp_path))
    assert len(servers) >= 2
    words = [word for _, server in servers for word in server.server_args()]
    subprocess.run([*command, *words], capture_output=True, timeout=LIMIT, check=True)
    refused = subprocess.run([*command, "--no-such-flag"], capture_output=True, timeout=LIMIT, check=False)
    assert refused.returncode == 2


@pytest.mark.parametrize(
    ("engine", "backend"),
    [
        pytest.param("vllm", VLLMServer, marks=pytest.mark.engine("vllm")),
        pytest.param("sglang", SGLangServer, marks=pytest.mark.engine("sglang")),
    ],
)
def test_what_is_said_of_options_that_are_gone(engine: str, backend: type[InferenceServer]) -> None:
    """An option that we leave out or refuse is not known to the engine, and what we name instead is."""
    start = ("model",) if engine == "vllm" else ("--model-path", "model")
    changed = backend.changed_options
    argvs = tuple((*start, one.flag, *([] if one.dropped else ['{"auto": "fp8"}'])) for one in changed)
    answer = parsed(engine, argvs)
    for option, complaint in zip(changed, answer["complaints"], strict=True):
        assert complaint, option.flag
        for named in ENGINE_OPTION.findall(option.advice):
            assert named in answer["options"], f"{option.flag}: {named}"
