"""Machines on which these tests run servers: one with a GPU, a stand-in, and one on whose CPU torch computes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml

HERE = Path(__file__).parent
SERVER = HERE / "torch_server.py"
MIB = 1 << 20
RUN_LIMIT = 240.0
"""Seconds after which a run of pytest counts as hung."""
BACK = 60.0
"""Seconds in which memory comes back; as a rule it takes less than 2."""
HELPERS = """
import requests

def ask(server, path, **query):
    answer = requests.get(server.url_for(path), params=query, timeout=120)
    assert answer.ok, answer.text
    return answer.json()
"""
_WATCH = """
import json, sys
from pytest_infserver.system.gpus import read_gpus

for line in sys.stdin:
    print(json.dumps([[gpu.uuid, gpu.name, gpu.used, gpu.processes] for gpu in read_gpus()]), flush=True)
"""


@dataclass(frozen=True)
class Run:
    """A run of pytest that is over.

    Attributes:
        returncode: Its exit status.
        output: What it printed.
        folder: Its output directory.
    """

    returncode: int
    output: str
    folder: Path

    @property
    def record(self) -> Any:
        """The run's run.json."""
        return json.loads((self.folder / "run.json").read_text())

    def server(self, name: str) -> Any:
        """Return what run.json has of a server."""
        return next(one for one in self.record["servers"] if one["name"] == name)

    def cause(self, name: str) -> str:
        """Return why a server's last life ended."""
        return str(self.server(name)["lives"][-1]["cause"])


@dataclass(frozen=True)
class Machine:
    """How servers are started and what is seen of their memory.

    Attributes:
        kind: ``gpu``, ``stand-in``, ``hidden`` (one that names no processes) or ``cpu``.
        python: The interpreter that has torch.
        device: What torch calls the device.
        environment: Variables of all that runs here.
        server_variables: Further ones of the servers.
        results: Folder for what the runs write.
        stop_timeout: Seconds that a server gets for its end.
    """

    kind: str
    python: str
    results: Path
    device: str = "cuda"
    environment: Mapping[str, str] = field(default_factory=dict)
    server_variables: Mapping[str, str] = field(default_factory=dict)
    stop_timeout: float = 10

    def torch_server(self, *arguments: str, **settings: Any) -> dict[str, Any]:
        """Return a server's block in a servers.yaml; it needs a GPU unless told otherwise."""
        words = [self.python, str(SERVER), "--port", "{port}", "--device", self.device, *arguments]
        variables = {**self.server_variables, **settings.pop("env_vars", {})}
        gpus = {"gpus": 0 if self.kind == "cpu" else 1}
        return {"backend": "command", "launch_command": words, "env_vars": variables, **gpus, **settings}

    def popen(self, command: list[str], **settings: Any) -> subprocess.Popen[str]:
        """Start a program that sees the GPUs of this machine."""
        return subprocess.Popen(command, env={**os.environ, **self.environment}, text=True, **settings)

    def project(self, folder: Path, servers: Mapping[str, Any], **files: str) -> list[str]:
        """Write a project; return the command that runs its tests, with nothing of an earlier run in its output."""
        shutil.rmtree(self.output_of(folder), ignore_errors=True)
        for name, text in {"helpers": HELPERS, **files}.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text))
        defaults = {"startup_timeout": 180, "stop_timeout": self.stop_timeout}
        (folder / "servers.yaml").write_text(yaml.safe_dump({"defaults": defaults, "servers": dict(servers)}))
        (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
        plugins = ["-p", "pytest_infserver.plugin", "-p", "no:cacheprovider"]
        config = f"--infserver-config={folder / 'servers.yaml'}"
        return [sys.executable, "-m", "pytest", *plugins, config, f"--infserver-output-dir={self.output_of(folder)}"]

    def output_of(self, folder: Path) -> Path:
        """Return where the runs of a project write to."""
        return self.results / self.kind / folder.name

    def run(
        self,
        folder: Path,
        servers: Mapping[str, Any],
        *arguments: str,
        before: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        **files: str,
    ) -> Run:
        """Run pytest with the plugin in a folder.

        Args:
            folder: An empty folder.
            servers: The servers of its servers.yaml.
            arguments: Further arguments of pytest.
            before: Words before the command: a program that starts it.
            variables: Further environment variables.
            files: Python files by name.
        """
        words = ["env", *(f"{name}={value}" for name, value in (variables or {}).items()), *before]
        command = [*words, *self.project(folder, servers, **files), *arguments]
        done = self.popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = done.communicate(timeout=RUN_LIMIT)
        except BaseException:
            done.kill()
            done.wait()
            raise
        target = self.output_of(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / "output.txt").write_text(output)
        return Run(done.returncode, output, target)

    def note(self, what: str, value: object) -> None:
        """Add a figure to those that the tests leave."""
        self.results.mkdir(parents=True, exist_ok=True)
        with (self.results / "figures.txt").open("a") as file:
            file.write(f"{self.kind}: {what}: {value}\n")


class Watcher:
    """Tells what the driver says; a process of its own, for the library of the driver is loaded once."""

    def __init__(self, machine: Machine) -> None:
        """Start watching."""
        # It outlives the test that happens to be the first.
        command = ["env", "-u", "INFSERVER_TEST_TOKEN", sys.executable, "-c", _WATCH]
        self._process = machine.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def look(self) -> list[Any]:
        """Return UUID, name, memory in use and processes of each GPU."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return list(json.loads(self._process.stdout.readline()))

    def used(self) -> int:
        """Return the memory in use of all GPUs, in bytes."""
        return sum(used or 0 for _, _, used, _ in self.look())

    def wait(self, holds: Callable[[int], bool], limit: float = BACK) -> float:
        """Wait for a moment when the memory in use is such; return how long that took.

        Raises:
            AssertionError: It has not come.
        """
        begin = time.monotonic()
        while not holds(used := self.used()):
            assert time.monotonic() - begin < limit, f"{used // MIB} MiB are in use: {self.look()}"
            time.sleep(0.05)
        return time.monotonic() - begin

    def close(self) -> None:
        """Watch no more."""
        self._process.kill()
        self._process.communicate()


class Keeper:
    """A process that is no server of the run, and may hold what a server has made."""

    def __init__(self, machine: Machine) -> None:
        """Start it."""
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        words = [machine.python, str(SERVER), "--port", str(port), "--device", machine.device]
        variables = [f"{name}={value}" for name, value in machine.server_variables.items()]
        self._process = machine.popen(["env", *variables, *words], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while True:
            try:
                self.ask("/health")
                return
            except requests.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def ask(self, request: str) -> object:
        """Have it do something; return the answer."""
        answer = requests.get(self.url + request, timeout=120)
        assert answer.ok, answer.text
        return answer.json()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def gpu_problem() -> str | None:
    """Return why the tests of the tier cannot run here, or None if they can."""
    from importlib.util import find_spec

    from pytest_infserver.system.gpus import NoTelemetry, read_gpus

    try:
        gpus = read_gpus()
    except NoTelemetry as reason:
        return f"no GPU: {reason}"
    if not gpus:
        return "no GPU: the driver shows none"
    return next((f"{name} is not installed" for name in ("torch", "transformers") if find_spec(name) is None), None)


def transformers_command(python: str) -> str | None:
    """Return the command `transformers` of an environment, if it is there."""
    return shutil.which("transformers", path=str(Path(python).parent)) or shutil.which("transformers")
