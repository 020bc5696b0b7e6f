"""``infserver load``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from load.conftest import INSTANT

from pytest_infserver.cli.main import main

pytest.importorskip("aiohttp")


@pytest.fixture
def servers(tmp_path: Path, nothing_left: None) -> str:
    block = {"backend": "command", "launch_command": [sys.executable, str(INSTANT), "--port", "{port}"]}
    file = tmp_path / "servers.yaml"
    file.write_text(
        yaml.safe_dump({"servers": {"one": block, "bad": {**block, "launch_command": ["false", "{port}"]}}})
    )
    return str(file)


def test_it_starts_the_server_and_shows_what_it_found(servers, capsys) -> None:
    options = ["--requests", "5", "--output-tokens", "4", "--concurrency", "2", "--api", "chat"]
    assert main(["load", servers, "one", *options]) == 0
    shown = capsys.readouterr().out
    assert "one: 5 requests, 2 at a time, 128 tokens in, 4 out: 5 requests in" in shown
    assert "TTFT" in shown
    assert main(["load", servers, "one", "--requests", "2", "--no-stream", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["completed"] == 2


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["one", "--requests", "0"], 4, "requests is a whole number"),
        (["nobody"], 4, "nobody"),
        ([], 4, "2 servers (bad, one)"),
        (["bad"], 1, "bad"),
    ],
)
def test_what_cannot_be(servers, capsys, words, status, says) -> None:
    assert main(["load", servers, *words]) == status
    assert says in capsys.readouterr().err
