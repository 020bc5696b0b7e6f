"""py-spy: samples the Python stacks of a running server and of its subprocesses. Facts from py-spy 0.4.3."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_infserver.launcher.profiling.patience import wait_patiently
from pytest_infserver.launcher.profiling.profiler import NothingSeenError, Place, Profiler, Waiting
from pytest_infserver.launcher.profiling.tool_arguments import grouped, name_of, value_of
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.disk.files import open_append, read_start, remove_file
from pytest_infserver.system.environment import environment
from pytest_infserver.system.processes.ptrace import may_trace
from pytest_infserver.system.processes.table import descendants, read_file, read_process, send_signal

_SUFFIXES = {"flamegraph": ".svg", "speedscope": ".speedscope.json", "chrometrace": ".trace.json", "raw": ".txt"}
_MAX_GRAPH = 64 << 20
_MAX_NOTES = 1 << 20
"""Bytes that are read of what py-spy writes."""
_BEGIN_LIMIT = 30.0
_SHORTEST = 0.1
_STEP = 0.02
_KILL_LIMIT = 5.0
_LOOK = 1.0
_FROZEN = 5.0
"""Seconds; to take a sample stops a process for some thousandths of one."""
_OURS = {"-o", "--output", "-p", "--pid", "-d", "--duration"}


class PySpy(Profiler):
    """py-spy, attached to the engine's process."""

    name = "py-spy"

    @property
    def suffix(self) -> str:
        """How the name of the file ends, by its format."""
        return _SUFFIXES.get(self._format, ".txt")

    @cached_property
    def binary(self) -> str:
        """The py-spy command."""
        return self.find_binary(
            "py-spy",
            hint="Install it with 'pip install pytest-infserver[profile]'.",
            beside=[str(Path(sys.executable).parent)],
        )

    def check(self) -> None:
        """Make sure that py-spy is there and may look into other processes."""
        super().check()
        known = self.known_options(self.binary, "record")
        for option in map(name_of, grouped(self.settings.args)):
            if option in _OURS:
                raise self.error(f"{option} is set by pytest-infserver; leave it out of 'args:'")
            if option not in known:
                raise self.error(f"'py-spy record' has no option {option}: see '{self.binary} record --help'")
        if self._format not in _SUFFIXES:
            raise self.error(f"its formats are {', '.join(_SUFFIXES)}, not '{self._format}'")
        problem = may_trace(self.binary)
        if problem is not None:
            raise self.error(problem)

    def begin(self, target: Path, place: Place | None, waiting: Waiting, *, whole_life: bool) -> Mapping[str, Any]:
        """Attach, and return when it samples."""
        pid = self.server.pid
        if pid is None:
            raise self.error("the server does not run")
        _reap()
        notes = _notes(target)
        command = [self.binary, "record", "--subprocesses", *self._args, "-o", str(target), "-p", str(pid)]
        # Without the stack of py-spy itself below its errors.
        env = {**environment(), "RUST_BACKTRACE": "0", "RUST_LIB_BACKTRACE": "0"}
        process = None
        try:
            with open(open_append(notes, empty=True), "wb") as output, _signals_unblocked():  # noqa: PTH123
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=env,
                    # Ctrl-C is for pytest, which then stops it.
                    start_new_session=True,
                )
            deadline = time.monotonic() + min(_BEGIN_LIMIT, waiting.limit)
            while b"Sampling process" not in _read(notes):
                if process.poll() is not None:
                    raise self.error("py-spy has ended", _read(notes))
                if time.monotonic() > deadline:
                    raise self.error(f"py-spy does not sample after {_BEGIN_LIMIT:g} s", _read(notes))
                time.sleep(_STEP)
        except BaseException:
            if process is not None:
                process.kill()
                process.wait()
            remove_file(notes)
            raise
        _children[process.pid] = process
        found = read_process(process.pid)
        start = "" if found is None else found.start
        threading.Thread(target=_let_die, args=(pid, process.pid, start), daemon=True).start()
        return {"pid": process.pid, "start": start, "began": time.monotonic()}

    def end(self, target: Path, place: Place | None, running: Mapping[str, Any], waiting: Waiting) -> bytes:
        """Interrupt it, which has it write the file; SIGTERM would not."""
        notes = _notes(target)
        process = read_process(running["pid"])
        if process is not None and process.start == running["start"]:
            # However short the test, a few samples of it: py-spy takes 100 a second.
            time.sleep(min(_SHORTEST, max(0.0, running["began"] + _SHORTEST - time.monotonic())))
            send_signal(process, signal.SIGINT)

        def has_ended(seconds: float) -> bool:
            running_still = _is_running(running["pid"], running["start"])
            if running_still:
                time.sleep(min(seconds, _STEP))
            return not running_still

        # When the server ends it writes its file, too.
        problem = wait_patiently(has_ended, waiting.to_the_end())
        if problem is not None:
            _kill(running["pid"], running["start"])
            raise self.error(f"py-spy has not written its file: {problem}", _take(notes))
        output = _take(notes)
        samples = re.search(rb"Samples: (\d+)", output)
        if b"No stack counts found" in output or (samples is not None and samples[1] == b"0"):
            raise self.error(
                "py-spy saw no Python code run; a server that waits or works outside of Python shows with"
                " 'args: [--idle]' or 'args: [--native]' under 'profile:'",
                output,
                NothingSeenError,
            )
        if b"Wrote " not in output:
            raise self.error("py-spy has ended without its file", output)
        return output

    def advice(self, target: Path) -> str | None:
        """Return that native code is not in the trace, where all of it is one stack."""
        is_native = asked(self.server).works_in_native_code
        if not is_native or "--native" in self._args or not _is_one_stack(target):
            return None
        return (
            f"py-spy has seen one stack only ({target.name}): the work is done outside of Python, which"
            " 'args: [--native]' under 'profile:' shows"
        )

    @property
    def _args(self) -> Sequence[str]:
        args = self.settings.args
        return [*(word for word in asked(self.server).py_spy_args if word not in args), *args]

    @property
    def _format(self) -> str:
        return value_of(self.settings.args, "-f", "--format") or "flamegraph"


def _is_one_stack(file: Path) -> bool:
    """Return whether all samples of a flame graph are the same stack; of another format, False."""
    try:
        frames = re.findall(
            r"<title>[^<]* samples, ([0-9.]+)%\)", read_start(file, _MAX_GRAPH).decode("utf-8", "replace")
        )
    except OSError:
        return False
    return bool(frames) and all(float(share) == 100 for share in frames)


_children: dict[int, subprocess.Popen[bytes]] = {}
"""Those that this process has started, and has to reap."""


def _notes(target: Path) -> Path:
    """Return the file for what it says."""
    return target.with_name(f".{target.name}.log")


@contextlib.contextmanager
def _signals_unblocked() -> Iterator[None]:
    """Let a child hear the signal that ends it, also where this thread does not, as in a worker of Ray."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_die(engine: int, py_spy: int, start: str) -> None:
    """Interrupt a py-spy that keeps a process of the engine from ending; it then writes what it has seen.

    A process that is killed while py-spy 0.4.3 looks into it stays stopped at its exit (ptrace(2)): py-spy neither
    lets it go nor takes it for dead.
    """
    since: dict[bytes, float] = {}
    while (process := read_process(py_spy)) is not None and process.start == start and not process.zombie:
        now = time.monotonic()
        stopped = [_stopped_at(pid) for pid in (engine, *(one.pid for one in descendants(engine)))]
        since = {state: since.get(state, now) for state in stopped if state is not None}
        if any(now - begin > _FROZEN for begin in since.values()):
            send_signal(process, signal.SIGINT)
            return
        time.sleep(_LOOK)


def _stopped_at(pid: int) -> bytes | None:
    """Return what is the same for as long as a tracer keeps a process stopped without a break, or None if it runs."""
    status = read_file(f"/proc/{pid}/status", 1 << 16)
    switches = re.search(rb"\nvoluntary_ctxt_switches:.*\n.*", status)
    return b"%d" % pid + switches[0] if b"\nState:\tt" in status and switches is not None else None


def _is_running(pid: int, start: str) -> bool:
    child = _children.get(pid)
    if child is not None:
        if child.poll() is None:
            return True
        del _children[pid]
        return False
    process = read_process(pid)
    return process is not None and process.start == start and not process.zombie


def _kill(pid: int, start: str) -> None:
    process = read_process(pid)
    if process is not None and process.start == start:
        send_signal(process, signal.SIGKILL)
    child = _children.pop(pid, None)
    if child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_KILL_LIMIT)


def _reap() -> None:
    """Reap those that another process has ended."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


def _read(path: Path) -> bytes:
    try:
        return read_start(path, _MAX_NOTES)
    except OSError:
        return b""


def _take(path: Path) -> bytes:
    data = _read(path)
    with contextlib.suppress(OSError):
        remove_file(path)
    return data
