"""Runs ``vllm`` in a placement group of Ray that somebody else has made: ``python vllm_in_group.py serve MODEL ...``.

Run by the interpreter of vLLM's environment, in which this package is not installed. INFSERVER_PLACEMENT_GROUP has
the group's id, RAY_ADDRESS the cluster; vLLM connects to it by itself. Facts from vLLM 0.32: its Ray executor uses
``parallel_config.placement_group``, for which there is no option.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any


def hand_over(group: str) -> None:
    """Have every configuration that vLLM makes in this process name a placement group.

    Args:
        group: Its id in hexadecimal.
    """
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup
    from vllm.engine.arg_utils import EngineArgs

    create = EngineArgs.create_engine_config

    @functools.wraps(create)
    def create_engine_config(*args: Any, **kwargs: Any) -> Any:
        config = create(*args, **kwargs)
        # Only an id so far: the engine's process, to which it is pickled, asks Ray for the rest.
        config.parallel_config.placement_group = PlacementGroup(PlacementGroupID(bytes.fromhex(group)))
        return config

    EngineArgs.create_engine_config = create_engine_config


def main() -> None:
    """Run vLLM's command."""
    hand_over(os.environ["INFSERVER_PLACEMENT_GROUP"])
    from vllm.entrypoints.cli.main import main as run

    # Ray has its workers search that folder, too.
    sys.argv[0] = str(Path(sys.executable).with_name("vllm"))
    sys.exit(run())


# vLLM spawns its engine's process, which imports this file once more under another name.
if __name__ == "__main__":
    # Not this file's folder: its neighbours are called like the packages that vLLM imports.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    main()
