"""Servers that are asked in a way that they do not take: what is said of them helps."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import ServerStartupTimeout
from pytest_infserver.launcher.startup.probes.http import HttpProbe
from pytest_infserver.system.http.address import Address

Make = Callable[..., Any]
Wrap = Callable[[socket.socket], socket.socket]
Serve = Callable[..., Address]
Files = tuple[str, str, str]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
def serve(hard_limit: None) -> Iterator[Serve]:
    """Return what serves one connection after another with an answer, and returns the address."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def begin(answer: bytes = OK, wrap: Wrap = lambda sock: sock, *, keeps: bool = False) -> Address:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.settimeout(30)
                with connection, contextlib.suppress(OSError), wrap(connection) as wrapped:
                    while wrapped.recv(4096):
                        wrapped.sendall(answer)
                        if not keeps:
                            break

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return Address(port=listener.getsockname()[1])

    yield begin
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)


def seen(address: Address) -> str:
    """Return what a health check sees, in words."""
    return str(HttpProbe(address, address.url_for("/health")).look(20))


def server_side(files: Files, change: Callable[[ssl.SSLContext], object] = lambda context: None) -> Wrap:
    """Return what speaks TLS as a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[0], files[1])
    change(context)
    return lambda sock: context.wrap_socket(sock, server_side=True)


def trusting(address: Address, files: Files) -> Address:
    """Return an address whose authority is trusted."""
    return Address("https", port=address.port, ca=files[2])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_one_that_wants_a_certificate_of_its_clients(
    serve: Serve, good_certificate: Files, version: ssl.TLSVersion
) -> None:
    def wants_one(context: ssl.SSLContext) -> None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(good_certificate[2])
        context.minimum_version = context.maximum_version = version

    address = trusting(serve(wrap=server_side(good_certificate, wants_one)), good_certificate)
    said = seen(address)
    # A reset of the connection may overtake what says why.
    assert "it wants a certificate of its clients, ask with 'ready: {tcp: true}'" in said or "reset" in said
    assert "http" not in said


def test_one_that_has_a_certificate_for_other_names_only(serve: Serve, good_certificate: Files) -> None:
    def refuse(context: ssl.SSLContext) -> None:
        context.sni_callback = lambda *_: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME  # type: ignore[assignment]

    said = seen(trusting(serve(wrap=server_side(good_certificate, refuse)), good_certificate))
    assert "no certificate for the host by which it is asked" in said


def test_one_with_a_slow_handshake(serve: Serve, good_certificate: Files) -> None:
    wrap = server_side(good_certificate)

    def slow(sock: socket.socket) -> socket.socket:
        time.sleep(1)
        return wrap(sock)

    assert seen(trusting(serve(wrap=slow), good_certificate)) == "answered 200"


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file or directory"), ("no certificate", "there is no certificate in it")]
)
def test_an_authority_that_is_none(serve: Serve, good_certificate: Files, content: str | None, why: str) -> None:
    file = Path(good_certificate[2]).with_name("other.pem")
    if content is not None:
        file.write_text(content)
    address = serve(wrap=server_side(good_certificate))
    said = seen(Address("https", port=address.port, ca=str(file)))
    assert said == f"cannot be asked: the file of certificates to trust cannot be used ({why}): {file}"


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    assert seen(Address(uds=str(tmp_path / "s"))) == "refused the connection (there is no such socket)"


def test_http_where_tls_is_expected(serve: Serve, good_certificate: Files) -> None:
    assert "is it 'http' instead of 'https'?" in seen(trusting(serve(b"HTTP/1.1 400 What?\r\n\r\n"), good_certificate))


def test_tls_where_http_is_expected(serve: Serve, good_certificate: Files) -> None:
    assert seen(serve(wrap=server_side(good_certificate))).endswith(": does it speak TLS?")


def test_one_that_speaks_http_2_only(hard_limit: None) -> None:
    grpc = pytest.importorskip("grpc")
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    address = Address(port=server.add_insecure_port("127.0.0.1:0"))
    server.start()
    try:
        assert seen(address).startswith("answered in HTTP/2 only: a gRPC server is asked with 'ready: {grpc: true}'")
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n{}", "answered 200"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "answered 200"),
        (b"HTTP/1.1 405 No\r\n\r\n", "answered 405: it takes no GET there; 'ready: {request: {path: ..., json: ...}}'"),
        (b"HTTP/1.1 421 Misdirected\r\n\r\n", "answered 421"),
    ],
    ids=["HTTP/1.0", "chunks without an end", "POST only", "another host"],
)
def test_answers_of_other_kinds(serve: Serve, answer: bytes, said: str) -> None:
    assert seen(serve(answer)).startswith(said)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_one_that_serves_one_connection_at_a_time_is_free_between_heartbeats(
    serve: Serve, good_certificate: Files, secure: bool
) -> None:
    """It keeps a connection for as long as its client does, and serves nobody else meanwhile."""
    address = serve(wrap=server_side(good_certificate), keeps=True) if secure else serve(keeps=True)
    address = trusting(address, good_certificate) if secure else address
    heartbeat = HttpProbe(address, address.url_for("/health"))
    heartbeat.keep()
    try:
        for _ in range(2):
            assert heartbeat.look(20).ok
            assert seen(address) == "answered 200"
    finally:
        heartbeat.close()


def test_one_that_listens_on_a_port_of_its_own_choice(reach_server: Make) -> None:
    """It has the port as a word, and makes nothing of it."""
    server = reach_server("--port=0", "{port}", port=False, startup_timeout=3)
    with pytest.raises(ServerStartupTimeout, match=r"\(the port is not open\); it listens on 127\.0\.0\.1:\d+\n"):
        server.start()
