from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from pytest_infserver.cli import main

FIRST = """\
servers:
  a:
    backend: vllm
    model: m
    env_vars: {HF_TOKEN: hf_0123456789}
    config: {api_server_args: {api-key: a-long-secret, x: 'a b'}}
  b: {backend: remote, url: 'http://gpu-box:8000'}
"""


@pytest.fixture
def first(tmp_path: Path) -> Path:
    path = tmp_path / "first.yaml"
    path.write_text(FIRST)
    return path


def test_check_prints_each_server_s_command(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(first)]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        "a: HF_TOKEN=******** vllm serve m --host 127.0.0.1 --port 8000 --api-key ******** --x 'a b'",
        "b: attach to http://gpu-box:8000",
    ]
    assert output.err == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backend: vlm\nmodel: m\n", ":1:1: unknown backend 'vlm'; did you mean 'vllm'?"),
        ("backend: vllm\nmodle: m\n", ":2:1: unknown key 'modle'; did you mean 'model'?"),
        ("backend: vllm\n", ":1:1: backend 'vllm' needs a 'model'"),
        ("", ": the file is empty: name at least a backend, or several under 'servers:'"),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    assert main(["check", str(path)]) == 4
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"infserver: {path}{message}\n")


def test_check_looks_at_all_files_together(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("backend: vllm\nname: a\nmodel: m\n")
    assert main(["check", str(first), str(second)]) == 4
    output = capsys.readouterr()
    message = f"{second}:2:1: server 'a': this name is taken by the server at {first}:2:3; names must be unique"
    assert (output.out, output.err) == ("", f"infserver: {message}\n")


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"backend": "vllm", "model": "m"})
    assert not validator.is_valid({"backend": "vllm", "modle": "m"})


def test_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "builtin:tiny"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()
    assert main(["fetch", "builtin:nope"]) == 4
    output = capsys.readouterr()
    assert output.out == ""
    assert "builtin:tiny" in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["chek"], ["check"]])
def test_wrong_usage_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: infserver" in capsys.readouterr().err


def test_the_console_script(first: Path) -> None:
    command = [sys.executable, "-c", "import sys; from pytest_infserver.cli import main; sys.exit(main())"]
    result = subprocess.run([*command, "check", f"{first}x"], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr == f"infserver: {first}x: cannot read the configuration: No such file or directory\n"


def test_check_says_what_would_be_left_out_and_what_is_missing(
    installed_vllm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "servers.yaml"
    file.write_text(
        "defaults: {backend: vllm, model: /no/such/model}\n"
        "servers:\n"
        f"  a: {{binary_path: {installed_vllm}, config: {{server_args: [--disable-log-requests]}}}}\n"
        "  b: {binary_path: /no/such/vllm, model: org/name}\n"
    )
    assert main(["check", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines if not line.startswith("  note: ")] == ["a:", "b:"]
    assert "--disable-log-requests" not in lines[0]
    assert lines[1].startswith("  note: vllm 0.32.0+cpu has no --disable-log-requests: ")
    assert lines[2] == "  note: the model is a path that does not exist on this machine: /no/such/model"
    assert "  note: b (vllm) cannot start: the binary '/no/such/vllm' does not exist." in lines[4]


def test_check_refuses_an_option_that_is_gone(
    installed_vllm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "servers.yaml"
    file.write_text(f"backend: vllm\nmodel: m\nbinary_path: {installed_vllm}\nconfig:\n  server_args: {{task: x}}\n")
    assert main(["check", str(file)]) == 4
    message = capsys.readouterr().err
    assert message.startswith(f"infserver: {file}:5:17: server 'vllm': vllm 0.32.0+cpu has no --task: write --runner")
    assert message.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = "import sys; from pytest_infserver.cli import main; sys.exit(main(['schema']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
