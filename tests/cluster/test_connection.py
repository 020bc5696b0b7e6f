"""The connection to a cluster where not even the process that is to hold it can be started: without Ray's own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from typing import Any

import pytest
from descriptors import open_descriptors

from pytest_infserver.cluster.connection import connection as module
from pytest_infserver.cluster.connection.connection import ClusterConnection
from pytest_infserver.cluster.connection.errors import Unreachable

pytestmark = pytest.mark.usefixtures("hard_limit", "nothing_left")


def test_a_process_that_cannot_be_started_is_an_error_and_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(module.subprocess, "Popen", fail)
    before = open_descriptors()
    with pytest.raises(Unreachable, match=r"--infserver-cluster auto: .* cannot be started: .*unavailable") as caught:
        ClusterConnection("auto")
    # While the error is still held: nobody waits for its frames to go.
    assert caught.tb is not None
    assert open_descriptors() == before


def test_a_thread_that_cannot_be_started_ends_the_process_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def sleep(_: Any, **options: Any) -> Any:
        started.append(real(["sleep", "600"], **options))
        return started[-1]

    def fail(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module.subprocess, "Popen", sleep)
    monkeypatch.setattr(threading.Thread, "start", fail)
    before = open_descriptors()
    with pytest.raises(RuntimeError, match="new thread") as caught:
        ClusterConnection("auto")
    assert caught.tb is not None
    assert open_descriptors() == before
    assert [child.returncode for child in started] == [-signal.SIGKILL]
