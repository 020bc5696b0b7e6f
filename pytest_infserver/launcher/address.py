"""Works out where a configured server is reached, from its keys and from its engine's own flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.launcher.engine.address_flags import AddressFlags, read_key, setting
from pytest_infserver.launcher.startup.ports import hosts_of
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.http.address import Address, parse_address

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.spec import ServerSpec

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def address_of(server: ServerSpec) -> Address:
    """Return where a server is reached from here, without its API key.

    What is configured by a key of its own counts; without it what the engine's flags say. The backend is not asked
    for its command: that may need the address.
    """
    settings = server.settings
    found = _attached(settings) if server.attached else _launched(server, asked(server).address_flags)
    tls = settings.tls
    if not tls:
        return found
    # A certificate that the user vouches for must be for the host, unless the user says otherwise.
    strict = True if "ca" in tls else found.check_hostname
    return dataclasses.replace(
        found,
        ca=tls.get("ca", found.ca),
        verify=tls.get("verify", True),
        check_hostname=tls.get("check_hostname", strict),
    )


def _words(server: ServerSpec) -> Sequence[str]:
    """Return the command, or as much of it as is configured."""
    if server.launched_command is not None:
        return server.launched_command.argv
    return [*server.fill(server.settings.launch_command or ()), *server.server_args()]


def _attached(settings: ServerConfig) -> Address:
    found = parse_address(settings.url or "")
    ports = {name: port for name, port in settings.ports.items() if port is not None}
    base_path = found.base_path or (settings.base_path or "")
    return dataclasses.replace(found, uds=_socket(settings.uds), base_path=base_path, ports=ports)


def _launched(server: ServerSpec, flags: AddressFlags) -> Address:
    settings, argv = server.settings, _words(server)
    # Not all of the environment: this is asked for with every lease.
    names = (*flags.certificate, *flags.uds, *flags.base_path)
    env = {**{name: os.environ.get(name) for name in names}, **asked(server).env_vars}
    first_host = hosts_of(server.host)[0]
    certificate = setting(flags.certificate, argv, env)
    uds, base_path = setting(flags.uds, argv, env), setting(flags.base_path, argv, env)
    socket = _socket(settings.uds) or (None if uds is None else _told_socket(settings, flags, uds[0]))
    base = settings.base_path or ("" if base_path is None else flags.seen_base_path(base_path[0]))
    # Not strict: the certificate is known, whatever name it is for.
    ca = None if certificate is None else _readable(_absolute(settings, certificate[0]))
    return Address(
        scheme="https" if certificate is not None or settings.tls else "http",
        host=_EVERYWHERE.get(first_host, first_host),
        port=server.port,
        uds=socket,
        base_path=f"/{base.strip('/')}" if base.strip("/") else "",
        ports=server.ports,
        ca=ca,
        check_hostname=ca is None,
    )


def configured_key(settings: ServerConfig, env_vars: Mapping[str, str | None]) -> tuple[str | None, str]:
    """Return the key that `api_key` or `api_key_env` says, and which of them; (None, "") without one."""
    if settings.api_key is not None:
        return settings.api_key, "api_key"
    name = settings.api_key_env
    value = None if name is None else env_vars.get(name) or os.environ.get(name)
    return (value, f"api_key_env: {name}") if value else (None, "")


def api_key_of(server: ServerSpec, argv: Sequence[str]) -> tuple[str | None, str]:
    """Return the key that requests to a server need, and where it was configured; (None, "") without one.

    Where a file of keys has none that can be read, the second is a sentence about that.

    Args:
        server: The server.
        argv: Its command, or its arguments.
    """
    settings = server.settings
    found: tuple[str | None, str] | None = configured_key(settings, server.env_vars)
    if found is not None and found[0] is not None:
        return found
    flags: AddressFlags = asked(server).address_flags
    variables = asked(server).api_key_variables
    found = setting((*flags.api_key, *variables), argv, server.env_vars)
    if found is not None:
        return found
    file = setting(flags.key_file, argv, server.env_vars)
    if file is not None:
        path = Path(_absolute(settings, file[0]))
        key = read_key(path, lambda path: path.read_text())
        return (None, f"{file[1]} names a file without one that can be read: {path}") if key is None else (key, file[1])
    return None, ""


def _absolute(settings: ServerConfig, path: str) -> str:
    """Return a path of the engine's as an absolute one: it is relative to where the engine is launched."""
    try:
        folder = settings.cwd or str(Path.cwd())
    except FileNotFoundError:
        folder = "/"
    return os.path.normpath(Path(folder) / path)


def _socket(uds: str | None) -> str | None:
    """Return a unix socket as the system names it; one that is written with a leading ``@`` is in no file system."""
    return f"\0{uds[1:]}" if uds is not None and uds.startswith("@") else uds


def _told_socket(settings: ServerConfig, flags: AddressFlags, uds: str) -> str | None:
    return _socket(uds) if flags.abstract_uds and uds.startswith("@") else _absolute(settings, uds)


def _readable(path: str) -> str | None:
    return path if os.access(path, os.R_OK) else None
