from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import os
from pytest_infserver.cluster.node.server_on_node import _forget_thread_limit
os.environ["OMP_NUM_THREADS"] = "1"
_forget_thread_limit()
print(os.environ.get("OMP_NUM_THREADS"))
"""
PARENT = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {CHILD!r}]).returncode)"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.skipif(sys.platform != "linux", reason="looks into the environment of its parent")
@pytest.mark.parametrize(("of_node", "left"), [(None, "None"), ("3", "1")])
@pytest.mark.usefixtures("nothing_left")
def test_a_limit_of_threads_is_forgotten_if_only_ray_has_set_it(of_node: str | None, left: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if of_node is not None:
        env["OMP_NUM_THREADS"] = of_node
    result = subprocess.run([sys.executable, "-c", PARENT], env=env, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, f"{left}\n"), result.stderr
