"""GPU slots: which devices a run may hand out, how many a server needs, and who holds which one."""

from pytest_infserver.launcher.devices.claims import DeviceClaim, claim, claim_for, describe_holder, describe_taken
from pytest_infserver.launcher.devices.demand import Demand, demand_of, shortage, shortage_together
from pytest_infserver.launcher.devices.memory import MemoryBefore
from pytest_infserver.launcher.devices.visible import Device, Visible, visible_devices

__all__ = [
    "Demand",
    "Device",
    "DeviceClaim",
    "MemoryBefore",
    "Visible",
    "claim",
    "claim_for",
    "demand_of",
    "describe_holder",
    "describe_taken",
    "shortage",
    "shortage_together",
    "visible_devices",
]
