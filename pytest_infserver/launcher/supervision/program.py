"""How Python runs the supervisor; imports nothing of it, for the processes that only start one."""

from __future__ import annotations

HOME_VARIABLE = "INFSERVER_SUPERVISOR_HOME"
"""Names the folder that the package is imported from: under -I nothing of ours can be found otherwise."""
PROGRAM = f"""\
import os, sys
sys.path.append(os.environ["{HOME_VARIABLE}"])
__import__("py" "test_infserver.launcher.supervision.supervisor", fromlist=["main"]).main()
"""
"""What Python runs. No command line of ours may say what is in two parts here: people end a run that hangs by
``pkill -9 -f pytest``, and then somebody must be left to stop the servers."""


def home() -> str:
    """Return the value of `HOME_VARIABLE`."""
    return __file__.rpartition("/pytest_infserver/")[0]
