"""What is known of a server that runs in another process, or on another machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_infserver.system.http.address import Address


@dataclass(frozen=True)
class ToldByOwner:
    """What the process that owns a server has told of it; nothing of a server of this process.

    Attributes:
        node: The node of a cluster that it runs on, by name and address; None without a cluster.
        host: Where that node is reached.
        remote: Whether that node is another machine than this one.
        reach: Where the server is reached, without its key; None if its flags have to be asked.
        secrets: What must not be shown of it; None if its command is not known yet.
        command: The command that it was launched with, as one would type it, without secrets.
        argv: The words of that command, with secrets; None if they are not known.
    """

    node: str | None = None
    host: str | None = None
    remote: bool = False
    reach: Address | None = None
    secrets: frozenset[str] | None = field(default=None, repr=False)
    command: str | None = None
    argv: tuple[str, ...] | None = field(default=None, repr=False)
