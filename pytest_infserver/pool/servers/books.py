"""What is known of the servers of a run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.pool.planning.planner import Planner
    from pytest_infserver.pool.room import Room
    from pytest_infserver.pool.servers.failures import Failures
    from pytest_infserver.pool.servers.handles import Handles
    from pytest_infserver.pool.servers.planned import PlannedTests
    from pytest_infserver.pool.servers.policy import Policy
    from pytest_infserver.pool.servers.run_end import RunEnd
    from pytest_infserver.pool.servers.tickets import Tickets


@dataclass(frozen=True)
class Books:
    """What a pool keeps account of; all of it is guarded by its one lock, unless the part says otherwise.

    Attributes:
        changed: The lock, with those who wait for a change.
        room: How many servers may run at the same time.
        policy: What the user wants.
        planner: Decides which server runs when, and who gets it.
        handles: The servers.
        planned: The tests that are going to run, and the last uses of the servers.
        failures: Which servers could not be had or have died.
        tickets: Who waits for servers and has them.
        end: How the run ends.
        incidents: What happened to servers and is worth a word.
    """

    changed: threading.Condition
    room: Room
    policy: Policy
    planner: Planner
    handles: Handles
    planned: PlannedTests
    failures: Failures
    tickets: Tickets
    end: RunEnd
    incidents: list[str]

    def tell_once(self, incident: str) -> None:
        """Note an incident, unless it is known; also without the lock."""
        if incident not in self.incidents:
            self.incidents.append(incident)
