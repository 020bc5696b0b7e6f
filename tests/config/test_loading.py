from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.config.loading import build_server, choose, load_file
from pytest_infserver.config.merging import merge_server
from pytest_infserver.config.model import ProfileConfig, ServerConfig
from pytest_infserver.config.tree import labelled
from pytest_infserver.errors import ConfigError

Load = Callable[[str], list[ServerConfig]]

DESIGN_SINGLE = """\
backend: vllm
model: meta-llama/Llama-2-7b-hf
port: 8000
output_dir: ./server_logs
env_vars: {CUDA_VISIBLE_DEVICES: "0"}
config: {api_server_args: {tensor-parallel-size: 1}}
profile: {enabled: true, tool: nsys, output_dir: ./profiles, args: ["--trace=cuda,nvtx"]}
debug_mode: true
"""
DESIGN_SEVERAL = """\
defaults: {startup_timeout: 900}
servers:
  llama-tp1: {backend: vllm, model: m, gpus: 1}
  llama-tp2: {backend: vllm, model: m, gpus: 2, startup_timeout: 60}
  staging:   {backend: remote, url: http://127.0.0.1:9000}
  fleet:     {backend: vllm, url: "http://gpu-box:8000", model: m}
  mine:      {backend: command, launch_command: [my-server, --model, "{model}", --port, "{port}"],
              model: m, health_endpoint: /health, endpoints: {api: /api}}
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(text: str) -> list[ServerConfig]:
        path = tmp_path / "s.yaml"
        path.write_text(text)
        return load_file(path)

    return write_and_load


def refused(load: Load, folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}/s.yaml:")
    return message.removeprefix(f"{folder}/s.yaml:")


def test_one_server(load: Load, tmp_path: Path) -> None:
    assert load(DESIGN_SINGLE) == [
        ServerConfig(
            backend="vllm",
            model="meta-llama/Llama-2-7b-hf",
            port=8000,
            output_dir=str(tmp_path / "server_logs"),
            env_vars={"CUDA_VISIBLE_DEVICES": "0"},
            config={"api_server_args": {"tensor-parallel-size": 1}},
            profile=ProfileConfig(
                enabled=True, tool="nsys", output_dir=str(tmp_path / "profiles"), args=("--trace=cuda,nvtx",)
            ),
            debug_mode=True,
        )
    ]


def test_several_servers(load: Load) -> None:
    servers = load(DESIGN_SEVERAL)
    assert [one.name for one in servers] == ["llama-tp1", "llama-tp2", "staging", "fleet", "mine"]
    assert [one.startup_timeout for one in servers] == [900, 60, 900, 900, 900]
    assert [one.gpus for one in servers] == [1, 2, None, None, None]
    assert servers[3].url == "http://gpu-box:8000"
    assert servers[4].launch_command == ("my-server", "--model", "{model}", "--port", "{port}")


def test_defaults_merge_deeply_and_null_takes_back(load: Load) -> None:
    one, two, three = load("""\
defaults:
  backend: vllm
  model: m
  port: 8001
  env_vars: {A: "1", B: "1"}
  config: {api_server_args: {a: 1, b: {x: 1}}}
servers:
  one: {port: null, env_vars: {B: "2", A: null}, config: {api_server_args: {a: 2, b: {y: 2}}}}
  two: {env_vars: null}
  three:
""")
    assert one.port is None
    assert one.env_vars == {"A": None, "B": "2"}
    assert one.config == {"api_server_args": {"a": 2, "b": {"x": 1, "y": 2}}}
    assert (two.env_vars, two.port) == ({}, 8001)
    assert (three.name, three.model) == ("three", "m")


@pytest.mark.parametrize(
    ("below", "above", "merged"),
    [
        ("api_server_args: {a: 1, b: 1}", "server_args: {b: 2}", {"server_args": {"a": 1, "b": 2}}),
        ("server_args: {a: 1}", "api_server_args: {b: 2}", {"api_server_args": {"a": 1, "b": 2}}),
        ("server_args: [a]", "api_server_args: [b]", {"api_server_args": ["b"]}),
        ("server_args: {max_len: 1}", "server_args: {max-len: 2}", {"server_args": {"max-len": 2}}),
        ("server_args: {--max-len: 1}", "api_server_args: {max_len: 2}", {"api_server_args": {"max_len": 2}}),
        ("server_args: {x_y: {a: 1}}", "server_args: {--x-y: {b: 2}}", {"server_args": {"--x-y": {"a": 1, "b": 2}}}),
        ("server_args: {x-y: 1, x_y: 1}", "server_args: {--x-y: 2}", {"server_args": {"--x-y": 2}}),
    ],
)
def test_arguments_meet_however_they_are_spelled(load: Load, below: str, above: str, merged: dict[str, Any]) -> None:
    (server,) = load(
        f"defaults: {{backend: vllm, model: m, config: {{{below}}}}}\nservers: {{a: {{config: {{{above}}}}}}}"
    )
    assert server.config == merged


def test_a_list_of_arguments_does_not_merge_with_a_mapping(load: Load, tmp_path: Path) -> None:
    text = """\
defaults:
  config:
    api_server_args: [--a]
servers:
  x: {backend: vllm, model: m, config: {server_args: {b: 1}}}
"""
    message = "3:5: 'config.server_args' is a mapping in one place and a list in another: write both the same way"
    assert refused(load, tmp_path, text) == message


def test_the_place_of_a_default_under_another_spelling_is_kept(load: Load) -> None:
    (server,) = load("""\
defaults:
  config:
    api_server_args:
      x_y: [1]
servers:
  a: {backend: vllm, model: m, config: {server_args: {x-y: [2], z: 1}}}
""")
    assert str(server.error("wrong", "config", "server_args", "z")).endswith(":6:65: server 'a': wrong")
    assert ":6:" in str(server.error("wrong", "config", "server_args", "x-y"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: m\nbackend: vllm\n", "1:1: unknown key 'modle'; did you mean 'model'?"),
        ("backend: vllm\nstartup-timeout: 3\n", "2:1: unknown key 'startup-timeout'; did you mean 'startup_timeout'?"),
        ("backend: vllm\nModel: m\n", "2:1: unknown key 'Model'; did you mean 'model'?"),
        (
            "backend: vllm\nzzzzz: m\n",
            "2:1: unknown key 'zzzzz'; known are: allow_leaks, api_key, api_key_env, backend,",
        ),
        ("server:\n  a: {backend: vllm}\n", "1:1: unknown key 'server'; did you mean 'servers'?"),
        ("default: {}\nservers: {a: {}}\n", "1:1: unknown key 'default'; did you mean 'defaults'?"),
        ("model: m\nservers: {a: {}}\n", "1:1: 'model' beside 'servers:': move it under 'defaults:' or into one of"),
        ("servers:\n", "1:1: 'servers:' names no server"),
        ("servers: {}\n", "1:1: 'servers:' names no server"),
        ("defaults: {backend: vllm}\n", "1:1: 'servers:' names no server"),
        ("servers: [a]\n", "1:1: 'servers' must be a mapping"),
        ("servers:\n  a: vllm\n", "2:3: 'a' must be a mapping"),
        ("defaults: 3\nservers: {a: {}}\n", "1:1: 'defaults' must be a mapping"),
        ("defaults:\n  modle: m\nservers: {a: {}}\n", "2:3: server 'a': unknown key 'modle'; did you mean 'model'?"),
        ("servers:\n  a:\n    prot: 1\n", "3:5: server 'a': unknown key 'prot'; did you mean 'port'?"),
        ("servers:\n  a:\n    name: b\n", "3:5: the server is called 'a': leave 'name' out"),
        ("servers:\n  a: {}\n  a: {}\n", "3:3: 'a' stands here for the second time"),
        ("servers:\n  a/b: {}\n", "2:3: 'name': expected a name that can be a folder's"),
        ("servers:\n  '..': {}\n", "2:3: 'name': expected a name that can be a folder's"),
        ("name: a b\nbackend: vllm\n", "1:1: 'name': expected a name that can be a folder's"),
        ("model: m\n", "1:1: 'backend' is missing: vllm, sglang, llamacpp, ..., or several under 'servers:'"),
        ("servers:\n  a: {model: m}\n", "2:3: server 'a': 'backend' is missing"),
    ],
)
def test_a_mistake_in_the_form(load: Load, tmp_path: Path, text: str, message: str) -> None:
    assert refused(load, tmp_path, text).startswith(message)


def test_a_server_may_repeat_its_own_name(load: Load) -> None:
    (server,) = load("servers: {a: {name: a, backend: vllm}}")
    assert server.name == "a"


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "s.yaml").write_text("""\
backend: command
model: ./weights
output_dir: logs
binary_path: ../bin/engine
launch_command: [./run.sh, run.sh, ../x, --dir=./y, "{port}"]
profile: {output_dir: p, binary_path: ./nsys}
ready: [{command: [./ask.sh, ask, ../y]}, {tcp: true}]
uds: s.sock
""")
    monkeypatch.chdir(elsewhere)
    (config,) = load_file("../project/s.yaml")
    assert config.model == str(folder / "weights")
    assert config.output_dir == str(folder / "logs")
    assert config.binary_path == str(tmp_path / "bin/engine")
    assert config.launch_command == (str(folder / "run.sh"), "run.sh", str(tmp_path / "x"), "--dir=./y", "{port}")
    assert config.ready == ({"command": (str(folder / "ask.sh"), "ask", str(tmp_path / "y"))}, {"tcp": True})
    assert config.uds == str(folder / "s.sock")
    assert config.profile == ProfileConfig(output_dir=str(folder / "p"), binary_path=str(folder / "nsys"))


def test_a_socket_that_is_in_no_file_system_is_no_path(load: Load) -> None:
    (config,) = load("{backend: command, launch_command: [run], uds: '@name'}")
    assert config.uds == "@name"


@pytest.mark.parametrize(
    ("model", "resolved"),
    [
        ("org/name", "org/name"),
        ("builtin:tiny", "builtin:tiny"),
        ("./m", "{folder}/m"),
        ("../m", "{parent}/m"),
        ("/abs/m", "/abs/m"),
        ("~/m", "{home}/m"),
        ("~nobody-of-that-name/m", "{folder}/~nobody-of-that-name/m"),
    ],
)
def test_a_model_is_a_path_only_when_it_looks_like_one(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, resolved: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (config,) = load(f"backend: vllm\nmodel: {model}\n")
    assert config.model == resolved.format(folder=tmp_path, parent=tmp_path.parent, home="/home/me")


@pytest.mark.parametrize(("binary", "resolved"), [("vllm", "vllm"), ("bin/vllm", "{}/bin/vllm")])
def test_a_bare_binary_is_looked_up_on_path(load: Load, tmp_path: Path, binary: str, resolved: str) -> None:
    (config,) = load(f"backend: vllm\nbinary_path: {binary}\n")
    assert config.binary_path == resolved.format(tmp_path)


def test_layers_below_and_above_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("backend: vllm\nport: 1\nconfig: {api_server_args: {max-len: 1}}\n")
    base = labelled({"port": 5, "host": "::1"}, "ini")
    upper = labelled({"config": {"server_args": {"max_len": 2}}}, "--option")
    (config,) = load_file(path, base=base, overrides=upper)
    assert (config.port, config.host, config.config) == (1, "::1", {"server_args": {"max_len": 2}})
    with pytest.raises(ConfigError, match=r"^--option: unknown key 'prot'; did you mean 'port'\?"):
        load_file(path, overrides=labelled({"prot": 1}, "--option"))


def test_merge_server_lets_the_later_layer_win() -> None:
    assert merge_server(*(labelled({"port": port}, "x") for port in (1, 2, 3))).data == {"port": 3}


def test_build_server_names_its_source() -> None:
    with pytest.raises(ConfigError, match=r"^create_server\(\): 'port': expected a port from 1 to 65535, not 0"):
        build_server({"port": 0}, "create_server()")


def test_choose() -> None:
    one, two = ServerConfig(name="llama"), ServerConfig(name="qwen")
    assert choose([one], None, "f") is one
    assert choose([one, two], "qwen", "f") is two
    for name, message in {
        None: "f: 2 servers (llama, qwen): say which one with name=...",
        "lama": "f: no server is called 'lama'; did you mean 'llama'?",
        "x": "f: no server is called 'x'; known are: llama, qwen",
    }.items():
        with pytest.raises(ConfigError) as caught:
            choose([one, two], name, "f")
        assert str(caught.value) == message


NSYS = {"tool": "nsys", "args": ["--trace=cuda"], "binary_path": "/x/nsys", "output_dir": "/traces", "flush_timeout": 9}
ABOUT_ANY = {"output_dir": "/traces", "flush_timeout": 9}


@pytest.mark.parametrize(
    ("below", "above", "merged"),
    [
        (NSYS, {"tool": "py-spy"}, {**ABOUT_ANY, "tool": "py-spy"}),
        (NSYS, {"tool": "py-spy", "args": ["--idle"]}, {**ABOUT_ANY, "tool": "py-spy", "args": ["--idle"]}),
        (NSYS, {"tool": "nsys", "enabled": True}, {**NSYS, "enabled": True}),
        (NSYS, {"on_demand": True}, {**NSYS, "on_demand": True}),
        # nsys is the default.
        ({"args": ["-t", "cuda"]}, {"tool": "nsys"}, {"args": ["-t", "cuda"], "tool": "nsys"}),
        ({"args": ["-t", "cuda"]}, {"tool": "amd"}, {"tool": "amd"}),
        ({"args": ["-t", "cuda"]}, {"tool": None}, {"args": ["-t", "cuda"], "tool": None}),
        ({"tool": "amd", "args": ["--stats"]}, {"tool": None}, {"tool": None}),
        (NSYS, None, None),
        (None, NSYS, NSYS),
    ],
)
def test_arguments_of_another_profiler_are_left_out(below: Any, above: Any, merged: Any) -> None:
    layers = [labelled({"profile": block}, "x") for block in (below, above)]
    assert merge_server(*layers).data == {"profile": merged}
    # The layers themselves stay as they are.
    assert [layer.data["profile"] for layer in layers] == [below, above]


def test_profiler_of_a_layer_in_between_counts() -> None:
    layers = [{"tool": "nsys", "args": ["--trace=cuda"]}, {"tool": "py-spy", "args": ["--idle"]}, {"tool": "nsys"}]
    assert merge_server(*(labelled({"profile": block}, "x") for block in layers)).data == {"profile": {"tool": "nsys"}}


def test_profiler_of_a_server_takes_no_arguments_from_the_defaults(load: Load, tmp_path: Path) -> None:
    servers = load(
        "defaults:\n  backend: vllm\n  model: m\n  profile: {tool: nsys, args: [--trace=cuda], output_dir: ./t}\n"
        "servers:\n  a: {}\n  b: {profile: {tool: py-spy, on_demand: true}}\n  c: {profile: null}\n"
        "  d: {profile: {args: [--trace=nvtx], flush_timeout: 7}}\n"
    )
    folder = str(tmp_path / "t")
    assert [one.profile for one in servers] == [
        ProfileConfig(tool="nsys", args=("--trace=cuda",), output_dir=folder),
        ProfileConfig(tool="py-spy", on_demand=True, output_dir=folder),
        None,
        ProfileConfig(tool="nsys", args=("--trace=nvtx",), output_dir=folder, flush_timeout=7),
    ]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{on_demand: 3}", "'profile.on_demand'"),
        ("{flush_timeout: -1}", "'profile.flush_timeout'"),
        ("{flush_timeout: soon}", "'profile.flush_timeout'"),
        ("{tool: perf}", "'profile.tool'"),
        ("{ondemand: true}", "unknown key 'ondemand' in 'profile'; did you mean 'on_demand'?"),
    ],
)
def test_a_mistake_in_a_profile(load: Load, tmp_path: Path, block: str, message: str) -> None:
    assert message in refused(load, tmp_path, f"backend: vllm\nmodel: m\nprofile: {block}\n")
