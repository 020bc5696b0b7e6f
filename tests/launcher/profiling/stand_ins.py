"""What tests of profilers share."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer, InferenceServer, SGLangServer, VLLMServer
from pytest_infserver.launcher.runtime.followed import follow

LIMIT = 30.0


class VllmLike(CommandServer):
    """Is asked for a profile as vLLM is."""

    torch_endpoints = VLLMServer.torch_endpoints
    cuda_endpoints = VLLMServer.cuda_endpoints


class SglangLike(CommandServer):
    """Is asked for a profile as SGLang is."""

    torch_endpoints = SGLangServer.torch_endpoints
    cuda_endpoints = SGLangServer.cuda_endpoints


class FakeNsys:
    """The stand-in for nsys: its faults, and what it was told."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._monkeypatch = monkeypatch

    def fail(self, *faults: str) -> None:
        """Have it do one of the words in `fake_nsys.FAULTS`."""
        self._monkeypatch.setenv("FAKE_NSYS", " ".join(faults))

    def events(self) -> list[str]:
        """Return what nsys and the engine were told, in order, since the last launch."""
        events = self._path.read_text().splitlines() if self._path.exists() else []
        # When somebody else takes the port meanwhile there is another one.
        launches = [at for at, event in enumerate(events) if event.startswith("launch ")]
        return events[launches[-1] :] if launches else events

    def verbs(self) -> list[str]:
        """Return the same without arguments, and without the request to end."""
        events = [event for event in self.events() if event != "SIGTERM"]
        return [event if event.startswith("POST") else event.split()[0] for event in events]


class Warned(list[str]):
    """Collects warnings."""

    def __call__(self, text: str) -> None:
        self.append(text)


def warnings(server: InferenceServer) -> list[str]:
    """Return what a server that `profiled` has made has warned of."""
    assert isinstance(server.on_warning, Warned)
    return list(server.on_warning)


def ask(server: InferenceServer, path: str) -> Any:
    with urllib.request.urlopen(f"{server.server_url}{path}", timeout=LIMIT) as answer:
        return json.load(answer)


def work(server: InferenceServer, seconds: float = 0.2) -> None:
    """Have the engine run Python code for so long, where others take the processor too, for a sampler to see."""
    ask(server, f"/work?seconds={seconds}")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def names(folder: Path) -> list[str]:
    """Return the files and folders below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextlib.contextmanager
def follower(server: InferenceServer, code: Callable[[InferenceServer, Any], None]) -> Iterator[Any]:
    """Run code in another process that uses the server, as a worker of xdist does; yield a pipe to it."""
    ours, theirs = multiprocessing.Pipe()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            follow(server, server.runtime.view(), None)  # type: ignore[arg-type]
            code(server, theirs)
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield Follower(child, ours)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


class Follower:
    """The other process."""

    def __init__(self, pid: int, pipe: Any) -> None:
        self.pid = pid
        self._pipe = pipe

    def hear(self) -> Any:
        """Return what it says next."""
        assert self._pipe.poll(LIMIT), "it says nothing"
        return self._pipe.recv()

    def say(self, what: object) -> None:
        self._pipe.send(what)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
