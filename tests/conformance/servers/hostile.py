"""Servers that no client would wish for."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
_EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
_MOST = 1 << 16
_TLS = b"\x16"
"""With which a TLS handshake begins."""
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
Answer = Callable[[socket.socket, threading.Event], None]


def take(connection: socket.socket) -> None:
    """Read a request, if it is not long: a connection that is closed before is reset, and an answer lost with it."""
    data = connection.recv(_MOST)
    while len(data) < _MOST and not data.startswith(_TLS):
        head, end, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= (0 if length is None else int(length[1])):
            return
        piece = connection.recv(_MOST)
        if not piece:
            return
        data += piece


def silent(connection: socket.socket, over: threading.Event) -> None:
    """Take a request, and say nothing."""
    over.wait()


def hangs_in_a_stream(connection: socket.socket, over: threading.Event) -> None:
    """Say the beginning of a stream, and then nothing, until the client has gone."""
    connection.sendall(HEAD + b"\r\n" + _EVENT)
    connection.settimeout(0.05)
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            if not connection.recv(1):
                return


def drips(connection: socket.socket, over: threading.Event) -> None:
    """Say a byte of the head now and then, for ever."""
    connection.sendall(HEAD + b"X-Long: ")
    while not over.wait(0.02):
        connection.sendall(b"x")


def floods(connection: socket.socket, over: threading.Event) -> None:
    """Send 1 GB."""
    connection.sendall(HEAD + b"Content-Length: 1073741824\r\n\r\n")
    piece = b"x" * 65536
    for _ in range(1 << 14):
        if over.is_set():
            return
        connection.sendall(piece)


def cuts(connection: socket.socket, over: threading.Event) -> None:
    """Close in the middle of the body."""
    connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + _EVENT)


def talks(connection: socket.socket, over: threading.Event) -> None:
    """Say what is no HTTP."""
    connection.sendall(b"220 mail.example.com ESMTP\r\n")


def redirects(connection: socket.socket, over: threading.Event) -> None:
    """Send to another server."""
    connection.sendall(b"HTTP/1.1 307 Temporary\r\nLocation: http://127.0.0.1:1/v1\r\nContent-Length: 0\r\n\r\n")


def wants_a_key(connection: socket.socket, over: threading.Event) -> None:
    """Refuse whoever comes."""
    connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}")


def deep(connection: socket.socket, over: threading.Event) -> None:
    """Send JSON that is nested too deeply for a parser's stack."""
    body = b"[" * 100_000
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@contextlib.contextmanager
def hostile(answer: Answer, certificate: Path | None = None) -> Iterator[str]:
    """Serve so, and yield the URL, which begins with http:// whatever is spoken there."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def serve(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.closing(plain):
            connection = plain
            if certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate)
                connection = context.wrap_socket(plain, server_side=True)
            with contextlib.closing(connection):
                take(connection)
                answer(connection, over)

    def accept(listener: socket.socket) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                thread = threading.Thread(target=serve, args=(plain,), daemon=True)
                thread.start()
                threads.append(thread)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            thread.join()
            for one in threads:
                one.join()
