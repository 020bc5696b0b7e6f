"""Who has which device: one lock file per device, kept by the kernel, for all runs on the machine."""

from __future__ import annotations

import contextlib
import os
import re
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infserver.errors import ServerStartupError
from pytest_infserver.launcher.devices.demand import Demand, demand_of, shortage
from pytest_infserver.launcher.devices.memory import MemoryBefore, describe_process
from pytest_infserver.launcher.devices.visible import Device, Visible, visible_devices
from pytest_infserver.launcher.places import shared_dir, take_shared_lock

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

SWITCH = "INFSERVER_DEVICE_LOCKS"
"""The environment variable that switches the locks off with 0: Slurm and Kubernetes keep runs apart by themselves."""
_TURN_LIMIT = 2.0
"""Seconds that a claim waits for others that are choosing at the same moment; each takes milliseconds."""
_unreleased: weakref.WeakSet[DeviceClaim] = weakref.WeakSet()
"""The claims of this process: without locks they alone keep its servers apart."""


class Locks:
    """Locks that are never lost, wherever an interrupt comes: they end with this object.

    Attributes:
        lock_fds: Their descriptors.
    """

    def __init__(self) -> None:
        self.lock_fds: list[int] = []

    def take(self, file: Path) -> int | None:
        """Lock a file without waiting; return the descriptor, or None if somebody else holds the lock."""
        before = len(self.lock_fds)
        # In one line, so that nothing comes between a lock and its owner.
        self.lock_fds.extend(lock for lock in [take_shared_lock(file)] if lock is not None)
        return self.lock_fds[-1] if len(self.lock_fds) > before else None

    def give_up(self, lock: int) -> None:
        """Unlock one of them."""
        os.close(self.lock_fds.pop(self.lock_fds.index(lock)))

    def release(self) -> None:
        """Close all of them; the locks last while a supervisor holds duplicates."""
        while self.lock_fds:
            os.close(self.lock_fds.pop())

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.release()


class DeviceClaim(Locks):
    """Devices of one server, until `release`.

    Attributes:
        devices: The devices.
        env_vars: What the server's environment says of them.
        lock_fds: Locks on them; the server's supervisor must hold duplicates, so that they last as long as it does.
        memory: Their memory before the server.
    """

    def __init__(self) -> None:
        super().__init__()
        self.devices: tuple[Device, ...] = ()
        self.env_vars: Mapping[str, str | None] = {}
        self.memory = MemoryBefore({})

    def release(self) -> None:
        """Give the devices back; while a supervisor holds duplicates of the locks they stay locked."""
        _unreleased.discard(self)
        super().release()

    def wait_until_back(self, timeout: float = 30.0) -> str | None:
        """Wait until the devices' memory is back near what it was when they were claimed.

        Args:
            timeout: Limit in seconds.

        Returns:
            Which device still holds how much for whom, or None if all is back or nobody can tell.
        """
        return self.memory.wait_until_back(timeout)


def claim(visible: Visible, demand: Demand, avoid: frozenset[str] = frozenset()) -> DeviceClaim | None:
    """Claim what a server needs: all of it or nothing, without waiting for a device.

    Args:
        visible: The devices of this run.
        demand: What the server needs.
        avoid: Keys of devices not to take.

    Returns:
        The claim, which the caller must release; None if too few devices are free.
    """
    made = DeviceClaim()
    try:
        candidates = [device for device in demand.candidates(visible) if device.key not in avoid]
        with _turn():
            locks = _take(made, candidates, shared=bool(demand.variable)) if demand.count else {}
            if len(locks) < demand.count:
                made.release()
                return None
            made.devices = _choose(list(locks), demand.count)
            _unreleased.add(made)
            for device, lock in locks.items():
                if lock is not None and device not in made.devices:
                    made.give_up(lock)
        for device in made.devices:
            _sign(locks[device])
        made.env_vars = _environment(visible, demand, made.devices)
        made.memory = MemoryBefore.of(made.devices)
        return made
    except BaseException:
        made.release()
        raise


def claim_for(server: InferenceServer) -> DeviceClaim | None:
    """Claim what a server needs that nobody else has claimed for it.

    Returns:
        The claim, which the caller must release; None if nothing is known of the server's needs.

    Raises:
        ServerStartupError: There are too few devices, or somebody else holds them; the message says who.
    """
    demand = demand_of(server)
    if not demand.count and not demand.hides:
        return None
    visible = visible_devices(os.environ)
    missing = shortage(visible, demand)
    if missing is not None:
        raise ServerStartupError(f"{server} cannot start: {missing}. {_advice(visible, demand)}")
    made = claim(visible, demand)
    if made is None:
        sharing = f", or set {SWITCH}=0 if servers may share a GPU" if _locks_are_on() else ""
        raise ServerStartupError(
            f"{server} cannot start: needs {demand}, and too few are free: {describe_taken(visible, demand)}. Wait"
            f" for its end or stop it{sharing}."
        )
    return made


def describe_taken(visible: Visible, demand: Demand) -> str:
    """Say in words which of the devices that a server could get are taken, and by whom."""
    with _turn():
        taken = [device for device in demand.candidates(visible) if not _is_free(device)]
    return "; ".join(f"{device} is taken by {describe_holder(device)}" for device in taken) or "they were a moment ago"


def describe_holder(device: Device) -> str:
    """Say in words who has claimed a device, as far as this user may know."""
    file = _lock_file(device)
    if file is None or _claimed_here(device):
        return f"another server of this process, {describe_process(os.getpid())}"
    try:
        pid = int(file.read_text())
    except (OSError, ValueError):
        return f"another run, which has not said who it is in {file}"
    shown = describe_process(pid)
    # Its server's supervisor holds the lock until the server is gone. Or the pid is that of another container.
    return shown if shown != f"pid {pid}" else f"{shown}, which has ended or cannot be seen from here"


def _advice(visible: Visible, demand: Demand) -> str:
    if visible.devices or demand.variable:
        return "Ask for fewer with 'gpus:' or in 'env_vars', or run where there are more."
    return "Say which ones there are with CUDA_VISIBLE_DEVICES, or pip install 'pytest-infserver[gpu]' to look."


def _environment(visible: Visible, demand: Demand, devices: Sequence[Device]) -> Mapping[str, str | None]:
    named = len(dict.fromkeys(demand.fixed))
    if not demand.hides and (not demand.count or (demand.variable and len(devices) == named)):
        # Nothing is known of its needs, or it has all that it names: that stays as it is configured.
        return {}
    return visible.environment(devices, demand.variable or None)


def _take(made: DeviceClaim, candidates: Sequence[Device], shared: bool) -> dict[Device, int | None]:
    """Lock all candidates that are free; return them with their locks, which are ``made``'s by now.

    Args:
        made: The claim.
        candidates: The devices.
        shared: Whether servers may share a device where there are no locks: the user has named it for each.
    """
    taken: dict[Device, int | None] = {}
    for device in candidates:
        file = _lock_file(device)
        if file is None:
            if shared or not _claimed_here(device):
                taken[device] = None
            continue
        lock = made.take(file)
        if lock is not None:
            taken[device] = lock
    return taken


def _choose(free: Sequence[Device], count: int) -> tuple[Device, ...]:
    # Neighbours are more likely to be linked; and whoever comes next finds neighbours too.
    for start in range(len(free) - count + 1):
        window = free[start : start + count]
        if window and window[-1].index - window[0].index == count - 1:
            return tuple(window)
    return tuple(free[:count])


def _claimed_here(device: Device) -> bool:
    return any(device.key == other.key for held in list(_unreleased) for other in held.devices)


def _is_free(device: Device) -> bool:
    file = _lock_file(device)
    if file is None:
        return not _claimed_here(device)
    probe = Locks()
    try:
        return probe.take(file) is not None
    finally:
        probe.release()


def _locks_are_on() -> bool:
    return os.environ.get(SWITCH) != "0"


def _lock_file(device: Device) -> Path | None:
    folder = shared_dir() if _locks_are_on() else None
    # Not the name of leaks/gpu.py: debug mode's lock is another one, on every device that its server might use.
    return None if folder is None else folder / f"slot-{re.sub(r'[^A-Za-z0-9-]', '_', device.key)}.lock"


def _sign(lock: int | None) -> None:
    if lock is not None:
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Let one process at a time choose: two that each hold a part of what the other needs would both get nothing."""
    folder = shared_dir() if _locks_are_on() else None
    turn = Locks()
    try:
        if folder is not None:
            deadline = time.monotonic() + _TURN_LIMIT
            while turn.take(folder / "turn.lock") is None and time.monotonic() < deadline:
                time.sleep(0.002)
        yield
    finally:
        turn.release()
