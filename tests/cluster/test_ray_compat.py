"""Ray's own inside that is used: what is missing in a new version of Ray is named here, without a cluster."""

from __future__ import annotations

import inspect
import threading

import pytest

ray = pytest.importorskip("ray")


def test_what_is_used_of_rays_own_inside_is_there() -> None:
    from ray._private import state, worker

    assert callable(state.available_resources_per_node)
    assert callable(state.actors)
    assert isinstance(worker.global_worker.threads_stopped, threading.Event)
    source = inspect.getsource(ray.init)
    assert '"_node_ip_address"' in source
    assert '"_temp_dir"' in source
