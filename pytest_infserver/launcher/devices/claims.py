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
from pytest_infserver.system.disk.locks import named_holder, sign, take_shared_lock
from pytest_infserver.system.disk.places import shared_lock_file

if TYPE_CHECKING:
    from pytest_infserver.launcher.spec import ServerSpec

SWITCH = "INFSERVER_DEVICE_LOCKS"
"""The environment variable that switches the locks off with 0: Slurm and Kubernetes keep runs apart by themselves."""
_TURN_LIMIT = 2.0
"""Seconds that a claim waits for others that are choosing at the same moment; each takes milliseconds."""
_NOTHING_LENT: Mapping[str, int | None] = {}
_unreleased: weakref.WeakSet[DeviceClaim] = weakref.WeakSet()
"""The claims of this process: without locks they alone keep its servers apart."""


class Locks:
    """Locks that are never lost, wherever an interrupt comes: they end with this object.

    Attributes:
        refused: Why there can be no locks, with what to do; None if there can.
    """

    def __init__(self) -> None:
        self._locks: list[int] = []
        self.refused: str | None = None

    @property
    def lock_fds(self) -> Sequence[int]:
        """Their descriptors.

        Raises:
            ServerStartupError: There can be none: what should be locked may be used by others.
        """
        if self.refused is not None:
            raise ServerStartupError(self.refused)
        return self._locks

    def take(self, file: Path) -> int | None:
        """Lock a file without waiting; return the descriptor, or None if somebody else holds the lock.

        Raises:
            OSError: The file cannot be used; see `take_shared_lock`.
        """
        before = len(self._locks)
        # In one line, so that nothing comes between a lock and its owner.
        self._locks.extend(lock for lock in [take_shared_lock(file)] if lock is not None)
        return self._locks[-1] if len(self._locks) > before else None

    def share(self, lock: int) -> int:
        """Hold somebody else's lock, too; return a descriptor of its own."""
        self._locks.append(os.dup(lock))
        return self._locks[-1]

    def give_up(self, lock: int) -> None:
        """Unlock one of them."""
        os.close(self._locks.pop(self._locks.index(lock)))

    def release(self) -> None:
        """Close all of them; the locks last while a supervisor holds duplicates."""
        while self._locks:
            os.close(self._locks.pop())

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.release()


class DeviceClaim(Locks):
    """Devices of one server, until `release`.

    Attributes:
        devices: The devices.
        env_vars: What the server's environment says of them.
        lock_fds: Locks on them; the server's supervisor must hold duplicates, so that they last as long as it does.
            Where there can be none, no server starts with this claim.
        memory: Their memory before the server.
        locks: Key of each device to the lock on it, None where there are no locks.
        is_lent: Whether the server sleeps, so that another one may use the devices meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.devices: tuple[Device, ...] = ()
        self.env_vars: Mapping[str, str | None] = {}
        self.memory = MemoryBefore({})
        self.locks: Mapping[str, int | None] = {}
        self.is_lent = False

    def release(self) -> None:
        """Give the devices back; while a supervisor holds duplicates of the locks they stay locked."""
        if self in _unreleased:
            _unreleased.discard(self)
            self.memory.note_owed()
        super().release()

    def not_back(self) -> str | None:
        """Return what `wait_until_back` does, at once."""
        return self.wait_until_back(0)

    def wait_until_back(self, timeout: float = 30.0) -> str | None:
        """Wait until the devices' memory is back near what it was when they were claimed.

        Args:
            timeout: Limit in seconds.

        Returns:
            Which device still holds how much for whom, of those that no other server of this process uses; None if
            all is back or nobody can tell.
        """
        others = [one for one in list(_unreleased) if one is not self and not one.is_lent]
        shared = {device.key for one in others for device in one.devices}
        return self.memory.without(shared).wait_until_back(timeout)


def claim(
    visible: Visible,
    demand: Demand,
    avoid: frozenset[str] = frozenset(),
    lent: Mapping[str, int | None] = _NOTHING_LENT,
) -> DeviceClaim | None:
    """Claim what a server needs: all of it or nothing, without waiting for a device.

    Args:
        visible: The devices of this run.
        demand: What the server needs.
        avoid: Keys of devices not to take.
        lent: Keys of devices whose servers sleep, each with the lock on it: they are as good as free, but taken last.

    Returns:
        The claim, which the caller must release; None if too few devices are free. Where no device can be locked,
        or too few of them ever, it is a claim without locks that says so (`Locks.refused`).
    """
    made = DeviceClaim()
    try:
        candidates = [device for device in demand.candidates(visible) if device.key not in avoid]
        with _turn():
            locks = _take(made, candidates, demand, lent) if demand.count else {}
            if len(locks) < demand.count:
                made.release()
                return None
            unused = [device for device in locks if device.key not in lent]
            made.devices = _choose(unused if len(unused) >= demand.count else list(locks), demand.count)
            _unreleased.add(made)
            for device, lock in locks.items():
                if lock is not None and device not in made.devices:
                    made.give_up(lock)
        made.locks = {device.key: locks[device] for device in made.devices}
        for device in made.devices:
            lock = locks[device]
            if lock is not None:
                sign(lock)
        made.env_vars = _environment(visible, demand, made.devices)
        made.memory = MemoryBefore.of(made.devices)
        return made
    except BaseException:
        made.release()
        raise


def claim_for(server: ServerSpec) -> DeviceClaim | None:
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
    if made is not None and made.refused is not None:
        made.release()
        raise ServerStartupError(f"{server} cannot start: {made.refused}")
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
        said = [_why_taken(device) for device in demand.candidates(visible)]
    return "; ".join(filter(None, said)) or "they were a moment ago"


def describe_holder(device: Device) -> str:
    """Say in words who has claimed a device, as far as this user may know."""
    if not _locks_are_on() or _claimed_here(device):
        return f"another server of this process, {describe_process(os.getpid())}"
    file = _lock_file(device)
    pid = named_holder(file)
    if pid is None:
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


def _take(
    made: DeviceClaim, candidates: Sequence[Device], demand: Demand, lent: Mapping[str, int | None]
) -> dict[Device, int | None]:
    """Lock all candidates that are free; return them with their locks, which are ``made``'s by now.

    Args:
        made: The claim.
        candidates: The devices.
        demand: What the server needs.
        lent: See `claim`.
    """
    # Where there are no locks the user may have named a device for each of those that share it.
    unlocked = {
        device: None for device in candidates if demand.variable or device.key in lent or not _claimed_here(device)
    }
    if not _locks_are_on():
        return {**unlocked}
    taken: dict[Device, int | None] = {}
    problems: dict[str, int] = {}
    for device in candidates:
        others = lent.get(device.key)
        try:
            lock = made.take(_lock_file(device)) if others is None else made.share(others)
        except OSError as error:
            # Another run may use it: it is not taken.
            problems[str(error)] = problems.get(str(error), 0) + 1
            continue
        if lock is not None:
            taken[device] = lock
    if problems and len(candidates) - sum(problems.values()) < demand.count:
        made.release()
        made.refused = (
            f"GPUs cannot be kept from other runs: {'; '.join(problems)}. Mend that, or name another folder for locks"
            f" with INFSERVER_STATE_DIR in all runs, or set {SWITCH}=0 if nobody else uses these GPUs."
        )
        return {**unlocked}
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


def _why_taken(device: Device) -> str | None:
    """Return in words why a device cannot be had, None if it can."""
    try:
        return None if _is_free(device) else f"{device} is taken by {describe_holder(device)}"
    except OSError as error:
        return f"{device} cannot be locked ({error})"


def _is_free(device: Device) -> bool:
    if not _locks_are_on():
        return not _claimed_here(device)
    probe = Locks()
    try:
        return probe.take(_lock_file(device)) is not None
    finally:
        probe.release()


def _locks_are_on() -> bool:
    return os.environ.get(SWITCH) != "0"


def _lock_file(device: Device) -> Path:
    # Not the name of leaks/gpu.py: debug mode's lock is another one, on every device that its server might use.
    return shared_lock_file(f"slot-{re.sub(r'[^A-Za-z0-9-]', '_', device.key)}.lock")


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Let one process at a time choose: two that each hold a part of what the other needs would both get nothing."""
    turn = Locks()
    try:
        # After the limit, or with a file that cannot be locked, without a turn: nobody is kept from a device by it.
        with contextlib.suppress(OSError):
            deadline = time.monotonic() + _TURN_LIMIT
            file = shared_lock_file("turn.lock") if _locks_are_on() else None
            while file is not None and turn.take(file) is None and time.monotonic() < deadline:
                time.sleep(0.002)
        yield
    finally:
        turn.release()
