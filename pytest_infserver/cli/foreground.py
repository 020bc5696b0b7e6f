"""``infserver run``: servers outside pytest, with their logs, until Ctrl-C."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import TextIO

from pytest_infserver.cli.discard import discard
from pytest_infserver.config.loading import choose
from pytest_infserver.config.model import ServerConfig
from pytest_infserver.launcher.diagnosis.log_follower import LogFollower
from pytest_infserver.launcher.factory import create_from_config, load_server_configs
from pytest_infserver.launcher.profiling.viewers import with_viewer
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.launcher.startup.phases import without_percent
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.reporting.dry_run import command_lines
from pytest_infserver.system.text import clean

_STEP = 0.1
_FIRST_PHASE = 1.0
_NEXT_PHASE = 15.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_servers(file: str, names: Sequence[str] = ()) -> int:
    """Run servers of a YAML file until a signal stops them or none is left.

    Args:
        file: The YAML file.
        names: Which of its servers; all if empty.

    Returns:
        The exit status: 0 if all were stopped in order, 1 if one failed, died, leaked or had to be killed.

    Raises:
        ConfigError: Something in the file is wrong; nothing was started.
    """
    configs = _chosen(load_server_configs(file), names, file)
    output = _Output()
    for line in list(command_lines(configs)):
        output.line(line)
    lives = [_Life(create_from_config(config), output) for config in configs]
    ending = _Ending(lives)
    output.on_reader_gone = ending.ask
    previous = {number: signal.signal(number, ending.on_signal) for number in _SIGNALS if _is_ours(number)}
    try:
        ending.start()
        for life in lives:
            life.thread.start()
        for life in lives:
            _follow_until_done(lives, life)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 1 if any(life.failed for life in lives) else 0


def _chosen(configs: list[ServerConfig], names: Sequence[str], file: str) -> list[ServerConfig]:
    return [choose(configs, name, file) for name in dict.fromkeys(names)] if names else configs


def _is_ours(number: signal.Signals) -> bool:
    # What a shell's background job or nohup ignores stays ignored.
    return number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN


def _follow_until_done(lives: Iterable[_Life], life: _Life) -> None:
    while life.thread.is_alive():
        for one in lives:
            one.show_log()
        life.thread.join(_STEP)


class _Output:
    """Standard output, line by line, from several threads."""

    def __init__(self) -> None:
        self.on_reader_gone: Callable[[], None] = lambda: None
        # None where it is closed. Kept: amdsmi's import needs another one in its place for a moment.
        self._stream: TextIO | None = sys.stdout
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        stream = self._stream
        if stream is None:
            return
        encoding = stream.encoding or "utf-8"
        with self._lock:
            try:
                stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
                # For a pipe, too.
                stream.flush()
            except OSError:
                # `infserver run ... | head`: nobody sees the servers any more.
                discard(stream)
                self.on_reader_gone()


class _Life:
    """One server from its start to its end, in a thread of its own.

    Attributes:
        failed: Whether something went wrong that nobody asked for.
        starting: Whether its start has not come to an end.
    """

    def __init__(self, server: InferenceServer, output: _Output) -> None:
        self.server = server
        self.failed = False
        self.starting = True
        self.killed = False
        self.unwanted = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"infserver-{server.name}")
        self._output = output
        self._follower = LogFollower(frozenset() if server.attached else server.secrets)
        self._log_lock = threading.Lock()
        self._phase = ""
        self._phase_shown = 0.0
        server.on_progress = server.on_warning = self._tell
        server.on_wait = self._tell_phase

    def show_log(self, *, complete: bool = False) -> None:
        """Show what is new in the log.

        Args:
            complete: Nothing more will come: show the last line even if it has no end.
        """
        if self.server.attached or not self.server.launches:
            return
        with self._log_lock:
            lines = self._follower.new_lines(self.server.log_path, self.server.runtime.status.launch_log_start)
            for line in [*lines, *(self._follower.last_line() if complete else ())]:
                self._output.line(f"{self.server.name} | {line}")

    def _tell(self, text: str) -> None:
        name = self.server.name
        lines = clean(text, self.server.secrets).splitlines()
        self._output.line("\n".join(line if line.startswith((name, " ")) else f"{name}: {line}" for line in lines))

    def _tell_phase(self, server: InferenceServer) -> None:
        seconds = server.runtime.starting_seconds
        phase = without_percent(server.phase)
        if seconds is None or seconds < _FIRST_PHASE:
            return
        if phase != self._phase or seconds - self._phase_shown >= _NEXT_PHASE:
            self._phase, self._phase_shown = phase, seconds
            self._tell(f"{server.phase}, {seconds:.0f} s")

    def _run(self) -> None:
        try:
            if self._start():
                self._watch()
                self._stop()
        except Exception as error:
            self.failed = True
            self.show_log(complete=True)
            self._tell(str(error) or repr(error))
        finally:
            self.starting = False

    def _start(self) -> bool:
        if self.unwanted.is_set():
            return False
        begin = time.monotonic()
        try:
            self.server.start()
        except Exception:
            if not self.unwanted.is_set():
                raise
            self.show_log(complete=True)
            self._tell(f"its start was cancelled in {time.monotonic() - begin:.1f} s")
            return False
        finally:
            self.starting = False
        self._tell_ready()
        return True

    def _tell_ready(self) -> None:
        server = self.server
        lines = [
            f"{server.name}: ready after {server.start_seconds or 0:.1f} s: {server.reach.shown(server.server_url)}"
        ]
        lines += [f"  {name}: {url}" for name, url in asked(server).list_endpoints().items()]
        if not server.attached:
            lines.append(f"  log: {server.log_path}")
        self._output.line(clean("\n".join(lines), server.secrets))

    def _watch(self) -> None:
        while not self.unwanted.wait(_STEP):
            if self.server.state is ServerState.DIED:
                break
        reason = self.server.why_died()
        if reason is not None:
            self.failed = True
            self.show_log(complete=True)
            self._tell(reason)

    def _stop(self) -> None:
        wanted = not self.failed
        begin = time.monotonic()
        try:
            self.server.stop()
        finally:
            seconds = time.monotonic() - begin
            self.show_log(complete=True)
            if self.server.attached:
                self._tell("let go, it was not started here")
            elif wanted:
                self.failed = self.failed or self.killed
                self._tell(f"{'killed' if self.killed else 'stopped'} in {seconds:.1f} s")
            for path in self.server.profiles:
                self._tell(f"  profile: {with_viewer(path)}")


class _Ending:
    """Ends all servers: the first time it is asked in order, the second time at once; then it gives up waiting."""

    def __init__(self, lives: Sequence[_Life]) -> None:
        self._lives = lives
        # May be put into by a signal handler, whatever the interrupted thread is doing.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="infserver-ending", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def on_signal(self, _: int, __: FrameType | None) -> None:
        self._asked.put(None)

    def ask(self) -> None:
        self._asked.put(None)

    def _run(self) -> None:
        # Not in the main thread, which hangs while nobody reads its output.
        self._asked.get()
        for life in self._lives:
            life.unwanted.set()
        while not self._asked_again():
            for life in self._lives:
                # Again and again: one may be just about to start.
                if life.starting:
                    life.server.cancel_start()
        for life in self._lives:
            life.killed = True
            threading.Thread(target=life.server.kill, daemon=True).start()
        self._asked.get()
        os._exit(1)

    def _asked_again(self) -> bool:
        try:
            self._asked.get(timeout=_STEP)
        except queue.Empty:
            return False
        return True
