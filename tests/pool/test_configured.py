from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.config.model import ServerConfig
from pytest_infserver.errors import ConfigError
from pytest_infserver.pool.configured import all_servers, backend_of, chosen_servers, single_server
from pytest_infserver.settings import Settings

FILE = """\
servers:
  a: {backend: vllm, model: m}
  b: {backend: sglang, model: m}
  c: {backend: vllm, model: m, url: 'http://gpu-box:1'}
"""


def configured_servers(settings: Settings) -> dict[str, ServerConfig]:
    """Return the servers of a run."""
    return chosen_servers(all_servers(settings), settings)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(FILE)
    return path


def settings(*files: Path, **values: Any) -> Settings:
    defaults: dict[str, Any] = {
        "config_files": files,
        "servers": (),
        "backends": (),
        "url": None,
        "url_is_default": False,
        "strict": False,
        "overrides": (),
        "defaults": (),
    }
    return Settings(**{**defaults, **values})


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["a", "b", "c"]),
        ({"servers": ("b", "a")}, ["a", "b"]),
        ({"servers": ("[ac]",)}, ["a", "c"]),
        ({"backends": ("vllm",)}, ["a", "c"]),
        ({"backends": ("vllm", "sglang"), "servers": ("?",)}, ["a", "b", "c"]),
        ({"backends": ("vllm",), "servers": ("a", "b")}, ["a"]),
    ],
)
def test_filters(file: Path, filters: dict[str, Any], names: list[str]) -> None:
    assert list(configured_servers(settings(file, **filters))) == names


@pytest.mark.parametrize(
    ("filters", "asked"),
    [
        ({"servers": ("x*",)}, "--infserver-server x*"),
        ({"backends": ("vlm",)}, "--infserver-backend vlm"),
        ({"servers": ("a",), "backends": ("sglang",)}, "--infserver-server a --infserver-backend sglang"),
    ],
)
def test_filters_that_leave_nothing(file: Path, filters: dict[str, Any], asked: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured_servers(settings(file, **filters))
    assert str(caught.value) == f"{asked} leaves no server; configured are: a (vllm), b (sglang), c (vllm)"


def test_names_are_unique_across_files(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("backend: vllm\nmodel: m\nname: b\n")
    with pytest.raises(ConfigError) as caught:
        configured_servers(settings(file, other))
    message = f"{other}:3:1: server 'b': this name is taken by the server at {file}:3:3; names must be unique"
    assert str(caught.value) == message


def test_two_unnamed_servers_are_told_apart_by_name(tmp_path: Path) -> None:
    paths = [tmp_path / "1.yaml", tmp_path / "2.yaml"]
    for path in paths:
        path.write_text("backend: vllm\nmodel: m\n")
    with pytest.raises(ConfigError, match=r"server 'vllm': this name is taken by the server at .*1\.yaml:1:1"):
        configured_servers(settings(*paths))


def test_a_wrong_file_is_an_error_even_when_its_servers_are_filtered_out(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("backend: vlm\n")
    with pytest.raises(ConfigError, match="unknown backend 'vlm'"):
        configured_servers(settings(file, other, servers=("a",)))


def test_without_anything_there_is_no_server() -> None:
    assert configured_servers(settings()) == {}


def test_a_backend_alone_is_a_server() -> None:
    servers = configured_servers(settings(backends=("vllm",), overrides=(("--infserver-model", {"model": "m"}),)))
    assert [(name, one.backend, one.model) for name, one in servers.items()] == [("vllm", "vllm", "m")]


def test_a_backend_alone_may_be_an_import_path() -> None:
    path = "pytest_infserver.launcher.backends.vllm:VLLMServer"
    servers = configured_servers(settings(backends=(path,), overrides=(("--infserver-model", {"model": "m"}),)))
    assert list(servers) == ["vllm"]


def test_a_filter_may_be_an_import_path(tmp_path: Path) -> None:
    path = "pytest_infserver.launcher.backends.vllm:VLLMServer"
    file = tmp_path / "s.yaml"
    file.write_text(f"servers:\n  a: {{backend: '{path}', model: m}}\n  b: {{backend: sglang, model: m}}\n")
    for name in (path, "vllm"):
        assert list(configured_servers(settings(file, backends=(name,)))) == ["a"]


def test_a_url_alone_is_a_remote_server() -> None:
    (server,) = configured_servers(settings(url="http://127.0.0.1:9")).values()
    assert (server.name, server.backend, server.url) == ("remote", "remote", "http://127.0.0.1:9")
    (server,) = configured_servers(settings(url="http://127.0.0.1:9", backends=("vllm",))).values()
    assert (server.name, server.backend, server.url) == ("vllm", "vllm", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backends": ("vlm",)}, "--infserver-backend: unknown backend 'vlm'; did you mean 'vllm'?"),
        ({"backends": ("vllm",)}, "backend 'vllm' needs a 'model'"),
        ({"backends": ("vllm", "sglang")}, "without a configuration file --infserver-backend names one backend"),
        ({"url": "localhost:9"}, "--infserver-url: 'url': expected a URL that starts with http:// or https://"),
    ],
)
def test_mistakes_without_a_file(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured_servers(settings(**values))
    assert message in str(caught.value)


def test_a_url_stands_for_the_one_server_that_is_left(file: Path) -> None:
    (server,) = configured_servers(settings(file, servers=("b",), url="http://h:2")).values()
    assert (server.name, server.backend, server.url) == ("b", "sglang", "http://h:2")
    with pytest.raises(ConfigError) as caught:
        configured_servers(settings(file, url="http://h:2"))
    assert str(caught.value) == (
        "--infserver-url http://h:2 could stand for any of a, b, c: choose one with --infserver-server, or write"
        " NAME=http://h:2"
    )


def test_urls_by_name_attach_these_servers_and_leave_the_others(file: Path) -> None:
    urls = {"a": "http://h:2", "c": "http://h:3"}
    servers = configured_servers(settings(file, urls=urls))
    assert {name: one.url for name, one in servers.items()} == {"a": "http://h:2", "b": None, "c": "http://h:3"}
    servers = configured_servers(settings(file, urls=urls, url_is_default=True))
    assert servers["c"].url == "http://gpu-box:1"
    with pytest.raises(
        ConfigError, match=r"^--infserver-url d=http://h:2: no server is called 'd'; known are: a, b, c"
    ):
        configured_servers(settings(file, urls={"d": "http://h:2"}))
    with pytest.raises(ConfigError, match=r"^--infserver-url: server 'a': 'url': expected a URL"):
        configured_servers(settings(file, urls={"a": "h:2"}))


def test_urls_by_name_need_no_file() -> None:
    urls = {"big": "http://h:2", "small": "http://h:3"}
    servers = configured_servers(settings(urls=urls))
    assert {name: (one.backend, one.url) for name, one in servers.items()} == {
        name: ("remote", url) for name, url in urls.items()
    }
    assert [one.backend for one in configured_servers(settings(urls=urls, backends=("vllm",))).values()] == ["vllm"] * 2
    assert list(configured_servers(settings(urls=urls, servers=("s*",)))) == ["small"]
    with pytest.raises(ConfigError, match="'name'"):
        configured_servers(settings(urls={"a b": "http://h:2"}))


def test_a_wrong_url_for_a_server_of_a_file_names_the_option(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--infserver-url: server 'a': 'url': expected a URL that starts with"):
        configured_servers(settings(file, servers=("a",), url="h:2"))


@pytest.mark.parametrize(
    ("name", "default", "url"),
    [("c", False, "http://h:2"), ("c", True, "http://gpu-box:1"), ("a", True, "http://h:2")],
)
def test_a_url_of_the_ini_file_counts_less_than_the_server_s_own(
    file: Path, name: str, default: bool, url: str
) -> None:
    (server,) = configured_servers(settings(file, servers=(name,), url="http://h:2", url_is_default=default)).values()
    assert server.url == url


def test_single_server_lies_between_ini_and_command_line() -> None:
    run = settings(
        defaults=(("ini x", {"port": 1, "host": "::1", "startup_timeout": 1}),),
        overrides=(("INFSERVER_SET", {"startup_timeout": 3}), ("--infserver-set", {"startup_timeout": 4})),
    )
    config = single_server(run, {"backend": "vllm", "model": "m", "port": 2, "startup_timeout": 2}, "factory()")
    assert (config.host, config.port, config.startup_timeout, config.name) == ("::1", 2, 4, "vllm")
    with pytest.raises(ConfigError, match=r"^factory\(\): unknown key 'prot'; did you mean 'port'\?"):
        single_server(run, {"backend": "vllm", "model": "m", "prot": 1}, "factory()")


def test_backend_of_an_import_path_is_the_name_that_the_class_gives() -> None:
    config = single_server(
        settings(), {"backend": "pytest_infserver.launcher.backends.sglang:SGLangServer", "model": "m"}, "x"
    )
    assert backend_of(config) == "sglang"
