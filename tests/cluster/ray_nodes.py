"""A Ray cluster of several nodes on this machine, each with an address of its own.

As a script it keeps the cluster and obeys lines of JSON on its standard input; `RayNodes` is the other end. Ray takes
127.0.0.1 for the machine's outer address, so the nodes have 127.0.0.2 and so on.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
START_LIMIT = 120.0
_OURS = ("ray::NodeServer", "fake_engine.py", "llamacpp_server", "infserver.launcher.supervision.supervisor")


class RayNodes:
    """The cluster.

    Attributes:
        address: Of its head.
        tmp: The temporary directory of its nodes.
    """

    def __init__(
        self, folder: Path, nodes: dict[str, dict[str, Any]], *, python: str = sys.executable, **variables: str
    ) -> None:
        """Start it.

        Args:
            folder: For its own output.
            nodes: Name to what ``Cluster.add_node`` takes; the first one is the head.
            python: The interpreter of its nodes.
            **variables: Further environment variables of all of its processes.
        """
        # Short, as paths of sockets must be.
        self.tmp = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))
        python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": python_path, "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": str(self.tmp)}
        with (folder / "ray.log").open("w") as log:
            self._keeper = subprocess.Popen(
                [python, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, **own, **variables},
            )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            for name, settings in nodes.items():
                self.add(name, **settings)
            self.address: str = self._ask(do="address")
        except BaseException:
            self.close()
            raise

    def add(self, name: str, **settings: Any) -> None:
        """Add a node."""
        self._ask(do="add", name=name, settings=settings)

    def remove(self, name: str) -> None:
        """Kill a node, all of it at once."""
        self._ask(do="remove", name=name)

    def processes(self) -> list[psutil.Process]:
        """Return all processes of all nodes, and below them."""
        return psutil.Process(self._keeper.pid).children(recursive=True)

    def left(self) -> list[str]:
        """Return what is left of servers on its nodes: actors, engines, supervisors, and their files."""
        left = [str(path) for path in self.tmp.iterdir() if path.name.startswith(("infserver-", "infs-"))]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                on_node = process.environ().get("TMPDIR", "").startswith(str(self.tmp))
                if on_node and any(sign in command for sign in _OURS):
                    left.append(f"{process.pid} {command[:150]}")
        return left

    def head_server(self) -> psutil.Process:
        """Return the process without which there is no cluster."""
        return next(one for one in self.processes() if one.name() == "gcs_server")

    def close(self) -> None:
        """End it, and everything of it."""
        left = self.processes() if self._keeper.poll() is None else []
        with contextlib.suppress(OSError):
            assert self._keeper.stdin is not None
            self._keeper.stdin.close()
        try:
            self._keeper.wait(30)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.tmp, ignore_errors=True)

    def _ask(self, **question: Any) -> Any:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(question) + "\n")
        self._keeper.stdin.flush()
        answer = self._answers.get(timeout=START_LIMIT)
        assert answer, "the cluster has ended"
        return json.loads(answer)

    def _read(self) -> None:
        assert self._keeper.stdout is not None
        for line in self._keeper.stdout:
            # Ray writes there, too.
            if line.startswith("answer "):
                self._answers.put(line.removeprefix("answer "))
        self._answers.put("")


def keep() -> None:
    """Keep a cluster as long as standard input is open."""
    from ray.cluster_utils import Cluster

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cluster, nodes = Cluster(), {}
    for line in sys.stdin:
        question = json.loads(line)
        answer = None
        if question["do"] == "add":
            settings = {"object_store_memory": 100 << 20, "include_dashboard": False, **question["settings"]}
            nodes[question["name"]] = cluster.add_node(node_name=question["name"], **settings)
        elif question["do"] == "remove":
            cluster.remove_node(nodes.pop(question["name"]), allow_graceful=False)
        elif question["do"] == "address":
            answer = cluster.address
        print(f"answer {json.dumps(answer)}", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    keep()
