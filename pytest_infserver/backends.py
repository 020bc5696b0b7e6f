"""What authors of backends and of annotated tests need beside `pytest_infserver` itself.

A backend is a subclass of `InferenceServer` or of one of ours::

    from pytest_infserver import CommandServer
    from pytest_infserver.backends import Phase

    class MyEngine(CommandServer):
        phases = (Phase(re.compile(rb"Loading weights"), "loading weights"),)
"""

from __future__ import annotations

from pytest_infserver.launcher.engine.address_flags import AddressFlags
from pytest_infserver.launcher.engine.changed_options import ChangedOption
from pytest_infserver.launcher.engine.sleep_requests import SleepRequests
from pytest_infserver.launcher.engine_process import EngineProcess
from pytest_infserver.launcher.leaks.report import LeakReport
from pytest_infserver.launcher.profiling.endpoints import ProfileEndpoints
from pytest_infserver.launcher.share import SeveralNodes
from pytest_infserver.launcher.startup.phases import Phase
from pytest_infserver.launcher.startup.probes.probe import Probe
from pytest_infserver.launcher.supervision.exit import Exit, Survivor
from pytest_infserver.leak_finding import Finding
from pytest_infserver.pool.factory import ServerFactory
from pytest_infserver.system.http.address import Address

__all__ = [
    "Address",
    "AddressFlags",
    "ChangedOption",
    "EngineProcess",
    "Exit",
    "Finding",
    "LeakReport",
    "Phase",
    "Probe",
    "ProfileEndpoints",
    "ServerFactory",
    "SeveralNodes",
    "SleepRequests",
    "Survivor",
]
