"""The sockets of the machine, as /proc/net shows them. Imports only the standard library."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

_LISTEN = b"0A"


class Listener(NamedTuple):
    """A TCP socket that accepts connections."""

    inode: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listeners(pid: int | str = "self") -> Iterator[Listener]:
    """Yield the listening TCP sockets in the network namespace of a process.

    Raises:
        OSError: They cannot be seen, or not all of them: as in a container whose /proc is restricted, on a system
            without /proc, or of a process that has ended.
    """
    for row in _listening(pid):
        yield _listener(row[9], row[1])


def is_listening(port: int) -> bool:
    """Return whether somebody listens on a TCP port in the network namespace of this process.

    Raises:
        OSError: As `listeners`.
    """
    end = b":%04X" % port
    return any(row[1].endswith(end) for row in _listening("self"))


def _listening(pid: int | str) -> Iterator[list[bytes]]:
    yield from _listening_in(f"/proc/{pid}/net/tcp")
    # Without IPv6 there is no such table.
    with contextlib.suppress(FileNotFoundError):
        yield from _listening_in(f"/proc/{pid}/net/tcp6")


def _listening_in(table: str) -> Iterator[list[bytes]]:
    """Yield the fields of the lines about listening sockets."""
    # Listeners come first. Reads of one line spare the kernel the walk through all connections: 8 ms.
    with open(table, "rb", buffering=0) as file:  # noqa: PTH123
        text = b""
        while data := file.read(150):
            *lines, text = (text + data).split(b"\n")
            rows = [line.split() for line in lines if b"local_address" not in line]
            yield from (row for row in rows if row[3] == _LISTEN)
            if any(row[3] != _LISTEN for row in rows):
                break


def _listener(inode: bytes, address: bytes) -> Listener:
    host, _, port = address.partition(b":")
    words = bytes.fromhex(host.decode())
    # The kernel prints the address as 32-bit numbers in the byte order of the machine.
    if len(words) == 4:
        return Listener(inode.decode(), socket.inet_ntop(socket.AF_INET, words[::-1]), int(port, 16))
    swapped = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    return Listener(inode.decode(), socket.inet_ntop(socket.AF_INET6, swapped), int(port, 16))


def unix_sockets() -> dict[str, str]:
    """Return inode to path of the unix sockets that have one; abstract ones are left out.

    Raises:
        OSError: They cannot be seen.
    """
    found = {}
    with open("/proc/net/unix", "rb") as file:  # noqa: PTH123
        for line in file:
            fields = line.rstrip(b"\n").split(None, 7)
            if len(fields) == 8 and not fields[7].startswith(b"@") and fields[6].isdigit():
                found[fields[6].decode()] = os.fsdecode(fields[7])
    return found


def socket_inodes(pid: int) -> set[str]:
    """Return the inodes of the sockets that a process has open; none if it cannot be seen."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115
                if link.startswith("socket:["):
                    found.add(link[8:-1])
    return found
