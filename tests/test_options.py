from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_infserver.config.model import ServerConfig
from pytest_infserver.errors import ConfigError
from pytest_infserver.options import OPTIONS
from pytest_infserver.pool.configured import all_servers, chosen_servers
from pytest_infserver.settings import Settings, read_settings, seconds
from pytest_infserver.setup import _cluster

NATIVE_TOML = pytest.mark.skipif(
    int(pytest.__version__.split(".")[0]) < 9, reason="pytest's own TOML tables came with pytest 9"
)
NO_VARIABLES: Mapping[str, str] = {}


def configured_servers(settings: Settings) -> dict[str, ServerConfig]:
    """Return the servers of a run."""
    return chosen_servers(all_servers(settings), settings)


@pytest.fixture(autouse=True)
def only_this_plugin(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the other installed plugins out: they cost time and have warnings of their own."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_infserver.plugin")


def settings_of(pytester: pytest.Pytester, *arguments: str, environ: Mapping[str, str] = NO_VARIABLES) -> Settings:
    return read_settings(pytester.parseconfig("-p", "no:cacheprovider", *arguments), environ)


ATTACHED = ["--infserver-url=http://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("words", "environ", "url", "urls"),
    [
        (["http://h:1/v1?a=b"], {}, "http://h:1/v1?a=b", {}),
        (["a=http://h:1", "b=http://h:2/?x=y"], {}, None, {"a": "http://h:1", "b": "http://h:2/?x=y"}),
        ([], {"INFSERVER_URL": "a=http://h:1 b=http://h:2"}, None, {"a": "http://h:1", "b": "http://h:2"}),
        (["off"], {"INFSERVER_URL": "a=http://h:1"}, None, {}),
        (["http://h:3"], {"INFSERVER_URL": "a=http://h:1"}, "http://h:3", {}),
    ],
)
def test_urls(pytester: pytest.Pytester, words: list[str], environ: dict[str, str], url: str, urls: object) -> None:
    settings = settings_of(pytester, *(f"--infserver-url={word}" for word in words), environ=environ)
    assert (settings.url, settings.urls) == (url, urls)


@pytest.mark.parametrize(
    "words", [["http://h:1", "http://h:2"], ["http://h:1", "a=http://h:2"], ["a=h", "a=i"], ["=h"]]
)
def test_urls_that_are_not_clear(pytester: pytest.Pytester, words: list[str]) -> None:
    with pytest.raises(pytest.UsageError, match=r"^--infserver-url: .*NAME="):
        settings_of(pytester, *(f"--infserver-url={word}" for word in words))


def merged(settings: Settings) -> dict[str, Any]:
    """Return the settings of a server that no file names."""
    servers = configured_servers(settings)
    (config,) = servers.values()
    return {"name": config.name, **config.keywords()}


def nested(path: str, value: Any) -> dict[str, Any]:
    key, dot, rest = path.partition(".")
    return {key: nested(rest, value)} if dot else {key: value}


def found(config: Any, path: str) -> Any:
    key, dot, rest = path.partition(".")
    value = config[key] if isinstance(config, Mapping) else getattr(config, key)
    return found(value, rest) if dot else value


# One row: the key, how each source from the weakest to the strongest says it, and what the last one means.
SOURCES = [
    ("model", "ini-m", "default-m", "server-m", "env-m", ["--infserver-model", "cli-m"], "cli-m"),
    ("startup_timeout", "1", 2, 3, "4", ["--infserver-startup-timeout", "5"], 5),
    ("debug_mode", "true", False, True, "off", ["--infserver-debug"], True),
    ("env_vars.A", "A=ini", "default", "server", "A=env", ["--infserver-env", "A=cli"], "cli"),
    ("port", "port=1", 2, 3, "port=4", ["--infserver-set", "port=5"], 5),
    (
        "config.server_args.x-y",
        "config.server_args.x_y=1",
        2,
        3,
        "config.api_server_args.--x-y=4",
        ["--infserver-set", "config.server_args.x_y=5"],
        5,
    ),
]
OPTION_OF = {"model": "model", "startup_timeout": "startup-timeout", "debug_mode": "debug", "env_vars.A": "env"}


@pytest.mark.parametrize("sources", range(1, 6), ids=["ini", "defaults", "server", "environment", "command line"])
@pytest.mark.parametrize("row", SOURCES, ids=[row[0] for row in SOURCES])
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
def test_the_strongest_source_counts(pytester: pytest.Pytester, row: tuple[Any, ...], sources: int) -> None:
    key, ini, default, server, variable, arguments, last = row
    option = next(one for one in OPTIONS if one.name == OPTION_OF.get(key, "set"))
    pytester.makeini(f"[pytest]\n{option.ini} = {ini}\n")
    blocks: dict[str, Any] = {"servers": {"a": {"backend": "command", "launch_command": ["run", "{port}"]}}}
    if sources > 1:
        blocks["defaults"] = nested(key, default)
    if sources > 2:
        blocks["servers"]["a"].update(nested(key, server))
    (pytester.path / "s.yaml").write_text(yaml.safe_dump(blocks))
    environ = {option.variable: variable} if sources > 3 else {}
    words = arguments if sources > 4 else []
    config = configured_servers(settings_of(pytester, "--infserver-config=s.yaml", *words, environ=environ))["a"]
    expected = [ini, default, server, variable, last][sources - 1]
    if isinstance(expected, str):
        expected = {"true": True, "off": False}.get(expected, expected.rpartition("=")[2])
    if key.startswith("config."):
        (value,) = next(iter(config.config.values())).values()
    else:
        value = found(config, key)
    assert str(value) == str(type(value)(expected) if isinstance(value, (int, float)) else expected)


def test_an_ini_value_on_the_command_line(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ninfserver_startup_timeout = 5\n")
    settings = settings_of(pytester, *ATTACHED, "-o", "infserver_startup_timeout=6")
    assert merged(settings)["startup_timeout"] == 6


def test_what_nobody_says_is_built_in(pytester: pytest.Pytester) -> None:
    (pytester.path / "s.yaml").write_text("backend: vllm\nmodel: m\n")
    config = configured_servers(settings_of(pytester, "--infserver-config=s.yaml"))["vllm"]
    assert (config.startup_timeout, config.debug_mode, config.env_vars) == (600, False, {})
    assert config.output_dir == str(pytester.path / "server_logs")


INI_FILES = {
    "pytest.ini": """\
[pytest]
infserver_config =
    a.yaml
    b.yaml
infserver_server = a*, b*
infserver_env =
    A=1 2
    B=x,y
infserver_startup_timeout = 900
infserver_debug = yes
infserver_strict = 1
infserver_output_dir = logs
infserver_set = port=8001
""",
    "pyproject.toml": """\
[tool.pytest.ini_options]
infserver_config = ["a.yaml", "b.yaml"]
infserver_server = "a*,b*"
infserver_env = ["A=1 2", "B=x,y"]
infserver_startup_timeout = "900"
infserver_debug = "true"
infserver_strict = true
infserver_output_dir = "logs"
infserver_set = ["port=8001"]
""",
    "native": """\
[tool.pytest]
infserver_config = ["a.yaml", "b.yaml"]
infserver_server = ["a*", "b*"]
infserver_env = ["A=1 2", "B=x,y"]
infserver_startup_timeout = 900
infserver_debug = true
infserver_strict = true
infserver_output_dir = "logs"
infserver_set = "port=8001"
""",
    "pytest.toml": """\
[pytest]
infserver_config = "a.yaml\\nb.yaml"
infserver_server = "a*,b*"
infserver_env = "A=1 2\\nB=x,y"
infserver_startup_timeout = 900.0
infserver_debug = "on"
infserver_strict = 1
infserver_output_dir = "logs"
infserver_set = "port=8001"
""",
    "setup.cfg": """\
[tool:pytest]
infserver_config = a.yaml:b.yaml
infserver_server = a*,b*
infserver_env = A=1 2
    B=x,y
infserver_startup_timeout = 9e2
infserver_debug = True
infserver_strict = on
infserver_output_dir = logs
infserver_set = port=8001
""",
}


@pytest.mark.parametrize(
    "file",
    [
        "pytest.ini",
        "setup.cfg",
        "pyproject.toml",
        *(pytest.param(f, marks=NATIVE_TOML) for f in ("native", "pytest.toml")),
    ],
)
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
def test_every_kind_of_ini_file(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    (pytester.path / "pyproject.toml" if file == "native" else pytester.path / file).write_text(INI_FILES[file])
    (pytester.path / "sub").mkdir()
    monkeypatch.chdir(pytester.path / "sub")
    settings = settings_of(pytester)
    assert settings.config_files == (pytester.path / "a.yaml", pytester.path / "b.yaml")
    assert settings.servers == ("a*", "b*")
    assert settings.strict
    (pytester.path / "a.yaml").write_text("name: a\nbackend: vllm\nmodel: m\n")
    (pytester.path / "b.yaml").write_text("name: b\nbackend: vllm\nmodel: m\n")
    for config in configured_servers(settings).values():
        assert config.env_vars == {"A": "1 2", "B": "x,y"}
        assert (config.startup_timeout, config.debug_mode, config.port) == (900, True, 8001)
        assert config.output_dir == str(pytester.path / "logs")


def test_a_relative_path_is_relative_to_where_it_was_written(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    sub = pytester.path / "sub"
    sub.mkdir()
    pytester.makeini(
        "[pytest]\ninfserver_config = ini.yaml\ninfserver_output_dir = ini-logs\ninfserver_model = ./ini-m\n"
    )
    for folder in (pytester.path, sub):
        for name in ("ini", "env", "cli"):
            (folder / f"{name}.yaml").write_text("backend: vllm\n")
    monkeypatch.chdir(sub)

    def resolved(*words: str, **environ: str) -> tuple[Path, str, str | None]:
        settings = settings_of(pytester, *words, environ=environ)
        config = configured_servers(settings)["vllm"]
        return settings.config_files[0], config.output_dir, config.model

    top = pytester.path
    assert resolved() == (top / "ini.yaml", f"{top}/ini-logs", f"{top}/ini-m")
    variables = {"INFSERVER_CONFIG": "env.yaml", "INFSERVER_OUTPUT_DIR": "./env-logs", "INFSERVER_MODEL": "../m"}
    assert resolved(**variables) == (sub / "env.yaml", f"{sub}/env-logs", f"{top}/m")
    words = ["--infserver-config=cli.yaml", "--infserver-output-dir=cli-logs", "--infserver-model=./m"]
    assert resolved(*words, **variables) == (sub / "cli.yaml", f"{sub}/cli-logs", f"{sub}/m")
    assert resolved("--infserver-set=output_dir=set-logs", "--infserver-model=org/m")[1:] == (
        f"{sub}/set-logs",
        "org/m",
    )
    assert resolved("--infserver-output-dir=/abs", "--infserver-model=builtin:tiny")[1:] == ("/abs", "builtin:tiny")


def test_a_path_in_the_home_folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert settings_of(pytester, "--infserver-config=~/s.yaml").config_files == (Path("/home/me/s.yaml"),)
    odd = settings_of(pytester, "--infserver-config=~no-such-user/s.yaml").config_files
    assert odd == (pytester.path / "~no-such-user/s.yaml",)


def test_lists_in_the_environment(pytester: pytest.Pytester) -> None:
    environ = {
        "INFSERVER_CONFIG": "a.yaml:/b.yaml",
        "INFSERVER_SERVER": "a, b-*",
        "INFSERVER_BACKEND": "vllm,sglang",
        "INFSERVER_STRICT": "0",
    }
    pytester.makeini("[pytest]\ninfserver_strict = true\n")
    settings = settings_of(pytester, environ=environ)
    assert settings.config_files == (pytester.path / "a.yaml", Path("/b.yaml"))
    assert (settings.servers, settings.backends, settings.strict) == (("a", "b-*"), ("vllm", "sglang"), False)


def test_an_empty_variable_is_none(pytester: pytest.Pytester) -> None:
    environ = {option.variable: "" for option in OPTIONS}
    assert settings_of(pytester, environ=environ) == settings_of(pytester)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--infserver-set=port=5", "--infserver-set=port=6"], {"port": 6}),
        (["--infserver-set=startup_timeout=7", "--infserver-startup-timeout=8"], {"startup_timeout": 7}),
        (["--infserver-set=env_vars.A.B=1", "--infserver-env=C=d=e"], {"env_vars": {"A.B": "1", "C": "d=e"}}),
        (["--infserver-env=A=", "--infserver-env=A=2"], {"env_vars": {"A": "2"}}),
        (["--infserver-set=config.server_args.a.b=1"], {"config": {"server_args": {"a.b": 1}}}),
        (["--infserver-set=config.server_args=[--a, 1]"], {"config": {"server_args": ["--a", 1]}}),
        (["--infserver-set=config.server_args.x=a=b"], {"config": {"server_args": {"x": "a=b"}}}),
        (["--infserver-set=config.server_args.x=true"], {"config": {"server_args": {"x": True}}}),
        (["--infserver-set=config.server_args.x="], {"config": {"server_args": {"x": ""}}}),
        (["--infserver-set=endpoints.api=/api"], {"endpoints": {"api": "/api"}}),
        (["--infserver-set=debug_mode=yes"], {"debug_mode": True}),
    ],
)
def test_set(pytester: pytest.Pytester, words: list[str], expected: dict[str, Any]) -> None:
    values = merged(settings_of(pytester, *ATTACHED, *words))
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("words", "environ", "ini", "message"),
    [
        (["--infserver-env=A"], {}, "", "--infserver-env: expected KEY=VALUE, not 'A'"),
        (["--infserver-env==x"], {}, "", "--infserver-env: expected KEY=VALUE, not '=x'"),
        (["--infserver-set=port"], {}, "", "--infserver-set: expected KEY=VALUE, not 'port'"),
        (["--infserver-set=port=[a"], {}, "", "--infserver-set: cannot read '[a' as a YAML value; put it in quotes"),
        (["--infserver-set=prot=1"], {}, "", "--infserver-set: unknown key 'prot'; did you mean 'port'?"),
        (["--infserver-set=port=0"], {}, "", "--infserver-set: 'port': expected a port from 1 to 65535, not 0"),
        (["--infserver-set=config.x=1"], {"INFSERVER_SET": "config=[1]"}, "", "'config' is a mapping in one place and"),
        (
            ["--infserver-startup-timeout=5m"],
            {},
            "",
            "--infserver-startup-timeout: expected a number of seconds, not '5m'",
        ),
        (
            ["--infserver-startup-timeout=0"],
            {},
            "",
            "--infserver-startup-timeout: 'startup_timeout': expected a positive",
        ),
        (["--infserver-startup-timeout=nan"], {}, "", "expected a positive number of seconds, not NaN"),
        (["--infserver-startup-timeout=inf"], {}, "", "expected a positive number of seconds up to 1000000000, not"),
        ([], {"INFSERVER_DEBUG": "maybe"}, "", "INFSERVER_DEBUG: expected true or false, not 'maybe'"),
        (
            [],
            {"INFSERVER_STARTUP_TIMEOUT": "x"},
            "",
            "INFSERVER_STARTUP_TIMEOUT: expected a number of seconds, not 'x'",
        ),
        ([], {"INFSERVER_ENV": "A"}, "", "INFSERVER_ENV: expected KEY=VALUE, not 'A'"),
        ([], {}, "infserver_debug = 2", "ini infserver_debug: expected true or false, not '2'"),
        (
            [],
            {},
            "infserver_startup_timeout = 0",
            "ini infserver_startup_timeout: 'startup_timeout': expected a positive",
        ),
        ([], {}, "infserver_set = prot=1", "ini infserver_set: unknown key 'prot'; did you mean 'port'?"),
    ],
)
def test_a_mistake_names_its_source(
    pytester: pytest.Pytester, words: list[str], environ: dict[str, str], ini: str, message: str
) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    with pytest.raises((pytest.UsageError, ConfigError)) as caught:
        configured_servers(settings_of(pytester, *ATTACHED, *words, environ=environ))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@NATIVE_TOML
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('infserver_model = ["a", "b"]', "ini infserver_model: expected one text or number, not ['a', 'b']"),
        ("infserver_startup_timeout = true", "ini infserver_startup_timeout: expected one text or number, not True"),
        ("infserver_debug = 3", "ini infserver_debug: expected true or false, not 3"),
        ('infserver_env = [["A=1"]]', "ini infserver_env: expected texts, not ['A=1']"),
    ],
)
def test_a_toml_value_of_the_wrong_type(pytester: pytest.Pytester, line: str, message: str) -> None:
    (pytester.path / "pyproject.toml").write_text(f"[tool.pytest]\n{line}\n")
    with pytest.raises(pytest.UsageError) as caught:
        settings_of(pytester)
    assert message in str(caught.value)


POOL = ("max_servers", "prelaunch", "keep", "on_crash")


def pool_options(settings: Settings) -> tuple[Any, ...]:
    return tuple(getattr(settings, name) for name in POOL)


@pytest.mark.parametrize(
    ("words", "environ", "ini", "expected"),
    [
        ([], {}, "", (None, True, None, "restart")),
        (
            [],
            {},
            "infserver_max_servers = 3\ninfserver_prelaunch = no\ninfserver_keep = 30m\ninfserver_on_crash = fail",
            (3, False, 1800.0, "fail"),
        ),
        (
            [],
            {
                "INFSERVER_MAX_SERVERS": "4",
                "INFSERVER_PRELAUNCH": "1",
                "INFSERVER_KEEP": "90",
                "INFSERVER_ON_CRASH": "restart",
            },
            "infserver_max_servers = 3\ninfserver_prelaunch = no\ninfserver_keep = 30m\ninfserver_on_crash = fail",
            (4, True, 90.0, "restart"),
        ),
        (
            [
                "--infserver-max-servers=5",
                "--no-infserver-prelaunch",
                "--infserver-keep=1.5h",
                "--infserver-on-crash=fail",
            ],
            {"INFSERVER_MAX_SERVERS": "4", "INFSERVER_PRELAUNCH": "1", "INFSERVER_ON_CRASH": "restart"},
            "",
            (5, False, 5400.0, "fail"),
        ),
        (["--infserver-prelaunch"], {"INFSERVER_PRELAUNCH": "off"}, "", (None, True, None, "restart")),
        ([], {"INFSERVER_PRELAUNCH": "off"}, "infserver_prelaunch = on", (None, False, None, "restart")),
    ],
)
def test_the_options_of_the_pool(
    pytester: pytest.Pytester, words: list[str], environ: dict[str, str], ini: str, expected: tuple[Any, ...]
) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    assert pool_options(settings_of(pytester, *words, environ=environ)) == expected


@pytest.mark.parametrize(
    ("words", "environ", "expected"),
    [
        ([], {}, "auto"),
        ([], {"INFSERVER_CLUSTER": "head:6379"}, "head:6379"),
        (["--infserver-cluster=local"], {"INFSERVER_CLUSTER": "head:6379"}, "local"),
        # This machine, whatever the ini file says.
        (["--infserver-cluster="], {"INFSERVER_CLUSTER": "head:6379"}, None),
        ([], {"INFSERVER_CLUSTER": ""}, "auto"),
    ],
)
def test_the_cluster(
    pytester: pytest.Pytester, words: list[str], environ: dict[str, str], expected: str | None
) -> None:
    pytester.makeini("[pytest]\ninfserver_cluster = auto\n")
    assert settings_of(pytester, *words, environ=environ).cluster == expected


# Of each option with twins: what an ini file says, what takes that back on the command line, and what in the
# environment; nothing where that has a value of its own for what nobody says.
OFF: dict[str, tuple[str, list[str], list[str]]] = {
    "config": ("a.yaml", ["--infserver-config="], []),
    "server": ("a*", ["--infserver-server="], []),
    "backend": ("vllm", ["--infserver-backend="], []),
    "model": ("m", ["--infserver-model="], []),
    "env": ("A=1", ["--infserver-env="], []),
    "set": ("port=5", ["--infserver-set="], []),
    "url": ("http://127.0.0.1:9", ["--infserver-url=", "--infserver-url=off"], ["off"]),
    "profile": ("nsys", ["--infserver-profile=", "--infserver-profile=off"], ["off", "OFF"]),
    "debug": ("true", ["--no-infserver-debug"], ["0", "false", "off"]),
    "output-dir": ("logs", ["--infserver-output-dir="], []),
    "startup-timeout": ("5", ["--infserver-startup-timeout="], []),
    "max-servers": ("3", ["--infserver-max-servers=", "--infserver-max-servers=off"], ["off"]),
    "prelaunch": ("off", ["--infserver-prelaunch"], ["1", "on"]),
    "keep": ("30m", [f"--infserver-keep={value}" for value in ("", "0", "0s", "off")], ["0", "0m", "off"]),
    "on-crash": ("fail", ["--infserver-on-crash=", "--infserver-on-crash=restart"], ["restart"]),
    "log": ("live", ["--infserver-log=", "--infserver-log=failed"], ["failed"]),
    "log-lines": ("7", ["--infserver-log-lines="], []),
    "share-gpu": ("true", ["--no-infserver-share-gpu"], ["0", "no"]),
    "fresh-on-rerun": ("true", ["--no-infserver-fresh-on-rerun"], ["0", "no"]),
    "summary": ("never", ["--infserver-summary=", "--infserver-summary=auto"], ["auto"]),
    "order": ("source", ["--infserver-order=", "--infserver-order=servers"], ["servers"]),
    "shard": ("1/3", ["--infserver-shard=", "--infserver-shard=off"], ["off"]),
    "durations": ("d.json", ["--infserver-durations="], []),
    "save-durations": ("on", ["--infserver-save-durations=", "--infserver-save-durations=off"], ["off"]),
    "load-save": ("true", ["--no-infserver-load-save"], ["0", "no"]),
    "load-compare": ("off", ["--infserver-load-compare=", "--infserver-load-compare=on"], ["on"]),
    "optional-names": ("a*", ["--infserver-optional-names="], []),
    "cluster": ("auto", ["--infserver-cluster=", "--infserver-cluster=off"], ["off"]),
    "strict": ("true", ["--no-infserver-strict"], ["0", "no"]),
}
FROM_INI = [(name, "command line", word) for name, (_, words, _) in OFF.items() for word in words]
FROM_INI += [(name, "environment", value) for name, (_, _, values) in OFF.items() for value in values]
FROM_INI += [(name, "ini", value) for name, (_, _, values) in OFF.items() for value in values]


def test_each_option_can_be_taken_back() -> None:
    assert OFF.keys() == {option.name for option in OPTIONS if not option.command_line_only}
    assert all(words for _, words, _ in OFF.values())
    assert {option.name for option in OPTIONS if option.can_be_off} <= {name for name, row in OFF.items() if row[2]}


def meaning(settings: Settings) -> tuple[Any, ...]:
    """Return what settings mean for a run and for a server that its file does not say much of."""
    servers = configured_servers(
        dataclasses.replace(settings, config_files=(), servers=(), backends=(), url="http://x")
    )
    (config,) = servers.values()
    run = dataclasses.replace(settings, url_is_default=True, overrides=(), defaults=())
    return run, dataclasses.replace(config, output_dir=config.output_dir)


@pytest.mark.parametrize(("name", "source", "value"), FROM_INI)
def test_what_the_ini_file_says_can_be_taken_back(
    pytester: pytest.Pytester, name: str, source: str, value: str
) -> None:
    option = next(one for one in OPTIONS if one.name == name)
    pytester.makeini("[pytest]\n")
    nothing = meaning(settings_of(pytester))
    pytester.makeini(f"[pytest]\n{option.ini} = {value if source == 'ini' else OFF[name][0]}\n")
    assert source == "ini" or meaning(settings_of(pytester)) != nothing
    words = [value] if source == "command line" else []
    environ = {option.variable: value} if source == "environment" else {}
    assert meaning(settings_of(pytester, *words, environ=environ)) == nothing


@pytest.mark.parametrize(("name", "source", "word"), [row for row in FROM_INI if row[1] == "command line"])
def test_what_the_environment_says_can_be_taken_back(
    pytester: pytest.Pytester, name: str, source: str, word: str
) -> None:
    option = next(one for one in OPTIONS if one.name == name)
    pytester.makeini("[pytest]\n")
    nothing = meaning(settings_of(pytester))
    environ = {option.variable: OFF[name][0]}
    assert meaning(settings_of(pytester, environ=environ)) != nothing
    assert meaning(settings_of(pytester, word, environ=environ)) == nothing


def test_a_profile_of_the_servers_file_can_be_switched_off(pytester: pytest.Pytester) -> None:
    (pytester.path / "s.yaml").write_text("backend: vllm\nmodel: m\nprofile: {tool: py-spy}\n")
    words = ["--infserver-config=s.yaml", "--infserver-profile=off"]
    assert configured_servers(settings_of(pytester, *words[:1]))["vllm"].profile is not None
    assert configured_servers(settings_of(pytester, *words))["vllm"].profile is None


def test_what_is_taken_back_leaves_what_the_servers_file_says(pytester: pytest.Pytester) -> None:
    (pytester.path / "s.yaml").write_text("backend: vllm\nmodel: file-m\nstartup_timeout: 7\n")
    environ = {"INFSERVER_MODEL": "env-m", "INFSERVER_STARTUP_TIMEOUT": "8"}
    words = ["--infserver-config=s.yaml", "--infserver-model=", "--infserver-startup-timeout="]
    config = configured_servers(settings_of(pytester, *words, environ=environ))["vllm"]
    assert (config.model, config.startup_timeout) == ("file-m", 7)


def test_an_empty_item_among_others_is_a_mistake(pytester: pytest.Pytester) -> None:
    with pytest.raises(pytest.UsageError, match="--infserver-env: expected KEY=VALUE, not ''"):
        settings_of(pytester, "--infserver-env=", "--infserver-env=A=1")


@pytest.mark.parametrize("words", [[], ["--infserver-keep=0"], ["--infserver-keep=off"]])
def test_without_keep_a_cluster_may_be_used(pytester: pytest.Pytester, words: list[str]) -> None:
    pytester.makeini(f"[pytest]\ninfserver_cluster = auto\ninfserver_keep = {'30m' if words else '0'}\n")
    settings = settings_of(pytester, *words)
    assert settings.keep is None
    assert _cluster(settings, {}) is not None


@NATIVE_TOML
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("infserver_max_servers = false\ninfserver_keep = false", (None, True, None, "restart")),
        ("infserver_keep = 0", (None, True, None, "restart")),
        ("infserver_max_servers = 2\ninfserver_keep = 600\ninfserver_prelaunch = false", (2, False, 600.0, "restart")),
        (
            'infserver_max_servers = "2"\ninfserver_keep = "10m"\ninfserver_on_crash = "fail"',
            (2, True, 600.0, "fail"),
        ),
        ("infserver_keep = 0.5\ninfserver_prelaunch = 1", (None, True, 0.5, "restart")),
    ],
)
def test_the_options_of_the_pool_in_toml(pytester: pytest.Pytester, lines: str, expected: tuple[Any, ...]) -> None:
    (pytester.path / "pyproject.toml").write_text(f"[tool.pytest]\n{lines}\n")
    assert pool_options(settings_of(pytester)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90s", 90), (" 30 m ", 1800), ("2h", 7200), ("1.5h", 5400), ("1d", 86400), ("0", 0), ("0.25", 0.25)],
)
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "m", "-5", "5x", "1h30m", "1e3", "nan", "inf", ".5", "5 5", "30 min"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        seconds(text)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max-servers", "0", "expected a number from 1 on, not '0'"),
        ("max-servers", "-1", "expected a number from 1 on, not '-1'"),
        ("max-servers", "many", "expected a number from 1 on, not 'many'"),
        ("max-servers", "2.5", "expected a number from 1 on, not '2.5'"),
        ("max-servers", "²", "expected a number from 1 on, not '²'"),
        ("keep", "long", "expected a time such as 90s, 30m or 2h, not 'long'"),
        ("keep", "-1", "expected a time such as 90s, 30m or 2h, not '-1'"),
        ("on-crash", "die", "expected restart or fail, not 'die'"),
        ("on-crash", "Fail", "expected restart or fail, not 'Fail'"),
    ],
)
@pytest.mark.parametrize("source", ["command line", "environment", "ini"])
def test_a_wrong_option_of_the_pool(
    pytester: pytest.Pytester, source: str, name: str, value: str, message: str
) -> None:
    option = next(one for one in OPTIONS if one.name == name)
    if source == "ini":
        (pytester.path / "pytest.ini").write_text(f"[pytest]\n{option.ini} = {value}\n", encoding="utf-8")
    words = [f"{option.flag}={value}"] if source == "command line" else []
    environ = {option.variable: value} if source == "environment" else {}
    with pytest.raises(pytest.UsageError) as caught:
        settings_of(pytester, *words, environ=environ)
    where = {"command line": option.flag, "environment": option.variable, "ini": f"ini {option.ini}"}[source]
    assert str(caught.value) == f"{where}: {message}"


@pytest.mark.parametrize("source", ["environment", "ini"])
def test_a_switch_that_is_neither_on_nor_off(pytester: pytest.Pytester, source: str) -> None:
    pytester.makeini(f"[pytest]\n{'infserver_prelaunch = maybe' if source == 'ini' else ''}\n")
    environ = {"INFSERVER_PRELAUNCH": "maybe"} if source == "environment" else {}
    with pytest.raises(pytest.UsageError, match="expected true or false, not 'maybe'"):
        settings_of(pytester, environ=environ)


@NATIVE_TOML
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("infserver_max_servers = true", "ini infserver_max_servers: expected one text or number, not True"),
        ("infserver_max_servers = 2.5", "ini infserver_max_servers: expected a number from 1 on, not '2.5'"),
        ("infserver_keep = [1]", "ini infserver_keep: expected one text or number, not [1]"),
        ("infserver_keep = -1", "ini infserver_keep: expected a time such as 90s, 30m or 2h, not '-1'"),
        ("infserver_prelaunch = 2", "ini infserver_prelaunch: expected true or false, not 2"),
    ],
)
def test_a_wrong_toml_value_of_the_pool(pytester: pytest.Pytester, line: str, message: str) -> None:
    (pytester.path / "pyproject.toml").write_text(f"[tool.pytest]\n{line}\n")
    with pytest.raises(pytest.UsageError) as caught:
        settings_of(pytester)
    assert str(caught.value) == message


def the_error(result: pytest.RunResult) -> str:
    """Return what pytest says to the user, which must be one paragraph."""
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    _, error, text = result.stderr.str().partition("ERROR: ")
    assert error
    assert "\n" not in text.strip()
    return text.strip()


BAD_FILES = [
    ("backend: vlm\nmodel: m\n", "s.yaml:1:1: unknown backend 'vlm'; did you mean 'vllm'?"),
    ("backend: vllm\nmodel: m\nmodel: n\n", "s.yaml:3:1: 'model' stands here for the second time"),
    ("backend: vllm\nmodel: ${NO_SUCH_VARIABLE}\n", "s.yaml:2:8: the environment variable NO_SUCH_VARIABLE is not set"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_configuration_error_is_one_line_and_exit_status_4(
    run_inline: Callable[..., pytest.RunResult], pytester: pytest.Pytester, text: str, message: str
) -> None:
    (pytester.path / "s.yaml").write_text(text)
    pytester.makepyfile("def test(inference_server): pass")
    result = run_inline("--infserver-config=s.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in the_error(result)
    assert not (pytester.path / "server_logs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--infserver-set=prot=1"], "--infserver-set: server 'a': unknown key 'prot'; did you mean 'port'?"),
        (["--infserver-server=b*"], "--infserver-server b* leaves no server; configured are: a (command)"),
        (["--infserver-dry-run", "--infserver-env=A"], "--infserver-env: expected KEY=VALUE, not 'A'"),
        (
            ["--infserver-config=nope.yaml"],
            "nope.yaml: cannot read the configuration: No such file or directory",
        ),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_status_4(
    run_inline: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    servers_yaml: Callable[..., Path],
    words: list[str],
    message: str,
) -> None:
    servers_yaml(a=[])
    result = run_inline("--infserver-config=servers.yaml", *words)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert the_error(result).startswith(message)


def test_dry_run_prints_the_commands_and_starts_nothing(
    run_inline: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    (pytester.path / "s.yaml").write_text(
        "defaults: {env_vars: {HF_TOKEN: hf_0123456789}}\n"
        "servers:\n  a: {backend: vllm, model: m}\n  b: {backend: remote, url: 'http://127.0.0.1:9'}\n"
    )
    pytester.makepyfile("def test(inference_server): raise RuntimeError('was run')")
    result = run_inline("--infserver-config=s.yaml", "--infserver-dry-run", "--infserver-set=config.server_args.x=1")
    assert result.ret == 0
    assert [line for line in result.outlines if line] == [
        "a: HF_TOKEN=******** vllm serve m --host 127.0.0.1 --port 8000 --x 1",
        "b: attach to http://127.0.0.1:9",
    ]
    assert not (pytester.path / "server_logs").exists()


def test_the_help_shows_every_option_with_its_twins(run_inline: Callable[..., pytest.RunResult]) -> None:
    text = " ".join(run_inline("--help").stdout.str().split())
    for option in OPTIONS:
        assert option.flag in text
        if not option.command_line_only:
            assert option.variable in text
            assert f"{option.ini} (string)" in text


@pytest.mark.parametrize(
    ("words", "environ", "url", "is_default"),
    [
        ([], {}, "http://ini", True),
        ([], {"INFSERVER_URL": "http://env"}, "http://env", False),
        (["--infserver-url=http://cli"], {"INFSERVER_URL": "http://env"}, "http://cli", False),
    ],
)
def test_a_url_knows_whether_it_is_only_a_default(
    pytester: pytest.Pytester, words: list[str], environ: dict[str, str], url: str, is_default: bool
) -> None:
    pytester.makeini("[pytest]\ninfserver_url = http://ini\n")
    settings = settings_of(pytester, *words, environ=environ)
    assert (settings.url, settings.url_is_default) == (url, is_default)
