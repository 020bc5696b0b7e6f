"""Whether a cluster can be reached: what is found out before Ray is asked, and what Ray's own words mean."""

from __future__ import annotations

import importlib.util
import os
import re
import socket

from pytest_infserver.cluster.connection.errors import Unreachable
from pytest_infserver.errors import ConfigError

_PROBE_LIMIT = 5.0


def require_ray(address: str) -> None:
    """Find out whether Ray is installed, and can be used with this address.

    Raises:
        ConfigError: It is not, or cannot.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"--infserver-cluster {address}: Ray Client is not enough, the tests must reach the nodes: run pytest on"
            " one of them, with --infserver-cluster auto, or as 'ray job submit -- pytest ...'"
        )
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--infserver-cluster needs Ray: pip install 'pytest-infserver[ray]'")


def require_head(address: str) -> None:
    """Find out whether the head node of a cluster listens there: Ray needs a minute for that, and does not say it.

    Raises:
        ConfigError: None does.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--infserver-cluster {address}: write auto, local, or HOST:PORT of the cluster's head node")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PROBE_LIMIT) as probe:
            if _speaks_grpc(probe):
                return
            why = "what listens there does not answer as the head node of a Ray cluster does"
    except socket.gaierror:
        why = f"nobody knows a host {host}"
    except ConnectionRefusedError:
        why = "nothing listens there"
    except OSError as error:
        why = f"it cannot be reached ({error})"
    raise Unreachable(
        f"--infserver-cluster {address}: {why}; it is to be the address of the cluster's head node, which"
        " 'ray start --head' shows there (port 6379 unless it was given another one)"
    )


def _speaks_grpc(probe: socket.socket) -> bool:
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True
    # Either side of HTTP/2 begins with its settings: 3 bytes of length, and the type of the frame.
    try:
        probe.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        head = b""
        while len(head) < 4 and (data := probe.recv(4 - len(head))):
            head += data
    except OSError:
        return False
    return head[3:] == b"\4"


def advice(address: str, problem: str) -> str:
    """Return what is wrong, and what to do, after Ray has said why it does not connect."""
    first = problem.partition("\n")[0].strip()
    if address == "local":
        return f"Ray does not start: {first}"
    if "Could not find any running Ray instance" in problem:
        return "no Ray cluster runs here; 'ray start --head' starts one, and --infserver-cluster local one for this run"
    if "GCS" in problem or "has not answered" in problem:
        return f"its head node does not answer; 'ray status --address {address}' may say more"
    if "ersion mismatch" in problem:
        versions = re.findall(r"(?:Ray|Python): (\S+)", problem)
        if len(versions) == 4:
            first = "Ray {} for Python {} there, Ray {} for Python {} here".format(*versions)
        return f"the cluster has another version than this environment: {first}; both must be the same"
    return f"the cluster cannot be reached: {first}"
