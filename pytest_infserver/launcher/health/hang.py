"""What a server that hangs is doing, written into its log folder before it is killed."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pytest_infserver.system.disk.files import open_new
from pytest_infserver.system.environment import environment
from pytest_infserver.system.processes.bounded_run import run_bounded
from pytest_infserver.system.processes.ptrace import ADVICE
from pytest_infserver.system.processes.table import Process, command_line, descendants, read_file
from pytest_infserver.system.text import clean, clean_part

LIMIT = 20.0
"""Seconds that all of it may take."""
MAX_BYTES = 1024 * 1024
"""Size that the file may have."""
_STACKS_LIMIT = 14.0
"""Seconds after which no more stacks are read, so that the GPU tools get their time."""
_COMMAND_LIMIT = 3.0
_MAX_OUTPUT = 200 * 1024
_MAX_FILES = 1000
_MAX_PROCESSES = 100
_MAX_THREADS = 200

_NO_BACKTRACE = {"RUST_BACKTRACE": "0", "RUST_LIB_BACKTRACE": "0"}
"""Keeps py-spy from adding the stack of itself to each error."""
_GPU_TOOLS = (["nvidia-smi"], ["amd-smi", "monitor"], ["rocm-smi"])

_PTRACE_ADVICE = f"""\
py-spy may not look into the server: Linux allows that to a process's ancestors only (kernel.yama.ptrace_scope=1),
and py-spy is none of them. To get Python stacks next time, do one of these:
{ADVICE}"""


def write_hang_report(heading: str, supervisor: int | None, folder: Path, secrets: frozenset[str]) -> str:
    """Write the state of a server's processes to the next free ``hang-N.txt``; takes at most `LIMIT` seconds.

    Whatever goes wrong is a line in the file, or in what is returned; nothing is raised.

    Args:
        heading: First line of the file.
        supervisor: The process that the server's processes are below of.
        folder: Where the file goes.
        secrets: Values to hide.

    Returns:
        Where the file is, or why there is none, to follow why the server was killed.
    """
    report = _Report(folder, secrets)
    try:
        # In a thread: whoever looks at a process that hangs in the kernel may hang there too.
        thread = threading.Thread(target=_fill, args=(report, heading, supervisor), name="infserver-hang", daemon=True)
        thread.start()
        thread.join(LIMIT)
        if thread.is_alive():
            report.problem = report.problem or f"not done after {LIMIT:g} s"
    except Exception as error:
        report.problem = repr(error)
    report.close()
    if report.path is None:
        return clean(f"stacks could not be written: {report.problem or 'no reason is known'}", secrets)
    return clean(f"stacks: {report.path}" + (f" (not all: {report.problem})" if report.problem else ""), secrets)


class _Closed(Exception):
    """The time is up."""


class _Report:
    """The file, which takes text as long as there is room for it.

    Attributes:
        path: Where it is, once there is one.
        problem: Why it is not whole.
    """

    def __init__(self, folder: Path, secrets: frozenset[str]) -> None:
        self.path: Path | None = None
        self.problem: str | None = None
        self._folder = folder
        self._secrets = secrets
        self._file: IO[bytes] | None = None
        self._left = MAX_BYTES
        self._lock = threading.Lock()

    def open(self) -> None:
        """Make the file.

        Raises:
            OSError: That is not possible.
        """
        for number in range(1, _MAX_FILES):
            path = self._folder / f"hang-{number}.txt"
            with contextlib.suppress(FileExistsError):
                # Unbuffered: what is written counts even if the next step never returns.
                self._file = open(open_new(path), "wb", buffering=0)  # noqa: PTH123, SIM115
                self.path = path
                return
        raise OSError(f"{self._folder} has {_MAX_FILES - 1} of them already; remove some")

    def write(self, text: str | bytes) -> None:
        """Add text, cleaned; what does not fit is left out.

        Args:
            text: The text; bytes are the output of a program, of which an end may be missing.

        Raises:
            OSError: The disk is full, say.
            _Closed: The time is up.
        """
        shown = clean_part(b"", text, self._secrets) if isinstance(text, bytes) else clean(text, self._secrets)
        data = shown.encode("utf-8", "replace")
        with self._lock:
            if self._file is None:
                raise _Closed
            if len(data) > self._left:
                self.problem = f"more than {MAX_BYTES // 1024} KB"
            data = data[: self._left]
            self._left -= len(data)
            self._file.write(data)

    def close(self) -> None:
        """Take no more."""
        # Without the lock if a write hangs: a network disk that is gone must not keep the server alive.
        if self._lock.acquire(timeout=1):
            with contextlib.suppress(OSError):
                if self._file is not None:
                    self._file.close()
            self._file = None
            self._lock.release()


def _fill(report: _Report, heading: str, supervisor: int | None) -> None:
    begin = time.monotonic()
    try:
        report.open()
        report.write(f"{heading}\n{time.strftime('%Y-%m-%d %H:%M:%S %z')}\n")
        processes = [] if supervisor is None else descendants(supervisor)
        report.write(f"{len(processes)} processes, parents first\n")
        for process in processes[:_MAX_PROCESSES]:
            _attempt(report, f"state of pid {process.pid}", functools.partial(_write_state, report, process))
        _attempt(report, "stacks", functools.partial(_write_stacks, report, processes, begin + _STACKS_LIMIT))
        for command in _GPU_TOOLS:
            if shutil.which(command[0]) is not None:
                _write_output(report, command, begin + LIMIT - 1)
    except Exception as error:
        report.problem = report.problem or str(error) or repr(error)


def _attempt(report: _Report, what: str, step: Callable[[], object]) -> None:
    try:
        step()
    except _Closed:
        raise
    except Exception as error:
        report.write(f"{what}: {error!r}\n")


def _write_state(report: _Report, process: Process) -> None:
    status = dict(_status(read_file(f"/proc/{process.pid}/status", 8192)))
    facts = [f"parent {process.parent}"]
    facts += [f"{key} {status[key]}" for key in ("State", "Threads", "VmRSS") if key in status]
    lines = [f"\n=== pid {process.pid}: {', '.join(facts)}", f"  {command_line(process.pid) or 'no command line'}"]
    lines += _threads(process.pid)
    report.write("\n".join(lines) + "\n")


def _status(text: bytes) -> Iterator[tuple[str, str]]:
    for line in text.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(":")
        yield key, " ".join(value.split())


def _threads(pid: int) -> list[str]:
    try:
        threads = sorted(map(int, os.listdir(f"/proc/{pid}/task")))  # noqa: PTH208
    except (OSError, ValueError):
        return []
    shown = [line for one in threads[:_MAX_THREADS] for line in _thread(f"/proc/{pid}/task/{one}", one)]
    left_out = len(threads) - _MAX_THREADS
    return shown + ([f"  and {left_out} more threads"] if left_out > 0 else [])


def _thread(folder: str, thread: int) -> list[str]:
    head, _, tail = read_file(f"{folder}/stat", 2048).decode("utf-8", "replace").rpartition(")")
    state = tail.split()[:1]
    if not state:
        return []
    name = head.partition("(")[2]
    waits_in = read_file(f"{folder}/wchan", 200).decode("utf-8", "replace")
    line = f"  thread {thread} ({name}) {state[0]}" + (f" in {waits_in}" if waits_in not in ("", "0") else "")
    # Only root may read it, and only where a thread hangs in the kernel does it say more than the line above.
    stack = read_file(f"{folder}/stack", 8192).decode("utf-8", "replace") if state[0] == "D" else ""
    return [line, *(f"    {frame}" for frame in stack.splitlines())]


def _write_stacks(report: _Report, processes: list[Process], deadline: float) -> None:
    py_spy = _find_py_spy()
    if py_spy is None:
        report.write("\nNo Python stacks: py-spy is not installed (pip install 'pytest-infserver[profile]').\n")
        return
    for process in processes[:_MAX_PROCESSES]:
        # Without --nonblocking it stops the process first, which never ends for one that hangs in the kernel and fails
        # for one that is stopped already. --native needs that stop, and minutes for the symbols of a large engine.
        output = _write_output(report, [py_spy, "dump", "--nonblocking", "--pid", str(process.pid)], deadline)
        if b"permission denied" in output.lower() or b"operation not permitted" in output.lower():
            report.write(_PTRACE_ADVICE.format(py_spy=py_spy))
            return


def _find_py_spy() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def _write_output(report: _Report, command: list[str], deadline: float) -> bytes:
    """Write what a command says; return it."""
    report.write(f"\n=== {' '.join(command)}\n")
    left = deadline - time.monotonic()
    if left <= 0:
        report.write("left out: the time is up\n")
        return b""
    output = run_bounded(command, min(_COMMAND_LIMIT, left), _MAX_OUTPUT, {**environment(), **_NO_BACKTRACE})
    report.write(output.data.rstrip(b"\n"))
    report.write("\n")
    if output.problem is not None:
        report.write(f"[{output.problem}]\n")
    return output.data
