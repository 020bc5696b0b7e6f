"""Servers with TLS, on unix sockets, below a path, with a key, and with further ports."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import ConfigError, InferenceServer, ServerStartupError, ServerStartupTimeout, create_server
from pytest_infserver.launcher.clients.openai_clients import make_client
from pytest_infserver.system.http.fetch import Limits, fetch
from pytest_infserver.system.http.session import session_for

Make = Callable[..., Any]


@pytest.fixture
def socket_path() -> Iterator[str]:
    # tmp_path is too long for a unix socket.
    folder = tempfile.mkdtemp(prefix="reach-")
    yield str(Path(folder) / "s.sock")
    shutil.rmtree(folder)


def is_reached(server: InferenceServer) -> None:
    """Make sure that everybody who talks to a running server does so in the right way."""
    assert server.check_health()
    assert server.list_endpoints()["health"] == server.url_for("/health")
    with session_for(server.address) as session:
        assert session.get(server.url_for("/health"), timeout=10).status_code == 200
        assert session.get("/health", timeout=10).status_code == 200
    if pytest.importorskip("openai"):
        client = make_client(server)
        assert client.models.with_raw_response.list().status_code == 200
        client.close()


@pytest.mark.parametrize("backend", ["command", "vllm"])
def test_tls_is_taken_from_the_flags(reach_server: Make, certificate: tuple[str, str, str], backend: str) -> None:
    flags = ["--ssl-certfile", certificate[0], "--ssl-keyfile", certificate[1]]
    settings: dict[str, Any] = {"model": "m", "config": {"server_args": flags}} if backend == "vllm" else {}
    server = reach_server(*(flags if not settings else ()), backend=backend, **settings).start()
    assert server.server_url == f"https://127.0.0.1:{server.port}"
    is_reached(server)


def test_tls_with_an_authority(reach_server: Make, good_certificate: tuple[str, str, str]) -> None:
    cert, key, ca = good_certificate
    server = reach_server("--ssl-certfile", cert, "--ssl-keyfile", key, tls={"ca": ca}).start()
    is_reached(server)
    with create_server("remote", url=server.server_url, tls={"ca": ca}) as attached:
        is_reached(attached)
    with pytest.raises(ServerStartupError, match=r"certificate that is not trusted .*'tls: \{ca: FILE\}'"):
        create_server("remote", url=server.server_url).start()
    with create_server("remote", url=server.server_url, tls={"verify": False}) as attached:
        is_reached(attached)


def test_a_certificate_that_is_for_another_host_is_said(reach_server: Make, certificate: tuple[str, str, str]) -> None:
    cert, key, ca = certificate
    server = reach_server("--ssl-certfile", cert, "--ssl-keyfile", key).start()
    with pytest.raises(ServerStartupError, match="not trusted"):
        create_server("remote", url=server.server_url, tls={"ca": ca}).start()
    with create_server("remote", url=server.server_url, tls={"ca": ca, "check_hostname": False}) as attached:
        is_reached(attached)


@pytest.mark.parametrize("by_flag", [True, False])
def test_a_unix_socket(reach_server: Make, socket_path: str, by_flag: bool) -> None:
    settings: dict[str, Any] = {"config": {"server_args": {"uds": socket_path}}} if by_flag else {"uds": socket_path}
    server = reach_server(backend="vllm", model="m", **settings).start()
    assert server.address.uds == socket_path
    is_reached(server)


def test_a_unix_socket_of_any_command(reach_server: Make, socket_path: str) -> None:
    server = reach_server("--uds", socket_path, port=False).start()
    is_reached(server)
    server.kill()
    assert server.wait_death(10)
    assert not server.check_health()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such sockets")
@pytest.mark.parametrize("by_key", [True, False])
def test_a_unix_socket_in_no_file_system(reach_server: Make, by_key: bool) -> None:
    name = f"@reach-{os.getpid()}"
    server = reach_server("--uds", name, port=False, **({"uds": name} if by_key else {})).start()
    is_reached(server)
    assert f"unix socket {name}" in server.address.shown(server.server_url)


def test_a_socket_in_no_file_system_is_nothing_for_vllm() -> None:
    with pytest.raises(ConfigError, match=r"'uds': vllm takes the path of a socket, not a name that begins with @"):
        create_server("vllm", model="m", uds="@name")
    # As a flag it is the name of a file.
    server = create_server("vllm", model="m", cwd="/some/where", config={"server_args": {"uds": "@name"}})
    assert server.address.uds == "/some/where/@name"


def test_a_relative_path_of_the_engine_s_is_below_its_directory(reach_server: Make, socket_path: str) -> None:
    folder = Path(socket_path).parent
    server = reach_server("--uds", "below.sock", port=False, cwd=folder).start()
    assert server.address.uds == str(folder / "below.sock")
    is_reached(server)


def test_a_socket_that_is_taken_or_left_over(reach_server: Make, socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(socket_path)
        other.listen()
        with pytest.raises(ServerStartupError, match="another server listens on the unix socket"):
            reach_server("--uds", socket_path, port=False).start()
    # Nobody listens any more; the file is still there.
    is_reached(reach_server("--uds", socket_path, port=False).start())


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("vllm", {"config": {"server_args": {"root-path": "/some/where"}}}),
        ("vllm", {"base_path": "/some/where/"}),
        ("llamacpp", {"config": {"server_args": {"api-prefix": "/some/where"}}}),
        ("llamacpp", {"base_path": "/some/where"}),
    ],
)
def test_a_base_path(reach_server: Make, backend: str, settings: dict[str, Any]) -> None:
    server = reach_server(backend=backend, model="m", **settings).start()
    assert server.server_url == f"http://127.0.0.1:{server.port}/some/where"
    assert server.url_for("v1", "models") == f"{server.server_url}/v1/models"
    assert server.url_for("/some/where/v1") == f"{server.server_url}/v1"
    is_reached(server)


@pytest.mark.parametrize(
    ("told", "url"),
    [
        ("/a/b", "/a/b"),
        ("/a//b", "/a//b"),
        # What it compares with the path of a request does not begin like that: it answers without.
        ("a", ""),
        ("/a/", ""),
        ("/a%20b", ""),
        ("/", ""),
    ],
)
def test_where_vllm_is_found_below_a_root_path(told: str, url: str) -> None:
    server = create_server("vllm", model="m", config={"server_args": {"root-path": told}})
    assert server.address.base_path == url


@pytest.mark.parametrize("told", ["a", "/a/", "a/"])
def test_a_prefix_below_which_llama_server_is_not_found(told: str) -> None:
    with pytest.raises(ConfigError, match=rf"'--api-prefix' before its paths as it is: write /a, not {told}"):
        create_server("llamacpp", model="m", config={"server_args": {"api-prefix": told}})


@pytest.mark.parametrize("written", ["/a b/\u00e9", "/a%20b/%C3%A9"])
def test_a_base_path_with_characters_that_a_url_has_not(reach_server: Make, written: str) -> None:
    server = reach_server("--api-prefix", "/a%20b/%C3%A9", base_path=written).start()
    is_reached(server)
    assert fetch(server.url_for("/health"), Limits(10, 1000)).status == 200


def has_ipv6() -> bool:
    """Return whether this machine has the loopback address of IPv6; containers often have none."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs ::1")


@needs_ipv6
def test_an_ipv6_host(reach_server: Make) -> None:
    server = reach_server("--host", "{host}", host="::1").start()
    assert server.server_url == f"http://[::1]:{server.port}"
    is_reached(server)


@needs_ipv6
def test_all_ipv6_hosts(reach_server: Make) -> None:
    server = reach_server("--host", "{host}", host="::", api_key="key-of-the-test").start()
    assert server.server_url == f"http://[::1]:{server.port}"
    is_reached(server)


def test_a_key_of_a_variable(reach_server: Make) -> None:
    server = reach_server(env_vars={"REACH_KEY": "key-of-the-test"}, api_key_env="REACH_KEY").start()
    assert server.api_key == "key-of-the-test"
    assert "key-of-the-test" in server.secrets
    is_reached(server)


def test_a_key_that_is_missing_is_asked_for(reach_server: Make) -> None:
    server = reach_server("--key", "key-of-the-test", startup_timeout=2)
    with pytest.raises(ServerStartupTimeout, match=r"answered 401: it wants an API key; name it with 'api_key'"):
        server.start()


def test_a_key_that_is_wrong_says_where_it_is_from(reach_server: Make) -> None:
    server = reach_server("--key", "key-of-the-test", api_key="another-key-of-mine", startup_timeout=2)
    with pytest.raises(ServerStartupTimeout, match="which api_key names") as caught:
        server.start()
    assert "another-key-of-mine" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "told"),
    [("vllm", {"VLLM_API_KEY": "key-of-the-test"}), ("llamacpp", {"LLAMA_API_KEY": "key-of-the-test"}), ("sglang", {})],
)
def test_an_engine_is_told_the_key(backend: str, told: dict[str, str]) -> None:
    server = create_server(backend, model="m", api_key="key-of-the-test")
    assert server.env_vars == told
    assert ("key-of-the-test" in server.get_launch_command()) == (not told)
    assert server.api_key == "key-of-the-test"


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\n\nfirst-key-of-mine\nsecond\n")
    server = create_server("llamacpp", model="m", config={"server_args": {"api-key-file": str(file)}})
    assert server.api_key == "first-key-of-mine"


def test_a_file_of_keys_that_is_not_there(reach_server: Make, tmp_path: Path) -> None:
    flags = ["--api-key-file", str(tmp_path / "no-such-file")]
    server = reach_server("--key", "key-of-the-test", config={"server_args": flags}, startup_timeout=1)
    expected = rf"it wants an API key, and --api-key-file names a file without one that can be read: {tmp_path}/no-such"
    with pytest.raises(ServerStartupTimeout, match=expected):
        server.start()


def test_a_file_of_keys_as_an_editor_of_windows_writes_it(reach_server: Make, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"key-of-the-test\r\n")
    flags = ["--api-key-file", "keys"]
    server = reach_server("--key", "key-of-the-test", cwd=tmp_path, config={"server_args": flags}).start()
    is_reached(server)


def test_further_ports(reach_server: Make) -> None:
    ready = [{"http": "/second", "port": "metrics"}, {"tcp": True}]
    server = reach_server("--second-port={ports.metrics}", ports={"metrics": None}, ready=ready).start()
    assert server.ports["metrics"] != server.port
    assert server.check_health()
    assert server.address.at("metrics").port == server.ports["metrics"]


def test_a_further_port_without_tls(reach_server: Make, certificate: tuple[str, str, str]) -> None:
    flags = ["--ssl-certfile", certificate[0], "--ssl-keyfile", certificate[1], "--second-port={ports.metrics}"]
    ready = [{"http": "/second", "port": "metrics", "tls": False}, {"http": "/health"}]
    server = reach_server(*flags, ports={"metrics": None}, ready=ready).start()
    assert server.server_url.startswith("https://")
    assert server.check_health()


def test_a_port_that_only_a_variable_carries(reach_server: Make) -> None:
    server = reach_server(port=False, env_vars={"REACH_PORT": "{port}"}).start()
    is_reached(server)


def test_a_further_port_that_only_a_variable_carries(reach_server: Make) -> None:
    settings: dict[str, Any] = {"ports": {"admin": None}, "ready": {"http": "/health", "port": "admin"}}
    server = reach_server(port=False, env_vars={"REACH_PORT": "{ports.admin}"}, **settings).start()
    assert server.check_health()


def test_another_process_reaches_it_too(reach_server: Make, certificate: tuple[str, str, str]) -> None:
    """As multiprocessing hands it over."""
    flags = ["--ssl-certfile", certificate[0], "--ssl-keyfile", certificate[1], "--key", "key-of-the-test"]
    server = reach_server(*flags, api_key="key-of-the-test").start()
    handle = pickle.loads(pickle.dumps(server))
    assert handle.url_for("/x") == server.url_for("/x")
    is_reached(handle)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key": "a", "api_key_env": "B"}, "'api_key' and 'api_key_env' mean the same: use one of them"),
        ({"api_key_env": "NO_SUCH_VARIABLE_HERE"}, "the variable NO_SUCH_VARIABLE_HERE is not set"),
        ({"api_key": "a-key\n"}, "the key of 'api_key' has a line end, or another character in it that no request can"),
        (
            {"env_vars": {"MINE": "a-key\r\n"}, "api_key_env": "MINE"},
            "the key of 'api_key_env: MINE' has a line end, or another character in it that no request can carry",
        ),
        ({"tls": {"cert": "x"}}, "unknown key 'cert'"),
        ({"base_path": "prefix"}, "expected a path that starts with '/'"),
        ({"ports": {"a": 99999}}, "'ports.a': expected a port from 1 to 65535"),
        ({"ready": {"http": "/x", "port": "metrics"}}, "'metrics' is none of 'ports'; write ports: {metrics: null}"),
        ({"env_vars": {"A": "{ports.b}"}, "ports": {"c": None}}, "{ports.b} is none of 'ports'"),
        ({"ready": {"htp": "/x"}}, "unknown key 'htp'; did you mean 'http'?"),
        ({"ready": {"http": "/x", "log": "y"}}, "http and log in one probe: write a list"),
        ({"ready": {"log": "("}}, "is no regular expression"),
        ({"ready": {"tcp": True, "status": 200}}, "'status' goes with http"),
        ({"ready": {"tcp": True, "tls": False}}, "'tls' goes with 'port'"),
        ({"stop_signal": "KILL"}, "expected the name of a signal"),
    ],
)
def test_mistakes_are_told_before_the_start(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server("command", launch_command=["run", "{port}"], **settings)
    assert message in str(caught.value)
