from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
from isolation import own_state_dir

from pytest_infserver import CommandServer
from pytest_infserver.cli.main import main
from pytest_infserver.launcher.keeping.kept import all_servers
from pytest_infserver.reporting.terminal.server_table import as_duration, as_size, shown_command

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


def test_check_prints_each_server_of_a_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "backend: vllm\nname: a\nmatrix:\n  model: [org/m1, m2]\n  config.server_args.x: [1, 2]\n"
        "  exclude: [{model: m2, config.server_args.x: 2}]\n  include: [{model: m3, port: 9000}]\n"
    )
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a-m1-1: vllm serve org/m1 --host 127.0.0.1 --port 8000 --x 1",
        "a-m1-2: vllm serve org/m1 --host 127.0.0.1 --port 8000 --x 2",
        "a-m2-1: vllm serve m2 --host 127.0.0.1 --port 8000 --x 1",
        "a-m3-9000: vllm serve m3 --host 127.0.0.1 --port 9000",
    ]


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


def test_check_tells_all_mistakes_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("servers:\n  a: {backend: vlm}\n  b: {backend: vllm, modle: m}\n")
    assert main(["check", str(path)]) == 4
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"infserver: {path}:2:7: server 'a': unknown backend 'vlm'; did you mean 'vllm'?",
        f"infserver: {path}:3:22: server 'b': unknown key 'modle'; did you mean 'model'?",
    ]


def test_check_says_that_a_backend_leaves_configured_arguments_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "forgetful_backend.py").write_text(
        "from pytest_infserver import CommandServer\n"
        "class Forgetful(CommandServer):\n"
        "    def get_launch_command(self): return ['run', str(self.port)]\n"
    )
    path = tmp_path / "s.yaml"
    text = (
        "backend: forgetful_backend:Forgetful\nlaunch_command: [run]\nport: 9\nconfig: {server_args: {ctx-size: 5}}\n"
    )
    path.write_text(text)
    assert main(["check", str(path)]) == 0
    command, note = capsys.readouterr().out.splitlines()
    assert command == "command: run 9"
    assert note.startswith("  note: its command has nothing of --ctx-size, which is configured: Forgetful.")


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


def test_the_console_script(first: Path, nothing_left: None) -> None:
    command = [sys.executable, "-c", "import sys; from pytest_infserver.cli.main import main; sys.exit(main())"]
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


def test_check_says_that_a_profiler_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "servers.yaml"
    file.write_text("backend: command\nlaunch_command: [x, '{port}']\nprofile: {tool: nsys}\n")
    assert main(["check", str(file)]) == 0
    command, note = capsys.readouterr().out.splitlines()
    assert command == "command: x 8000"
    assert note.startswith("  note: profiling with nsys: nsys is not on PATH. Install ")


def test_check_refuses_an_option_that_is_gone(
    installed_vllm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "servers.yaml"
    file.write_text(f"backend: vllm\nmodel: m\nbinary_path: {installed_vllm}\nconfig:\n  server_args: {{task: x}}\n")
    assert main(["check", str(file)]) == 4
    message = capsys.readouterr().err
    assert message.startswith(f"infserver: {file}:5:17: server 'vllm': vllm 0.32.0+cpu has no --task: write --runner")
    assert message.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error(nothing_left: None) -> None:
    code = "import sys; from pytest_infserver.cli.main import main; sys.exit(main(['schema']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


FakeServer = Callable[..., CommandServer]
KEEP = 55.0


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None, hard_limit: None) -> Iterator[None]:
    own_state_dir(monkeypatch, tmp_path / "state")
    yield
    for server in all_servers():
        server.stop(0)


@pytest.mark.usefixtures("own_state")
def test_ps_and_stop_without_servers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps"]) == 0
    assert capsys.readouterr().out == "no server runs\n"
    assert main(["stop", "--all"]) == 0
    assert capsys.readouterr().out == "no server runs\n"
    assert main(["stop", "a"]) == 1
    assert capsys.readouterr().err == "infserver: no server is called 'a'; no server runs\n"


@pytest.mark.usefixtures("own_state")
def test_ps_lists_servers_in_use_and_kept_ones(fake_server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    kept = fake_server(name="b", model="m").start()
    url = kept.server_url
    assert kept.keep(KEEP)
    used = fake_server("--loading", "0.01", name="a").start()
    assert main(["ps"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "STATE", "MODEL", "URL", "AGE", "LEFT", "MEMORY", "USED", "BY"]
    name, state, model, place, age, _, left, _, memory, unit, user = first.split()
    assert (name, state, model, place, unit, user) == ("b", "kept", "m", url, "MB", "-")
    assert 10 < int(left) < KEEP
    assert int(age) < KEEP
    assert int(memory) > 1
    assert second.split()[:4] == ["a", "running", "-", used.server_url]
    assert f"pid {os.getpid()} (" in second
    assert head.index("USED BY") == second.index("pid ")


@pytest.mark.usefixtures("own_state")
def test_stop_ends_servers_in_use_and_kept_ones(fake_server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake_server(name="kept").start().keep(KEEP)
    used = fake_server("--loading", "0.01", name="used").start()
    assert main(["stop", "kept", "nobody"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "infserver: no server is called 'nobody'; these run: kept, used\n"
    assert main(["stop", "k*"]) == 0
    assert capsys.readouterr().out.startswith("kept (pid ")
    assert used.check_health()
    assert main(["stop", "--all"]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"used (pid {used.pid or ''}")
    assert line.rstrip().endswith(" s")
    assert used.wait_death(30)
    assert all_servers() == []


@pytest.mark.usefixtures("own_state")
def test_stop_stops_all_at_the_same_time(fake_server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        assert fake_server("--stop-delay", "1").start().keep(KEEP)
    begin = time.monotonic()
    assert main(["stop", "fake"]) == 0
    together = time.monotonic() - begin
    each = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines()]
    assert len(each) == 3
    assert min(each) >= 1
    assert together < sum(each)


@pytest.mark.parametrize("words", [["stop"], ["stop", "a", "--all"]])
def test_stop_wants_names_or_all(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert "infserver ps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (7500, "2 h 5 min"), (360_000, "4 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert as_duration(seconds) == text


def test_sizes() -> None:
    assert [as_size(None), as_size(12_400_000), as_size(4_140_000_000)] == ["-", "12 MB", "4.1 GB"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["/usr/bin/python3.11", "/venv/bin/pytest", "tests", "-n2"], "pytest tests -n2"),
        (["python", "-m", "pytest", "tests"], "pytest tests"),
        (["/bin/tool", "x"], "tool x"),
        (["python"], "python"),
        ([], ""),
        (["python", "-c", "a\nb"], "-c a b"),
        (["pytest", "--infserver-env", "HF_TOKEN=hf_0123456789", "-x"], "pytest --infserver-env HF_TOKEN=******** -x"),
        (["pytest", "--infserver-env=HF_TOKEN=hf_0123456789"], "pytest --infserver-env=HF_TOKEN=********"),
        (["pytest", "--api-key", "0123456789"], "pytest --api-key ********"),
    ],
)
def test_commands_of_users_are_short_and_without_secrets(words: list[str], text: str) -> None:
    assert shown_command(words) == text


def test_check_asks_servers_that_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_server: Callable[..., CommandServer]
) -> None:
    server = fake_server().start()
    path = tmp_path / "servers.yaml"
    path.write_text(
        f"servers:\n"
        f"  there: {{backend: remote, url: '{server.server_url}'}}\n"
        f"  wrong: {{backend: remote, url: '{server.server_url}', ready: {{http: /nothing}}}}\n"
        f"  asleep: {{backend: command, launch_command: [run, '{{port}}']}}\n"
    )
    assert main(["check", "--probe", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[0].startswith(f"there: {server.server_url}/health answered 200 in ")
    assert lines[1] == f"wrong: {server.server_url}/nothing answered 404"
    assert lines[2] == "asleep: does not run on this machine"


def test_check_asks_a_server_that_another_process_has_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_server: Callable[..., CommandServer]
) -> None:
    server = fake_server(name=f"fake-{os.getpid()}").start()
    path = tmp_path / "servers.yaml"
    path.write_text(f"servers:\n  {server.name}: {{backend: command, launch_command: [run, '{{port}}']}}\n")
    assert main(["check", "--probe", str(path)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{server.name} (pid {server.pid}): {server.server_url}/health answered 200 in ")
