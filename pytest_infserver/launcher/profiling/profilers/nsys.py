"""NVIDIA Nsight Systems: ``nsys launch`` around the server, ``nsys start`` and ``nsys stop`` for each profile.

Facts from nsys 2022.4.2 and 2023.4.4. Not ``nsys profile``: that makes one report, at the end of the server, whose loss
nobody would notice. ``nsys stop`` says whether the report was written; if the server dies, nsys writes it all the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_infserver.errors import ProfileError
from pytest_infserver.launcher.profiling.endpoints import ProfileEndpoints
from pytest_infserver.launcher.profiling.engine_requests import given_flag, post, start_settings
from pytest_infserver.launcher.profiling.patience import HUNG, wait_patiently
from pytest_infserver.launcher.profiling.profiler import ASK_LIMIT, Place, Profiler, Waiting, engine_command
from pytest_infserver.launcher.profiling.tool_arguments import grouped, name_of, value_of
from pytest_infserver.launcher.profiling.traces import held_open
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.environment import environment
from pytest_infserver.system.processes.bounded_run import Output
from pytest_infserver.system.processes.table import read_process

_SESSION_LIMIT = 30.0
"""Seconds until the launched session must be known to nsys."""
_GRACE = 1.0
"""Seconds for a report whose server has ended: nsys ends after it has written that."""
_STEP = 0.05
_UNSENT = b"The proxy is not started."
"""What a command of 2022.4.2 says when it was too slow, on a busy machine, to reach the session's agent."""
_TRIES = 5
_MAX_OUTPUT = 1024 * 1024
_PARANOID = "/proc/sys/kernel/perf_event_paranoid"
_OURS = {"--output", "-o", "--session", "--session-new", "--wait", "--force-overwrite", "-f", "--env-var", "-e"}
_NO_SAMPLING = {"none", "false"}


class Nsys(Profiler):
    """Nsight Systems."""

    name = "nsys"
    at_launch = True
    from_launch = True
    loads_itself = True
    has_engine_below = True
    # Its agent sometimes leaves them there when it ends (seen in 1 of 12 lives with 2022.4.2).
    leftovers = ("shm:NSys-*", "shm:quadd-*", "semaphore:sem.nsys_sem_*")
    suffix = ".nsys-rep"
    # 2022.4.2 ends so, with code 0, when its agent was too slow to answer on a busy machine.
    own_failures = (re.compile(rb"^Connection to the Agent lost"),)

    @cached_property
    def binary(self) -> str:
        """The nsys command."""
        return self.find_binary(
            "nsys", hint="Install Nsight Systems (it comes with the CUDA toolkit; Debian: nsight-systems)."
        )

    def check(self) -> None:
        """Make sure that nsys runs, knows its arguments, and may sample if it is told to."""
        super().check()
        self._known  # noqa: B018
        self._split()
        sample = value_of(self.settings.args, "--sample", "-s")
        if sample is not None and sample not in _NO_SAMPLING and not _may_sample():
            raise self.error(
                f"--sample={sample} is not permitted: kernel.perf_event_paranoid is {_paranoid()}; 'sudo sysctl"
                " kernel.perf_event_paranoid=2' permits it, and --sample=none does without"
            )

    def env_vars(self, place: Place) -> Mapping[str, str]:
        """Return nsys's own TMPDIR: /tmp/nvidia may belong to somebody else, and is left behind."""
        return {**asked(self.server).nsys_variables, "TMPDIR": place.scratch}

    def flags(self, place: Place) -> Sequence[str]:
        """Return the flags with which the engine can begin a capture range."""
        endpoints = self._range_endpoints
        if endpoints is None or given_flag(self, endpoints) is not None:
            return ()
        return start_settings(self, endpoints, str(place.scratch), {})[0]

    def wrap(self, argv: Sequence[str], place: Place) -> list[str]:
        """Return ``nsys launch`` with those of the user's arguments that it takes."""
        return [
            self.binary,
            "launch",
            f"--session-new={place.session}",
            # With "all" it waits for workers that nobody ends any more when the server was killed.
            "--wait=primary",
            f"--env-var=TMPDIR={place.tmpdir}",
            *self._split()[0],
            *engine_command(argv, place),
        ]

    def begin(self, target: Path, place: Place | None, waiting: Waiting, *, whole_life: bool) -> Mapping[str, Any]:
        """Call ``nsys start``."""
        assert place is not None
        words = ["start", f"--session={place.session}", f"--output={target.with_suffix('')}", "--force-overwrite=true"]
        words += self._split()[1]
        # Where nothing is said: it needs a permission, and 2022.4.2 hung with it at its second `nsys stop`.
        if value_of(words, "--sample", "-s") is None:
            words.append("--sample=none")
        if value_of(words, "--cpuctxsw") is None:
            words.append("--cpuctxsw=none")
        if value_of(words, "--capture-range", "-c") is not None and value_of(words, "--capture-range-end") is None:
            # Its default ends the server (nsys 2022.4.2).
            words.append("--capture-range-end=stop")
        deadline = time.monotonic() + _SESSION_LIMIT
        while True:
            self._await_session(place, deadline, waiting)
            output = self._run(words, place, waiting.at_most(ASK_LIMIT))
            if output.problem is None:
                break
            # A session is listed a moment before it can be asked for something.
            if b"NotFoundException" not in output.data or time.monotonic() > deadline:
                raise self.error(f"nsys start: {output.problem}", output.data)
            time.sleep(_STEP)
        endpoints = self._range_endpoints
        # In a server's whole life somebody else begins the range.
        if endpoints is None or whole_life:
            return {}
        try:
            post(self, endpoints.start, endpoints.body(place.scratch, {}), waiting)
        except BaseException:
            # It would wait for its range for ever, and refuse the next profile.
            self._stop(place, waiting.at_most(ASK_LIMIT))
            raise
        return {"stop": endpoints.stop}

    def end(self, target: Path, place: Place | None, running: Mapping[str, Any], waiting: Waiting) -> bytes:
        """Call ``nsys stop``, which returns when the report is there."""
        assert place is not None
        if waiting.pointless() is not None or self._engine_has_ended():
            # `nsys stop` would make it lose the report.
            self._await_last_report(target, waiting)
            return b""
        refused: ProfileError | None = None
        if "stop" in running:
            try:
                post(self, running["stop"], None, waiting)
            except ProfileError as error:
                # nsys has to be stopped all the same.
                refused = error
        output = self._stop(place, waiting)
        if waiting.pointless() is not None or (output.problem is not None and self._engine_has_ended()):
            self._await_last_report(target, waiting)
            return output.data
        if refused is not None:
            raise refused
        if output.problem is not None or not target.stat().st_size:
            self._explain(target, f"nsys stop: {output.problem or 'no report'}", output, waiting)
        return output.data

    # The inside.

    @property
    def _range_endpoints(self) -> ProfileEndpoints | None:
        """How the engine begins and ends the capture range; None if there is none, or it is not ours to begin."""
        wanted = value_of(self.settings.args, "--capture-range", "-c") == "cudaProfilerApi"
        return asked(self.server).cuda_endpoints if wanted else None

    def _engine_has_ended(self) -> bool:
        """Return whether the engine is gone, below an nsys that is not."""
        pid = self.server.pid
        process = None if pid is None else read_process(pid)
        return process is None or process.zombie

    def _stop(self, place: Place, waiting: Waiting) -> Output:
        return self._run(["stop", f"--session={place.session}"], place, waiting)

    def _explain(self, target: Path, problem: str, output: Output, waiting: Waiting) -> None:
        if value_of(self.settings.args, "--capture-range", "-c") is not None:
            ended = b"not applicable in this state" in output.data
            if ended:
                # The end of the range has ended the profile; the report is being written.
                self._await_report(target, waiting)
                if target.stat().st_size:
                    return
            if ended or output.problem is None:
                problem = "the capture range has not begun, so that there is no report"
        if HUNG in problem and not self._is_without_samples():
            # Seen with 2022.4.2 on a virtual machine without hardware counters.
            problem += "; some versions hang where they sample: leave out --sample and --cpuctxsw"
        if target.with_suffix(".qdstrm").exists():
            problem = (
                f"{target.with_suffix('.qdstrm')} could not be made a report: this nsys lacks its importer"
                " (QdstrmImporter, in the host part of the package)"
            )
        raise self.error(problem, output.data)

    def _is_without_samples(self) -> bool:
        values = (value_of(self.settings.args, "--sample", "-s"), value_of(self.settings.args, "--cpuctxsw"))
        return all(value is None or value in _NO_SAMPLING for value in values)

    def _await_report(self, target: Path, waiting: Waiting) -> None:
        def is_there(seconds: float) -> bool:
            there = bool(target.stat().st_size) and not held_open([target], self.server.process_tree())
            if not there:
                time.sleep(min(seconds, _STEP))
            return there

        # That the server has ended is why it is waited for.
        wait_patiently(is_there, waiting if waiting.pointless() is None else waiting.to_the_end())

    def _await_last_report(self, target: Path, waiting: Waiting) -> None:
        """Wait for the report that nsys writes by itself when the engine has ended; it ends after that."""
        if waiting.pointless() is None:
            self._await_report(target, waiting)
        self._await_report(target, waiting.at_most(_GRACE))

    def _await_session(self, place: Place, deadline: float, waiting: Waiting) -> None:
        # `nsys start` with the name of a session that is not there would make one, and leave its agent running.
        while True:
            output = self._run(["sessions", "list", "--show-header=false"], place, waiting.at_most(ASK_LIMIT))
            rows = [line.split() for line in output.data.decode("utf-8", "replace").splitlines()]
            if any(row[-1:] == [place.session] for row in rows):
                return
            problem = waiting.pointless()
            if problem is None and time.monotonic() > deadline:
                problem = f"nsys does not know the session after {_SESSION_LIMIT:g} s"
            if problem is not None:
                raise self.error(problem, output.data)
            time.sleep(_STEP)

    def _run(self, words: Sequence[str], place: Place, waiting: Waiting) -> Output:
        """Run an nsys command, again if nobody was asked."""
        for tries_left in reversed(range(_TRIES)):
            output = _run([self.binary, *words], {**environment(), "TMPDIR": place.scratch}, waiting)
            if not tries_left or output.problem is None or _UNSENT not in output.data:
                break
            time.sleep(_STEP)
        return output

    @cached_property
    def _known(self) -> tuple[frozenset[str], frozenset[str]]:
        """The options of ``nsys launch`` and of ``nsys start``, which differ from version to version."""
        return self.known_options(self.binary, "launch"), self.known_options(self.binary, "start")

    def _split(self) -> tuple[list[str], list[str]]:
        """Return the user's arguments for ``nsys launch`` and for ``nsys start``."""
        words: tuple[list[str], list[str]] = ([], [])
        for group in grouped(self.settings.args):
            option = name_of(group)
            if option in _OURS:
                raise self.error(f"{option} is set by pytest-infserver; the trace goes below 'output_dir'")
            if option == "--capture-range-end" and (value_of(group, option) or "").startswith("repeat"):
                raise self.error(f"{' '.join(group)}: each profile makes one report; leave it out")
            at = next((at for at, known in enumerate(self._known) if option in known), None)
            if at is None:
                raise self.error(
                    f"neither 'nsys launch' nor 'nsys start' has the option {option}: see '{self.binary} start --help'"
                )
            words[at].extend(_with_one_value(group))
        return words


def _run(argv: Sequence[str], env: Mapping[str, str], waiting: Waiting) -> Output:
    """Run an nsys command, whose helpers live on: they must be left alone, and may hold its output open."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )

        def has_ended(seconds: float) -> bool:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            return process.returncode is not None

        try:
            problem = wait_patiently(has_ended, waiting)
            if problem is not None:
                problem = f"killed: {problem}"
            elif process.returncode:
                problem = f"exit status {process.returncode}"
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        output.seek(0)
        return Output(output.read(_MAX_OUTPUT), problem)


def _with_one_value(group: Sequence[str]) -> list[str]:
    """Return an option as nsys takes it: YAML has made two words of ``[--trace=cuda,nvtx]``."""
    name, *values = group
    if "=" in name:
        return [",".join(group)]
    return [name, ",".join(values)] if values else [name]


def _paranoid() -> int | None:
    try:
        return int(Path(_PARANOID).read_text())
    except (OSError, ValueError):
        return None


def _may_sample() -> bool:
    level = _paranoid()
    return os.geteuid() == 0 or (level is not None and level <= 2)
