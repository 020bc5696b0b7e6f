"""How much memory processes use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_infserver.system.processes.memory import resident_memory

SIZE = 64 * 1024 * 1024
HOLD = f"import sys; block = b'x' * {SIZE}; print('there', flush=True); sys.stdin.read()"


@pytest.mark.usefixtures("hard_limit", "nothing_left")
def test_the_memory_of_processes_is_summed_up() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        one = resident_memory([processes[0].pid])
        both = resident_memory([process.pid for process in processes])
    finally:
        for process in processes:
            process.communicate(timeout=20)
    assert SIZE < one < 2 * SIZE
    assert both > one + SIZE


@pytest.mark.usefixtures("nothing_left")
def test_a_process_that_is_gone_uses_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(20)
    assert resident_memory([process.pid]) == 0
    assert resident_memory([]) == 0
