"""What is used of Ray's own inside, each with the versions it was tried with."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def free_per_node() -> dict[str, dict[str, float]]:
    """Return what is free on each node, by the node's id (Ray 2.60).

    That is what vLLM uses, too; in public there are only the sums.
    """
    from ray._private.state import available_resources_per_node

    return {node: dict(free) for node, free in available_resources_per_node().items()}


def places_of_actors() -> Mapping[str, tuple[str, int]]:
    """Return by the name of each actor its node's id and its process (Ray 2.60).

    Where they are is in this table only, which knows no namespaces.
    """
    from ray._private.state import actors

    return {one["Name"]: (one["Address"]["NodeID"], one["Pid"]) for one in actors().values()}


def stop_listening() -> None:
    """Have Ray's thread for messages to print end: without a head it would take a whole core (Ray 2.60)."""
    with contextlib.suppress(AttributeError, ImportError):
        from ray._private.worker import global_worker

        global_worker.threads_stopped.set()


def local_options(folder: Path) -> dict[str, Any]:
    """Return how a cluster is started that is for one run only, and that nobody else reaches (Ray 2.60)."""
    # Ray takes 127.0.0.1 for the machine's outer address; other systems than Linux have no further ones.
    address = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
    return {"include_dashboard": False, "_node_ip_address": address, "_temp_dir": str(folder)}
