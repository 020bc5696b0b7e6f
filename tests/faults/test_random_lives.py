"""Many lives of servers in debug mode, most of them ended by a kill at a random moment.

Nothing may be left of any of them, and nobody may be accused: the engine removes all that it has made, unless it is
killed. The lives are lived by scripts (this file, see `main`), because in some of them the server's owner is killed.
What happens is determined by the seed, but for the moments at which the machine gets there.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_infserver import CommandServer, LeakError, ServerStartupError
from pytest_infserver.system.disk import places

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="kills the supervisor's guard, which only Linux has"),
    pytest.mark.usefixtures("hard_limit"),
]

ENGINE = Path(__file__).parents[1] / "fake_engine.py"
SHM = Path("/dev/shm")
SEED_VARIABLE = "INFSERVER_TEST_SEED"
OWNERS = 4
SECONDS_PER_LIFE = 2.0
"""Limit of the whole run; a life takes some 0.2 s of one core."""
LEAST_SECONDS = 60
LAST_SECONDS = 60.0
"""Seconds after the last life in which all that is left must go."""

UNSEEN = {"kill root": 0.5, "terminate root": 0.5}
"""Seconds that an object must have existed before these attacks to be known for the server's: if its only holder ends
before anybody has looked, which takes some 20 ms on an idle machine, nobody can tell whose it was. Other attacks leave
the supervisor, or its guard, the time to look at all."""
BLOCK = 8
"""Lives that one script lives."""

MOMENTS = {"start": 0.4, "run": 0.2, "stop": 0.15}
"""When somebody attacks, and up to how many seconds after that moment's beginning."""
ATTACKS = {
    "none": 3,
    "kill root": 3,
    "terminate root": 2,
    "kill child": 2,
    "kill supervisor": 3,
    "kill guard": 2,
    "SIGKILL owner": 1,
    "SIGTERM owner": 1,
    "SIGHUP owner": 1,
    "SIGINT owner": 1,
    "exit owner": 1,
}
"""What is done to a life, and how often."""


@dataclass(frozen=True)
class Life:
    """What happens in one life.

    Attributes:
        tag: Begins the names of all its objects.
        moment: When it is attacked, if it is.
        delay: Seconds from the beginning of that moment to the attack.
        run: Seconds between the start and the stop.
        arguments: Of the engine.
    """

    number: int
    tag: str
    attack: str
    moment: str
    delay: float
    run: float
    arguments: tuple[str, ...]


def make_life(seed: str, number: int, prefix: str) -> Life:
    chance = random.Random(f"{seed} {number}")
    [attack] = chance.choices(list(ATTACKS), list(ATTACKS.values()))
    moment = chance.choice(list(MOMENTS))
    delay = chance.uniform(0, MOMENTS[moment])
    run = chance.uniform(0, MOMENTS["run"]) if moment != "run" else MOMENTS["run"]
    tag = f"{prefix}{number}-"
    arguments = [f"--tidy-shm={tag}a", f"--tidy-semaphore={tag}b", f"--tidy-shm={tag}c"]
    often = {
        f"--children={chance.randint(1, 2)}": 1.0 if attack == "kill child" else 0.4,
        "--setsid-child": 0.2,
        "--tidy-daemon": 0.5,
        "--wipe-environment": 0.3,
        f"--rename={tag}engine": 0.3,
        "--close-log": 0.1,
        f"--delay={chance.uniform(0, 0.2):.3f}": 0.3,
        f"--loading={chance.uniform(0, 0.2):.3f}": 0.2,
        f"--stop-delay={chance.uniform(0, 0.2):.3f}": 0.3,
    }
    arguments += [word for word, share in often.items() if chance.random() < share]
    return Life(number, tag, attack, moment, delay, run, tuple(arguments))


# The script that lives them.


class Attack:
    """Does to a server what is planned, unless its life is over first.

    Attributes:
        hit: The moment in which the signal was sent, or None.
        time: When, in seconds since 1970.
    """

    def __init__(self, life: Life, server: CommandServer) -> None:
        self.hit: str | None = None
        self.time = 0.0
        self._life = life
        self._server = server
        self._phase = ""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self, phase: str) -> None:
        """Say which moment begins."""
        with self._lock:
            self._phase = phase
        if phase == self._life.moment and self._life.attack != "none":
            self._thread.start()

    def end(self) -> None:
        """Say that the life is over."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        if self._over.wait(self._life.delay):
            return
        while not self._over.is_set():
            with self._lock, contextlib.suppress(ProcessLookupError, psutil.Error):
                if self._strike():
                    self.hit, self.time = self._phase, time.time()
                    return
            self._over.wait(0.001)

    def _strike(self) -> bool:
        """Send the signal; return whether there was somebody to get it."""
        deed, _, victim = self._life.attack.partition(" ")
        process = self._server._process
        if victim == "owner":
            say({"dying": self._life.number, "time": time.time()})
            if deed == "exit":
                os._exit(3)
            os.kill(os.getpid(), getattr(signal, deed))
            return True
        if process is None or process._supervisor is None or process.supervisor_pid is None:
            return False
        pid: int | None = None
        if victim == "root":
            pid = self._server.pid
        elif victim == "supervisor":
            pid = process.supervisor_pid
        elif victim == "guard" and process.pid is not None:
            pid = process._supervisor.pid
        elif victim == "child" and self._server.pid is not None:
            children = psutil.Process(self._server.pid).children()
            pid = children[0].pid if children else None
        if pid is None:
            return False
        os.kill(pid, signal.SIGTERM if deed == "terminate" else signal.SIGKILL)
        return True


def say(words: dict[str, Any]) -> None:
    # At once: the owner may be about to die.
    os.write(1, json.dumps(words).encode() + b"\n")


def live(life: Life, folder: Path) -> None:
    """Live one life and report it."""
    server = CommandServer(
        launch_command=[sys.executable, "-S", str(ENGINE), "--port={port}", *life.arguments],
        debug_mode=True,
        output_dir=folder,
        startup_timeout=60,
        stop_timeout=20,
    )
    warnings: list[str] = []
    server.on_warning = warnings.append
    failure = leak = None
    attack = Attack(life, server)
    try:
        attack.begin("start")
        try:
            server.start()
            attack.begin("run")
            time.sleep(life.run)
        except ServerStartupError as error:
            failure = str(error)
        attack.begin("stop")
        try:
            server.stop()
        except LeakError as error:
            leak = str(error)
    finally:
        attack.end()
    report = server.leak_report
    say(
        {
            "number": life.number,
            "hit": attack.hit,
            "time": attack.time,
            "failure": failure,
            "leak": leak,
            "warnings": warnings,
            "findings": [] if report is None else [f"{one.kind} {one.name}: {one.detail}" for one in report.findings],
            "objects": births(life.tag),
            "processes": processes_left(30),
        }
    )


def objects(prefix: str) -> list[Path]:
    return [path for path in SHM.iterdir() if path.name.removeprefix("sem.").startswith(prefix)]


def births(prefix: str) -> dict[str, float]:
    """Return when each object was made."""
    found = {}
    for path in objects(prefix):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_ctime
    return found


def processes_left(seconds: float) -> list[str]:
    """Return the processes below this one that have not ended after so many seconds; to be called between lives."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                left.append(f"{process.pid} {process.name()} {process.status()} {process.cmdline()}")
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


def adopt_orphans(do: bool) -> None:
    ctypes.CDLL(None).prctl(36, int(do), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def main(seed: str, first: int, last: int, prefix: str, folder: str) -> None:
    """Live the lives from ``first`` on; one that kills this process is the last."""
    # No descendant gets out of sight, whichever of its parents are killed.
    adopt_orphans(True)
    for number in range(first, last):
        live(make_life(seed, number, prefix), Path(folder))


# The test.


class Lives:
    """Runs the scripts, several at a time, and collects what they say."""

    def __init__(self, seed: str, count: int, prefix: str, folder: Path) -> None:
        self.reports: dict[int, dict[str, Any]] = {}
        self.complaints: list[str] = []
        self._seed, self._count, self._prefix, self._folder = seed, count, prefix, folder
        self._blocks: Iterator[tuple[int, int]] = iter(
            [(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
        )
        self._lock = threading.Lock()
        self._over = False
        self._scripts: dict[int, subprocess.Popen[bytes]] = {}

    def run(self, seconds: float) -> None:
        """Live all lives, for so many seconds at most."""
        workers = [threading.Thread(target=self._work, args=(number,)) for number in range(OWNERS)]
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + seconds
        try:
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
        finally:
            self._over = True
            for script in self._scripts.values():
                script.kill()
            for worker in workers:
                worker.join(LAST_SECONDS)

    def _work(self, worker: int) -> None:
        while True:
            with self._lock:
                first, last = next(self._blocks, (0, 0))
            while first < last and not self._over:
                first = self._run_script(worker, first, last)
            if self._over or not last:
                return

    def _run_script(self, worker: int, first: int, last: int) -> int:
        """Live from ``first`` on; return the first life that is still to be lived."""
        words = [self._seed, str(first), str(last), self._prefix, str(self._folder / f"owner{worker}")]
        errors = self._folder / f"errors{worker}"
        with errors.open("wb") as file:
            script = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, stderr=file)
        self._scripts[worker] = script
        assert script.stdout is not None
        dying = moment = None
        with script.stdout:
            for line in script.stdout:
                report = json.loads(line)
                if "dying" in report:
                    dying, moment = report["dying"], report["time"]
                else:
                    self.reports[report["number"]] = report
                    first = report["number"] + 1
        code = script.wait()
        if dying == first and code != 0:
            self.reports[first] = {"number": first, "hit": "owner", "time": moment}
            return first + 1
        if first < last and not self._over:
            self.complaints.append(f"life {first}: its owner ended with {code}:\n{errors.read_text()}")
            return first + 1
        return first


def complaints(life: Life, report: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a life."""
    hit = report["hit"]
    yield from left_objects(life, report)
    if hit == "owner":
        return
    harmless = hit is None or life.attack == "kill child" or life.attack == "kill guard"
    if report["leak"]:
        yield f"false alarm: {report['leak']}"
    if report["failure"] and (harmless or hit != "start"):
        yield f"did not start: {report['failure']}"
    # A root that is asked to end by somebody else cleans up too, once it is ready.
    orderly = harmless or (life.attack == "terminate root" and hit != "start")
    if orderly and (report["findings"] or report["warnings"]):
        yield f"false findings: {report['findings']} {report['warnings']}"
    if report["processes"]:
        yield f"left processes: {report['processes']}"


def waiting_per_core() -> float:
    """Return how many times longer everything takes, since others want the machine's cores, too."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def left_objects(life: Life, report: dict[str, Any]) -> Iterator[str]:
    for name, birth in report["objects"].items():
        age = report["time"] - birth
        if report["hit"] is None or age >= UNSEEN.get(life.attack, -LAST_SECONDS) * waiting_per_core():
            yield f"left {name}, {age:.3f} s old at the attack; found: {report.get('findings')}"


@pytest.fixture
def lives(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--lives"))


@pytest.fixture
def hard_limit(lives: int) -> Iterator[None]:
    """Interrupt a run that hangs, later than `Lives` gives it up."""

    def give_up(*_: object) -> None:
        raise TimeoutError("the lives hang")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(time_limit(lives) + 4 * LAST_SECONDS))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def time_limit(lives: int) -> float:
    return LEAST_SECONDS + SECONDS_PER_LIFE * lives


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    chosen = request.config.getoption("--lives-seed")
    return chosen or str(random.SystemRandom().randrange(10**6))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Give the servers a temporary directory of their own, with a short name."""
    state = places.state_dir()
    if state is not None:
        # Ports are shared with those who have another temporary directory.
        monkeypatch.setenv("INFSERVER_STATE_DIR", str(state))
    with tempfile.TemporaryDirectory(prefix="irl-", dir="/tmp") as name:
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


@pytest.fixture
def family() -> Iterator[Callable[[], list[psutil.Process]]]:
    """Return the processes below this one that a test has added; whatever loses its parents is adopted."""
    before = set(psutil.Process().children(recursive=True))

    def added() -> list[psutil.Process]:
        found = []
        for process in set(psutil.Process().children(recursive=True)) - before:
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1:
                    found.append(process)
        return found

    adopt_orphans(True)
    try:
        yield added
    finally:
        for process in added():
            with contextlib.suppress(psutil.Error):
                process.kill()
        adopt_orphans(False)
        for zombie in set(psutil.Process().children()) - before:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(zombie.pid, 0)


def test_random_lives(
    lives: int,
    seed: str,
    folder: Path,
    family: Callable[[], list[psutil.Process]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("seed", seed)
    prefix = f"irl-{os.getpid()}-{random.SystemRandom().randrange(10**6)}-"
    run = Lives(seed, lives, prefix, tmp_path)
    try:
        run.run(time_limit(lives))
        deadline = time.monotonic() + LAST_SECONDS
        while (left := [*family(), *folder.glob("infs-*")]) and time.monotonic() < deadline:
            time.sleep(0.05)
        still_there = births(prefix)
    finally:
        for path in objects(prefix):
            path.unlink()
    wrong = [*run.complaints, *(f"left: {thing}" for thing in left)]
    hits: Counter[str] = Counter()
    for number, report in sorted(run.reports.items()):
        life = make_life(seed, number, prefix)
        hits[f"{life.attack}, {report['hit']}"] += 1
        # The supervisor of an owner that was killed still had to remove them.
        report.setdefault("objects", {name: birth for name, birth in still_there.items() if life.tag in name})
        wrong += [f"life {number} ({life.attack}, {report['hit']}): {text}" for text in complaints(life, report)]
    summary = f"seed {seed} ({SEED_VARIABLE} or --lives-seed repeats it), attacks: {dict(sorted(hits.items()))}"
    assert not wrong, "\n".join([summary, *wrong])
    assert len(run.reports) == lives, f"only {len(run.reports)} lives within {time_limit(lives):g} s; {summary}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
