"""Carries out what the planner decides, each start and stop in a thread of its own."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError, ServerDiedError, ServerStartupTimeout
from pytest_infserver.pool.planning.decisions import Phase, Sleep, Start, Stop
from pytest_infserver.pool.planning.planner import ENDED
from pytest_infserver.pool.servers.stop_refusals import stop_refusal, why_down
from pytest_infserver.pool.threads import spawn

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.servers.books import Books
    from pytest_infserver.pool.servers.sleepers import Sleepers
    from pytest_infserver.pool.servers.start_stop import StartStop

_STEP = 0.25
"""Seconds between two looks at a thread that is waited for."""
_PATIENCE = 120.0
"""Seconds after which a server is stopped although others that need it have not ended."""
_MEMORY_GRACE = 10.0
"""Seconds in which the memory of GPUs is to be back before another server, or another run, can get them."""
_LOOK_AGAIN = 2.0
"""Seconds between two looks for kept servers that hold the GPUs which a server needs."""


class Executor:
    """Starts and stops servers, and notices their ends; owns the threads in which that happens.

    What it knows is guarded by the pool's lock. A method whose docstring does not say otherwise is called under it.
    """

    def __init__(
        self,
        books: Books,
        steps: StartStop,
        sleepers: Sleepers,
        on_end: Callable[[InferenceServer, str | None], object],
        on_up: Callable[[frozenset[str]], object],
    ) -> None:
        """Begin with nothing that runs.

        Args:
            books: What is known of the servers.
            steps: Takes the steps of each start and stop.
            sleepers: Puts servers to sleep, and wakes them.
            on_end: Gets a server whose process has ended, whoever ended it, and why it died if it did.
            on_up: Gets the names of the servers that run whenever these change; called under the lock.
        """
        self._books = books
        self._steps = steps
        self._sleepers = sleepers
        self._on_end = on_end
        self._on_up = on_up
        self._changed = books.changed
        self._planner = books.planner
        self._room = books.room
        self._handles = books.handles
        self._failures = books.failures
        self._end = books.end
        self._up: frozenset[str] = frozenset()
        self._begun: dict[str, float] = {}
        self._watched: dict[str, int] = {}
        self._look_again: dict[str, float] = {}
        self._evictions: Counter[tuple[str, str]] = Counter()
        self._starts: dict[str, threading.Thread] = {}
        self._threads: list[threading.Thread] = []

    def proceed(self, *, changed: bool = True) -> None:
        """Carry out what is to be done now.

        Args:
            changed: Whether the others who wait have to look again; those who only look do not wake one another.
        """
        changed |= self.note_deaths()
        if not self._end.closed:
            for decision in self._planner.decide(time.monotonic()):
                changed = True
                if isinstance(decision, Start):
                    self._handles.get(decision.name)
                    self._begun[decision.name] = time.monotonic()
                    self._starts[decision.name] = self._spawn(self._start, decision.name)
                elif isinstance(decision, Sleep):
                    self._begun[decision.name] = time.monotonic()
                    self._spawn(functools.partial(self._put_to_sleep, room_for=decision.room_for), decision.name)
                elif isinstance(decision, Stop):
                    self._carry_out(decision)
                else:
                    self._books.tickets.grant(decision)
            for name in self._planner.short:
                if self._look_again.get(name, 0.0) <= time.monotonic():
                    self._look_again[name] = math.inf
                    self._spawn(self._make_way, name)
        up = frozenset(self._planner.names(Phase.UP))
        if up != self._up:
            self._up, changed = up, True
            self._on_up(up)
        if changed:
            self._changed.notify_all()

    def begun_at(self, name: str, default: float) -> float:
        """Return when the last start or stop of a server began, or a default if there was none."""
        return self._begun.get(name, default)

    def _carry_out(self, stop: Stop) -> None:
        self._begun[stop.name] = time.monotonic()
        self._spawn(functools.partial(self._stop, room_for=stop.room_for), stop.name)

    def _spawn(self, action: Callable[[str], None], name: str) -> threading.Thread:
        thread = spawn(functools.partial(action, name), name, self._end.fail)
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        return thread

    def note_deaths(self) -> bool:
        """Note which servers have died; return whether any has."""
        found = False
        for name in self._planner.names(Phase.UP, Phase.ASLEEP):
            server = self._handles.get(name)
            leases = self._planner.leases(name)
            ended_by_a_test = any(lease.exclusive for lease in leases) or (leases and server.runtime.status.was_killed)
            if server.running or ended_by_a_test:
                continue
            reason = server.why_died()
            if reason is None:
                continue
            self._failures.note_death(server, reason)
            # Before it is started again.
            self._on_end(server, reason)
            is_asleep = self._planner.phase(name) is Phase.ASLEEP
            if is_asleep:
                self._carry_out(self._planner.died_asleep(name))
            else:
                self._planner.died(name)
            if not leases:
                self._books.incidents.append(f"{'asleep' if is_asleep else 'between two tests'}: {reason}")
            if self._failures.gives_up(server, self._books.policy.restarts):
                self._planner.give_up(name)
            found = True
        return found

    def _start(self, name: str) -> None:
        """Start a server; in a thread of its own, without the lock."""
        server = self._handles.get(name)
        error: InferenceServerError | None = None
        problems: list[str] = []
        with self._end.exits():
            problems, is_up = self._woken(server)
            error = None if is_up else self._steps.started(server)
            if error is not None and server.running:
                # It was a hook that failed.
                problems += self._steps.stopped(server)
        with self._changed:
            self._end.note_problems(name, problems)
            if self._planner.phase(name) is Phase.STARTING:
                if error is None and server.running:
                    self._planner.started(name, time.monotonic())
                    self.watch(server)
                else:
                    # N tests do not each wait for the same failure.
                    self._failures.note(name, error or _ended_at_once(server))
                    if self._planner.start_failed(name) or isinstance(error, ServerStartupTimeout):
                        self._planner.give_up(name)
                    else:
                        self._failures.forget(name)
                    server.runtime.stop_refusal = why_down(server, self._books)
            self.proceed()

    def _woken(self, server: InferenceServer) -> tuple[list[str], bool]:
        """Wake a server if it sleeps, or stop it if that fails; without the lock.

        Returns:
            What went wrong at the stop, and whether there is nothing to be started.
        """
        if server.runtime.status.awake or not server.runtime.launched:
            return [], False
        if self._sleepers.wakes(server):
            return [], True
        problems = self._steps.stopped(server)
        with self._changed:
            # Else the stop has cancelled it.
            return problems, self._planner.phase(server.name) is not Phase.STARTING

    def _put_to_sleep(self, name: str, room_for: str) -> None:
        """Put a server to sleep, or stop it if that fails; in a thread of its own, without the lock."""
        sleeps = False
        with self._end.exits():
            sleeps = self._sleepers.sleeps(self._handles.get(name), room_for)
        with self._changed:
            if sleeps and not self._end.closed:
                self._planner.slept(name)
                self.proceed()
                return
            self._planner.stays_awake(name)
        self._stop(name, room_for)

    def _make_way(self, name: str) -> None:
        """Stop a kept server that holds the GPUs that another one needs; in a thread of its own, without the lock."""
        self._steps.make_way(name)
        with self._changed:
            self._look_again[name] = time.monotonic() + _LOOK_AGAIN
            self.proceed()

    def take_over(self, name: str) -> None:
        """Take a server over that an earlier run has kept, if there is one like this; without the lock."""
        server = self._handles.get(name)
        with self._changed:
            if self._planner.phase(name) is not Phase.DOWN or name in self._failures:
                return
        if not self._steps.taken_over(server):
            return
        with self._end.exits():
            self._end.note_problems(name, self._steps.tell_of_takeover(server))
        with self._changed:
            # Somebody who did not announce it may have asked for it meanwhile, and then its start has found it running.
            if self._planner.phase(name) is Phase.DOWN:
                self._room.adopt(name, server.device_keys)
                self._planner.adopted(name, time.monotonic())
                self._steps.note_adoption(server)
                self.watch(server)

    def watch(self, server: InferenceServer) -> None:
        """Let the end of a server be noticed at once; also without the lock."""
        with self._end.locked():
            launch = server.launches
            if not server.attached and self._watched.get(server.name) != launch:
                spawn(functools.partial(self._watch, server, launch), f"watch-{server.name}", self._end.fail)
                self._watched[server.name] = launch

    def _watch(self, server: InferenceServer, launch: int) -> None:
        """Wait for the end of a launch; in a thread of its own, without the lock."""
        while server.launches == launch and server.running and not self._end.closed:
            server.wait_death(60.0)
        with self._changed:
            self.proceed()
            if self._failures.death(server.name, launch) is None and server.launches == launch:
                # Who has it alone may have ended it.
                self._on_end(server, None)

    def end_exclusive(self, name: str) -> None:
        """Bring a server back in line that a test has had alone: it may have stopped it, or killed it."""
        server = self._handles.get(name)
        server.runtime.stop_refusal = stop_refusal(server, self._books)
        if self._planner.phase(name) is Phase.UP:
            if server.running:
                self.watch(server)
            else:
                self._planner.died(name)

    def _stop(self, name: str, room_for: str | None = None) -> None:
        """Stop a server; in a thread of its own, without the lock."""
        server = self._handles.get(name)
        start = self._starts.get(name)
        while start is not None and start.is_alive():
            # It may not have come as far as to notice.
            server.cancel_start()
            start.join(0.1)
        problems: list[str] = []
        with self._changed:
            # Those that need it end before it.
            self._changed.wait_for(lambda: not self._is_needed(name), _PATIENCE)
        with self._end.exits():
            problems = self._steps.stopped(server)
        devices = self._room.devices(name)
        if devices is not None:
            # Longer waits who gets them next.
            devices.wait_until_back(_MEMORY_GRACE)
        with self._changed:
            if room_for is not None and not server.runtime.launched:
                self._evictions[name, room_for] += 1
            self._end.note_problems(name, problems)
            self._planner.stopped(name)
            self.proceed()

    def _is_needed(self, name: str) -> bool:
        others = [one for one in self._handles.names() if name in self._handles.needs_of(one)]
        return any(self._planner.phase(one) is Phase.STOPPING for one in others)

    def stop_all(self, progress: Callable[[str], object]) -> None:
        """Stop all servers, or leave them running if they are to be kept; returns when that is done, without the lock.

        Args:
            progress: Gets a line of text when that takes long for a reason, as for a profile that is being written.
        """
        with self._end.locked():
            for stop in self._planner.stop_all():
                self._spawn(self._stop_or_keep, stop.name)
            self._changed.notify_all()
        self._join(progress)
        self._stop_rest()
        with self._changed:
            evictions, self._evictions = self._evictions, Counter()
        self._books.incidents.extend(self._sleepers.told())
        self._books.incidents.extend(
            f"{name} was stopped {count} {'time' if count == 1 else 'times'} to make room for {other}"
            for (name, other), count in evictions.items()
        )

    def _stop_or_keep(self, name: str) -> None:
        """Stop a server, or leave it running; in a thread of its own, without the lock."""
        keep = self._books.policy.keep
        if keep is None or not self._steps.kept(self._handles.get(name), keep):
            self._stop(name)
        else:
            with self._changed:
                self._planner.stopped(name)

    def _join(self, progress: Callable[[str], object]) -> None:
        """Wait until all starts and stops have come to an end; without the lock."""
        while True:
            with self._changed:
                thread = next((one for one in self._threads if one.is_alive()), None)
                leaving = self._planner.names(Phase.STOPPING, Phase.FALLING_ASLEEP)
                stopping = [self._handles.get(name) for name in leaving]
            if thread is None:
                return
            with self._end.exits():
                for server in stopping:
                    # As the thread that stops it does, if there is one.
                    server.cancel_start()
            thread.join(_STEP)
            for line in self._handles.take_lines():
                progress(line)

    def _stop_rest(self) -> None:
        """Stop what still runs, where a thread has failed or could not be started; without the lock."""
        for server in self._handles.made():
            problems: list[str] = []
            if server.runtime.launched:
                with self._end.exits():
                    server.cancel_start()
                    problems = self._steps.stopped(server)
            with self._end.locked():
                self._end.note_problems(server.name, problems)
                if self._planner.phase(server.name) is Phase.FALLING_ASLEEP:
                    self._planner.stays_awake(server.name)
                if self._planner.phase(server.name) is Phase.STOPPING:
                    self._planner.stopped(server.name)


def _ended_at_once(server: InferenceServer) -> InferenceServerError:
    """Return why a server does not run although its start went well."""
    reason = server.why_died()
    return InferenceServerError(ENDED) if reason is None else ServerDiedError(reason)
