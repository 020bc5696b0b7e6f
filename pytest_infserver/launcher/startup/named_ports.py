"""The further ports of a server, which its configuration names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_infserver.errors import PortInUseError
from pytest_infserver.launcher.startup.ports import Reservation, reserve_port


def named_ports(configured: Mapping[str, int | None], chosen: Mapping[str, int], port: int) -> dict[str, int]:
    """Return the further ports by name.

    Args:
        configured: What the configuration says; None leaves the choice to us.
        chosen: Those that have been chosen for this launch.
        port: The server's port: those that are not chosen yet are shown as the ones behind it.
    """
    names = list(configured)
    return {
        name: fixed or chosen.get(name) or (port + 1 + names.index(name)) % 65536 for name, fixed in configured.items()
    }


def with_named(
    reservation: Reservation, host: str, configured: Mapping[str, int | None], avoid: Iterable[int]
) -> Reservation:
    """Reserve the further ports of a server that is about to start, too.

    Args:
        reservation: Its own port; it is released if this goes wrong.
        host: The address that it will listen on.
        configured: What the configuration says.
        avoid: Ports not to choose.

    Raises:
        PortInUseError: A named one is taken; the message says who holds it.
        ServerStartupError: No port can be promised to anybody.
    """
    held = reservation
    fixed = [port for port in configured.values() if port is not None]
    for name, port in configured.items():
        shunned = [*avoid, *fixed, held.port, *held.named.values()]
        try:
            one = reserve_port(host, port, avoid=shunned)
        except PortInUseError as error:
            held.release()
            raise PortInUseError(f"'ports.{name}': {error}") from None
        except BaseException:
            held.release()
            raise
        held = Reservation(held.port, (*held.lock_fds, *one.lock_fds), {**held.named, name: one.port})
    return held
