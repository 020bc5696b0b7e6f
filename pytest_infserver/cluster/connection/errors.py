"""What can go wrong with a cluster, and with what runs there."""

from __future__ import annotations

from pytest_infserver.errors import ConfigError, InferenceServerError


class Unreachable(ConfigError):
    """The cluster cannot be connected to."""


class ClusterLost(InferenceServerError):
    """The cluster cannot be reached any more."""


class ActorLost(InferenceServerError):
    """What runs a server on its node is gone; the text says why, as a sentence's end."""


class NoAnswer(InferenceServerError):
    """There was no answer in time."""


class ActorAway(NoAnswer):
    """The connection to what runs a server on its node is broken, for a moment or for good."""
