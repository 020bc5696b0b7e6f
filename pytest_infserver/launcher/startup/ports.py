"""Ports: which one a server gets, and who holds one that is taken."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_infserver.errors import PortInUseError, ServerStartupError
from pytest_infserver.system.disk.locks import named_holder, sign, take_lock, take_shared_lock
from pytest_infserver.system.disk.places import require_state_dir, shared_lock_file
from pytest_infserver.system.proc_net import listeners, socket_inodes

DEFAULT_PORT = 8000
FIRST_EPHEMERAL = 32768
"""From here on Linux gives ports out by itself, to outgoing connections among others."""
_SEARCH = range(DEFAULT_PORT, DEFAULT_PORT + 1000)
_LAST = 65535
_TIME_WAIT = 75.0
"""Seconds after which the system has forgotten a connection: 60 on Linux, 30 to 60 elsewhere, and some to spare."""


@dataclass(frozen=True)
class Reservation:
    """Ports promised to one server; other servers of this package on the machine keep off them.

    Attributes:
        port: The port that it will listen on.
        lock_fds: Descriptors that hold the promise.
        named: Further ports by name.
    """

    port: int
    lock_fds: tuple[int, ...]
    named: Mapping[str, int] = field(default_factory=dict)

    def release(self) -> None:
        """Close our descriptors; the promise lasts while a supervisor holds duplicates."""
        for lock in self.lock_fds:
            with contextlib.suppress(OSError):
                os.close(lock)


def reserve_port(
    host: str,
    port: int | None,
    avoid: Iterable[int] = (),
    further: Callable[[int], Sequence[int]] = lambda port: (),
    search: Sequence[int] | None = None,
    at_random: bool = False,
) -> Reservation:
    """Reserve a port for a server that is about to start.

    Args:
        host: The address that it will listen on.
        port: The port that the user named; if None 8000, or another free one.
        avoid: Ports not to choose.
        further: Gives the ports that the engine derives from its own; they are reserved with it.
        search: Where a free one is looked for, if not from 8000 to 8999: the first of them, then any.
        at_random: Whether the first of them is as good as any, too.

    Raises:
        PortInUseError: The named port, or one that goes with it, is taken; the message says who holds it.
        ServerStartupError: Nothing can listen on that address, or no port can be promised to anybody.
    """
    if port is not None:
        return _reserve_named(host, port, further(port))
    shunned = set(avoid)
    search = _first_then_any(search or _SEARCH, at_random=at_random)
    # The first is what people expect where it is not drawn, and a start that fails is tried on another one.
    first = [] if at_random else [(number, False) for number in search[:1]]
    rested, resting = ([(number, is_rested) for number in search] for is_rested in (True, False))
    # The last resort is a port that the system chooses.
    for number, is_rested in (*first, *rested, *resting, (0, True)):
        if number in shunned:
            continue
        candidate = number or _ephemeral(hosts_of(host)[0])
        locks = _lock_all(host, candidate, further(candidate), rested=is_rested)
        if locks is not None:
            return Reservation(candidate, locks)
    raise PortInUseError(f"no free port from {min(search)} to {max(search)} on {host}")


def _first_then_any(numbers: Sequence[int], *, at_random: bool) -> Sequence[int]:
    """Return the first number, unless that is to be any, too, then the others from a random one on.

    Runs that cannot see each other's promises, as in containers with a /tmp of their own, rarely meet.
    """
    first, others = ([], list(numbers)) if at_random else (list(numbers[:1]), list(numbers[1:]))
    # Not the module random: two runs that seed it alike would meet.
    start = int.from_bytes(os.urandom(4), "big") % max(1, len(others))
    return [*first, *others[start:], *others[:start]]


def is_still_free(host: str, reservation: Reservation, further: Sequence[int]) -> bool:
    """Return whether a server could listen now on the ports that have been promised to it."""
    port = reservation.port
    return all(_are_free(_hosts(host, number != port), number) for number in (port, *further))


def _reserve_named(host: str, port: int, further: Sequence[int]) -> Reservation:
    with _all_or_none() as locks:
        for number in (port, *further):
            needed = f"port {port}" if number == port else f"port {number}, which the engine uses beside {port},"
            if number > _LAST:
                raise PortInUseError(f"{needed} does not exist: choose a 'port' far enough below {_LAST}")
            lock = _lock_when_free(_hosts(host, number != port), number)
            if lock is None:
                raise PortInUseError(
                    f"{needed} is taken by {describe_holder(number)}. Stop that process, or choose another port, or"
                    " leave 'port' out to get a free one."
                )
            locks.append(lock)
        return Reservation(port, tuple(locks))


def _lock_all(host: str, port: int, further: Sequence[int], *, rested: bool) -> tuple[int, ...] | None:
    """Lock all of these ports, or none of them."""
    with contextlib.suppress(_Taken), _all_or_none() as locks:
        for number in (port, *further):
            if number > _LAST:
                raise _Taken
            # First: to probe a port that is promised to another server may be in the way of that one's own bind.
            lock = _lock(number)
            if lock is None:
                raise _Taken
            locks.append(lock)
            if not _are_free(_hosts(host, number != port), number, rested=rested):
                raise _Taken
        return tuple(locks)
    return None


class _Taken(Exception):
    """One of the ports is taken."""


@contextlib.contextmanager
def _all_or_none() -> Iterator[list[int]]:
    """Collect locks, and let go of them if something goes wrong."""
    locks: list[int] = []
    try:
        yield locks
    except BaseException:
        Reservation(0, tuple(locks)).release()
        raise


def hosts_of(host: str) -> tuple[str, ...]:
    """Return the single addresses of a `host`: some engines, as llama-server, take several, separated by commas."""
    return tuple(one.strip() for one in host.split(",") if one.strip()) or (host,)


def _hosts(host: str, derived: bool) -> set[str]:
    # What an engine derives from its port it binds on the loopback address, too.
    return {*hosts_of(host), "127.0.0.1"} if derived else set(hosts_of(host))


def _are_free(hosts: Iterable[str], port: int, *, rested: bool = False) -> bool:
    return all(is_free(host, port, rested=rested) for host in hosts)


def await_rest(host: str, ports: Iterable[int], heard: Callable[[int], object]) -> bool:
    """Wait until the last connections of a server before it are out of the way of one without SO_REUSEADDR.

    Args:
        host: The address that it listens on.
        ports: Its ports.
        heard: Called with what it is waited for, now and then while that lasts.

    Returns:
        Whether there was something to wait for, and it is over.
    """
    hosts, waited = hosts_of(host), False
    deadline = time.monotonic() + _TIME_WAIT
    while resting := [port for port in ports if not _are_free(hosts, port, rested=True)]:
        if time.monotonic() > deadline or not all(_are_free(hosts, port) or _is_resting(port) for port in resting):
            return False
        heard(resting[0])
        waited = True
        time.sleep(0.2)
    return waited


def _is_resting(port: int) -> bool:
    """Return whether nothing has a port but connections in TIME_WAIT; no where that cannot be seen.

    With those of a server without SO_REUSEADDR Linux gives the port to nobody.
    """
    import psutil

    try:
        states = {one.status for one in psutil.net_connections("tcp") if one.laddr[1:2] == (port,)}
    except (psutil.Error, OSError):
        return False
    return states == {psutil.CONN_TIME_WAIT}


def is_free(host: str, port: int, *, rested: bool = False) -> bool:
    """Return whether a server could listen on this port now.

    Args:
        host: The address.
        port: The port.
        rested: Whether connections in TIME_WAIT count, which are in the way of a server without SO_REUSEADDR only.

    Raises:
        ServerStartupError: It never could.
    """
    try:
        with _probe(host) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(not rested))
            probe.bind((host, port))
            probe.listen(1)
    except PermissionError as error:
        raise ServerStartupError(f"port {port} cannot be used by this user: {error.strerror}") from None
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            return False
        reason = getattr(error, "strerror", None) or error
        raise ServerStartupError(
            f"nothing can listen on '{host}': {reason}. Set 'host' to an address of this machine."
        ) from None
    return True


def is_listener(port: int, root: int | None, supervisor: int | None) -> bool | None:
    """Return whether a server's own processes listen on ``port``; None if that cannot be seen.

    Args:
        port: The port.
        root: Its root process.
        supervisor: The process above all of its processes.
    """
    # The root is the listener of nearly every engine: look there first, the quick way.
    if root is not None and _holds_listener(root, port):
        return True
    import psutil

    if supervisor is None:
        return None
    try:
        tree = psutil.Process(supervisor).children(recursive=True)
    except psutil.NoSuchProcess:
        # It ends after all that is below it: what answers on the port is another server.
        return False
    except psutil.Error:
        return None
    found = listener_pids(port, [child.pid for child in tree])
    return None if found is None else bool(found)


def _holds_listener(pid: int, port: int) -> bool:
    """Return whether a process listens on ``port``, on Linux; a no may also mean that it cannot be seen."""
    held = socket_inodes(pid)
    with contextlib.suppress(OSError):
        return bool(held) and any(listener.port == port and listener.inode in held for listener in listeners(pid))
    return False


def names_port(text: str, port: int) -> bool:
    """Return whether a text, such as a word of a command, names a port: 8000 is in ``tcp://a:8000``, not in 18000."""
    return re.search(rf"(?<![\w.]){port}(?!\w|\.\d)", text) is not None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server on ``host``."""
    return all(one in ("localhost", "::1") or one.startswith("127.") for one in hosts_of(host))


def listener_pids(port: int, pids: Iterable[int]) -> set[int] | None:
    """Return which of the processes ``pids`` listen on ``port``; None if that cannot be seen."""
    import psutil

    found, hidden = set(), False
    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections("tcp")
        except psutil.NoSuchProcess:
            continue
        except (psutil.Error, OSError):
            hidden = True
            continue
        if any(entry.status == psutil.CONN_LISTEN and entry.laddr[1:2] == (port,) for entry in connections):
            found.add(pid)
    return None if hidden and not found else found


def listening_places(supervisor: int | None) -> set[tuple[str, int]]:
    """Return the addresses and ports on which processes below a supervisor listen, as far as that can be seen."""
    import psutil

    found: set[tuple[str, int]] = set()
    with contextlib.suppress(psutil.Error, OSError):
        for process in psutil.Process(supervisor).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                connections = process.net_connections("tcp")
                found |= {
                    (entry.laddr[0], entry.laddr[1]) for entry in connections if entry.status == psutil.CONN_LISTEN
                }
    return found


def addresses_of(host: str) -> set[str]:
    """Return the addresses that a host name stands for: of an address that, of a name that nobody knows the name."""
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return {host}


def describe_holder(port: int) -> str:
    """Say in words which process listens on ``port``, as far as this user may know."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for entry in psutil.net_connections("tcp"):
            if entry.status == psutil.CONN_LISTEN and entry.laddr[1:2] == (port,) and entry.pid:
                process = psutil.Process(entry.pid)
                command = " ".join(process.cmdline())[:120] or process.name()
                return f"pid {entry.pid} ({command})"
    if not _lock_is_held(port):
        return "another process"
    starter = next(filter(None, map(named_holder, _lock_files(port))), None)
    by = f", started by pid {starter}" if starter else ""
    return f"another server of pytest-infserver that starts or stops{by}"


_PATIENCE = 5.0
"""Seconds that a server of ours which holds a port and does not listen, as at its stop, is waited for."""


def _lock_when_free(hosts: Iterable[str], port: int) -> int | None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        lock = _lock(port)
        free = False
        try:
            free = _are_free(hosts, port)
        finally:
            if not free and lock is not None:
                os.close(lock)
        if not free:
            return None
        if lock is not None or time.monotonic() > deadline:
            return lock
        time.sleep(0.05)


def _own_file(port: int) -> Path:
    return require_state_dir() / f"port-{port}.lock"


def _lock_files(port: int) -> Iterator[Path]:
    for find in (functools.partial(shared_lock_file, f"port-{port}.lock"), functools.partial(_own_file, port)):
        with contextlib.suppress(OSError):
            yield find()


def _lock(port: int) -> int | None:
    """Return a lock that promises a port, None if somebody else has it.

    It is where all runs of the machine meet, whatever TMPDIR says. Where that cannot be used, as when somebody has put
    something else in its place, this user's runs are kept apart at least.
    """
    try:
        try:
            lock = take_shared_lock(shared_lock_file(f"port-{port}.lock"))
        except OSError:
            lock = take_lock(_own_file(port))
    except OSError as error:
        raise ServerStartupError(f"port {port} cannot be reserved: {error}") from None
    if lock is not None:
        sign(lock)
    return lock


def _lock_is_held(port: int) -> bool:
    return any(_is_held(file) for file in _lock_files(port))


def _is_held(file: Path) -> bool:
    try:
        lock = take_lock(file) if file.exists() else None
    except OSError:
        return False
    if lock is not None:
        os.close(lock)
    return lock is None and file.exists()


def _probe(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)


def _ephemeral(host: str) -> int:
    with _probe(host) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
