"""Starts a server anew for a test that is repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError, LeakError, ProfileError
from pytest_infserver.pool.servers.stop_refusals import shared as refusal

if TYPE_CHECKING:
    from pytest_infserver.pool.lease import Lease


def started_anew(lease: Lease, warn: Callable[[str], object], *, shared: bool) -> Lease:
    """Stop and start the server of a lease that has it alone, and return the lease of what runs now.

    Args:
        lease: The lease.
        warn: Gets what the stop has found.
        shared: Whether the test must not stop it itself.
    """
    server = lease.server
    try:
        try:
            server.stop()
        except (LeakError, ProfileError) as problem:
            # It is stopped all the same.
            warn(str(problem))
        server.start()
    except InferenceServerError as error:
        return dataclasses.replace(lease, error=error)
    if shared:
        server.runtime.stop_refusal = refusal(server)
    return dataclasses.replace(lease, launch=server.launches, log_start=server.log_size, exclusive=not shared)
