"""The part that one node has in a server that runs on several."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class SeveralNodes(enum.Enum):
    """How an engine runs on several nodes."""

    RANKS = "the same command on each node, which is told its rank and where all meet"
    RAY = "one command, which starts its workers by Ray in a placement group that it is given"


@dataclass(frozen=True)
class Share:
    """One node's part.

    Attributes:
        rank: Which one; clients reach rank 0.
        nodes: How many there are.
        meeting: HOST:PORT where the ranks meet; "" for an engine that starts its workers itself.
        ray_address: The cluster, for an engine that starts its workers there; else "".
        group: The placement group for these workers, in hexadecimal; else "".
    """

    rank: int
    nodes: int
    meeting: str = ""
    ray_address: str = ""
    group: str = ""

    def __str__(self) -> str:
        return f"node rank {self.rank} of {self.nodes}"
