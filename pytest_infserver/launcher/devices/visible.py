"""Which devices this run may hand out: the caller's own list in the environment, else all that the driver shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_infserver.system.gpus import Gpu, NoTelemetry, read_gpus

CUDA = "CUDA_VISIBLE_DEVICES"
HIP = "HIP_VISIBLE_DEVICES"
ROCR = "ROCR_VISIBLE_DEVICES"
ZE = "ZE_AFFINITY_MASK"
"""Intel's, whose devices no driver shows here: they count where a server names them."""
ORDER = "CUDA_DEVICE_ORDER"
_NUMBER = re.compile(r"[0-9]{1,9}")
_UUID = re.compile(r"(?:GPU|MIG)-\S+")


@dataclass(frozen=True)
class Device:
    """A device that one server at a time may have.

    Attributes:
        label: What stands for it in the environment variable: the entry of the caller's own list, else its index.
        key: Its identity for locks: its UUID where the driver tells, else made from the label.
        index: Its position in the list that it was taken from.
    """

    label: str
    key: str
    index: int

    def __str__(self) -> str:
        return f"GPU {self.label}"


@dataclass(frozen=True)
class Machine:
    """What is known of the machine's devices, whatever the caller may use of them.

    Attributes:
        uuids: Those of all devices in the driver's order; empty where nothing tells.
        amd: Whether they are AMD's.
        restricted: The entries of ROCR_VISIBLE_DEVICES, to which HIP's numbers are relative; None without it.
    """

    uuids: tuple[str, ...] = ()
    amd: bool = False
    restricted: tuple[str, ...] | None = None

    def key(self, label: str) -> str | None:
        """Return the identity of the device that an entry of a list stands for; None if there is no such device."""
        if self.restricted is not None and _NUMBER.fullmatch(label):
            number = int(label)
            return self._key(self.restricted[number]) if number < len(self.restricted) else None
        return self._key(label)

    def _key(self, label: str) -> str | None:
        if _NUMBER.fullmatch(label):
            # The driver's numbers, which are those of nvidia-smi. That CUDA counts in the same way is seen to by
            # `Visible.environment`.
            number = int(label)
            if not self.uuids:
                return f"index-{number}"
            return self.uuids[number] if number < len(self.uuids) else None
        # CUDA takes the beginning of a UUID too. Parts of a GPU (MIG) and AMD's names are not in the driver's list.
        known = [uuid for uuid in self.uuids if uuid.startswith(label)]
        if len(known) == 1:
            return known[0]
        is_foreign = not self.uuids or self.amd or label.startswith("MIG-")
        return label if is_foreign else None

    def devices(self, labels: Iterable[str]) -> tuple[Device, ...]:
        """Return the devices of a list, as CUDA reads it: up to the first entry that is none; each device once."""
        found: dict[str, Device] = {}
        for label in labels:
            key = self.key(label)
            if key is None:
                break
            found.setdefault(key, Device(label, key, len(found)))
        return tuple(found.values())


@dataclass(frozen=True)
class Visible:
    """The devices that this run may hand out.

    Attributes:
        variable: The environment variable that tells a server which ones are its own.
        devices: The devices, in the order of the caller's list.
        source: Where they come from, or why there are none, in words for messages.
        machine: All that is known of the machine's devices.
        overruled: Other variables of the caller that would contradict ``variable``.
        ordered: Whether the caller has decided how CUDA counts.
    """

    variable: str
    devices: tuple[Device, ...]
    source: str
    machine: Machine = field(default=Machine(), repr=False)
    overruled: tuple[str, ...] = ()
    ordered: bool = False

    def __str__(self) -> str:
        return f"{len(self.devices) or 'none'} ({self.source})"

    def environment(self, devices: Sequence[Device], variable: str | None = None) -> dict[str, str | None]:
        """Return the environment variables of a server that gets ``devices``; none of them hides all.

        Args:
            devices: The devices.
            variable: The variable that names them, if it is not the caller's.
        """
        name = variable or self.variable
        # HIP takes an empty list for no list at all; to CUDA -1 and an empty one are the same.
        nothing = "-1" if name == HIP else ""
        result: dict[str, str | None] = {name: ",".join(device.label for device in devices) or nothing}
        result.update((other, None) for other in self.overruled if other != name)
        # CUDA's own order is "fastest first", the driver's is that of the bus: a number must mean one device only.
        numbered = any(_NUMBER.fullmatch(device.label) for device in devices)
        if numbered and len(self.machine.uuids) > 1 and not self.machine.amd and not self.ordered:
            result[ORDER] = "PCI_BUS_ID"
        return result


def visible_devices(environ: Mapping[str, str]) -> Visible:
    """Return the devices that a process with this environment may hand out.

    The list in CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES counts also where no driver confirms it.

    Args:
        environ: The caller's environment.
    """
    gpus, silence = _gpus()
    amd = any(gpu.amd for gpu in gpus)
    # CUDA_VISIBLE_DEVICES is understood by HIP too, where HIP's own variable is not set; to NVIDIA HIP's is nothing.
    names = (HIP, CUDA) if amd else (CUDA,) if gpus else (CUDA, HIP)
    given = [name for name in names if name in environ]
    uses_rocr = ROCR in environ and (amd or (not gpus and given != [CUDA]))
    restricted = entries(environ[ROCR]) if uses_rocr else None
    machine = Machine(tuple(gpu.uuid for gpu in gpus), amd, restricted)
    ordered = bool(environ.get(ORDER))
    if given:
        source = f"{given[0]}={environ[given[0]]}" if environ[given[0]] else f"{given[0]} is empty"
        devices = machine.devices(entries(environ[given[0]]))
        return Visible(given[0], devices, source, machine, tuple(given[1:]), ordered)
    if restricted is not None:
        source = f"{ROCR}={environ[ROCR]}"
        return Visible(HIP, machine.devices(map(str, range(len(restricted)))), source, machine)
    if not gpus:
        return Visible(CUDA, (), silence, machine)
    devices = machine.devices(map(str, range(len(gpus))))
    plural = "s" if len(gpus) > 1 else ""
    source = f"{len(gpus)} GPU{plural} that {'amdsmi' if amd else 'NVML'} shows"
    # These numbers are ours: how the caller wants CUDA to count must not give them another meaning.
    return Visible(HIP if amd else CUDA, devices, source, machine)


def entries(text: str) -> tuple[str, ...]:
    """Return the entries of a list of devices up to the first one that can be none, where CUDA and HIP stop too."""
    found: list[str] = []
    for word in text.split(","):
        entry = word.strip()
        if not _NUMBER.fullmatch(entry) and not _UUID.fullmatch(entry):
            break
        found.append(entry)
    return tuple(found)


def masked(text: str) -> tuple[str, ...]:
    """Return the devices of an affinity mask, each once; of a part of one, such as ``0.1``, the whole."""
    roots = [entry.strip().partition(".")[0] for entry in text.split(",")]
    return tuple(dict.fromkeys(root for root in roots if _NUMBER.fullmatch(root)))


def masked_devices(labels: Iterable[str]) -> tuple[Device, ...]:
    """Return the devices of an affinity mask, as `masked` returns them."""
    return tuple(Device(label, f"ze-{label}", index) for index, label in enumerate(labels))


def _gpus() -> tuple[list[Gpu], str]:
    try:
        return read_gpus(), "the driver shows none"
    except NoTelemetry as reason:
        return [], str(reason)
