"""How a question to the `Agent` is answered, and what Ray's errors mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray import exceptions

from pytest_infserver.cluster.agent.agent import Agent
from pytest_infserver.cluster.agent.protocol import ANSWERED, AWAY, DEAD, FAILED, LATE, OTHER

_MAX_REASON = 300
_GONE = (
    exceptions.RayActorError,
    exceptions.ActorPlacementGroupRemoved,
    exceptions.ActorUnschedulableError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
    exceptions.TaskPlacementGroupRemoved,
    exceptions.WorkerCrashedError,
)


def answer(agent: Agent, verb: str, arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """Answer a question; nothing is raised."""
    try:
        return ANSWERED, getattr(agent, verb)(**arguments)
    except exceptions.GetTimeoutError:
        return LATE, "no answer in time"
    except (exceptions.ActorUnavailableError, exceptions.ObjectLostError) as error:
        # A long answer may be lost before its node is known to be: the next question gets the reason.
        return AWAY, reason_of(str(error))
    except _GONE as error:
        return DEAD, reason_of(str(error))
    except Exception as error:
        if "WrongClusterID" in str(error):
            return OTHER, "its head node was restarted, and is another cluster now"
        if "failed to import" in str(error):
            return DEAD, reason_of(str(error))
        return FAILED, f"{type(error).__name__}: {error}"


def reason_of(text: str) -> str:
    """Return the part of Ray's message about a dead actor that says why."""
    missing = re.search(r"ModuleNotFoundError: (No module named .*)", text)
    if missing:
        return missing[1].strip()
    found = re.search(r"(?:The actor is dead because|[Tt]he actor died because(?: of)?) (?:it )?(.*)", text)
    creation = re.search(r"^(\w*(?:Error|Exception)\b.*)$", text, re.MULTILINE)
    if "creation task" in text and creation:
        return creation[1]
    words = " ".join((found[1] if found else text.partition("\n")[0]).split())
    # Guesses at what could be the reason, which do not know more than the user.
    words = words.partition(" Some common causes include")[0]
    words = re.sub(r"\.? Worker exit type: \w+ Worker exit detail: ", ": ", words).rstrip(". ")
    return words if len(words) <= _MAX_REASON else f"{words[:_MAX_REASON]} ..."
