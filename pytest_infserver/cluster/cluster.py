"""The Ray cluster of one run: connected to when the first server is wanted."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
import sys
import threading
import time
from typing import TYPE_CHECKING

from pytest_infserver.cluster.placement.demand import Demand, demand_on_cluster
from pytest_infserver.errors import ConfigError

if TYPE_CHECKING:
    from pytest_infserver.cluster.connection.connection import ClusterConnection
    from pytest_infserver.cluster.runtime.placements import Placements
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.server import InferenceServer

_REMEMBERED = 30.0
"""Seconds for which it counts that the cluster cannot be reached: N servers do not each wait for that."""


class Cluster:
    """What all parts of a pytest process need to run servers on the cluster.

    Attributes:
        address: ``auto``, ``local`` or ``HOST:PORT``.
        seed: From which the API keys of this run are made; the workers of xdist have the same.
        keyed: The servers for which one was made.
    """

    def __init__(self, address: str, seed: str | None = None) -> None:
        """Note where it is; nobody is connected to.

        Args:
            address: Where.
            seed: That of the run, in a worker of xdist.
        """
        self.address = address
        self.seed = seed or secrets.token_hex(32)
        self.keyed: set[str] = set()
        self._connection: ClusterConnection | None = None
        self._failure: ConfigError | None = None
        self._failed_at = 0.0
        self._closed = False
        self._placements: Placements | None = None
        self._lock = threading.Lock()
        # One of its own: the pool asks for it under its lock, and connecting takes up to a minute.
        self._placements_lock = threading.Lock()

    @property
    def connection(self) -> ClusterConnection:
        """The connection, a new one if the last one is lost.

        Raises:
            ConfigError: The cluster cannot be reached.
        """
        from pytest_infserver.cluster.connection.connection import ClusterConnection

        with self._lock:
            if self._connection is not None and not self._connection.is_lost:
                return self._connection
            if self._closed:
                raise ConfigError(f"--infserver-cluster {self.address}: this run has left it")
            if self._failure is not None and time.monotonic() - self._failed_at < _REMEMBERED:
                raise self._failure.with_traceback(None)
            if self._connection is not None:
                # A head that was restarted, or a new agent, may do.
                self._connection.close()
            try:
                self._connection = ClusterConnection(self.address)
            except ConfigError as error:
                self._connection, self._failure, self._failed_at = None, error, time.monotonic()
                raise
            return self._connection

    @property
    def placements(self) -> Placements:
        """Where this process's servers are there."""
        from pytest_infserver.cluster.runtime.placements import Placements

        with self._placements_lock:
            if self._placements is None:
                self._placements = Placements(lambda: self.connection, self.demand)
            return self._placements

    def adopt(self, server: InferenceServer) -> None:
        """Have a server run on the cluster from its next start on."""
        from pytest_infserver.cluster.runtime.cluster_runtime import ClusterRuntime

        server.runtime = ClusterRuntime(server.runtime, self.placements)

    def demand(self, server: InferenceServer) -> Demand:
        """Return what a server asks of it.

        Raises:
            ConfigError: It asks for what a cluster does not give, or the cluster cannot be reached.
        """
        return demand_on_cluster(server, has_gpus=self.connection.has_gpus)

    def with_api_key(self, config: ServerConfig) -> ServerConfig:
        """Return a server's configuration with an API key, if it has none and its engine takes one in secret.

        It listens where others may reach it, but on a cluster of this machine alone. On the command line the key would
        be seen by all users of the node.
        """
        from pytest_infserver.launcher.factory import create_from_config
        from pytest_infserver.launcher.user_code import asked

        server = create_from_config(config)
        backend = asked(server)
        if self._is_private or server.attached or not backend.api_key_variables or backend.api_key is not None:
            return config
        self.keyed.add(server.name)
        key = hmac.new(self.seed.encode(), server.name.encode(), hashlib.sha256).hexdigest()[:40]
        return dataclasses.replace(config, env_vars={**config.env_vars, backend.api_key_variables[0]: key})

    @property
    def _is_private(self) -> bool:
        # On other systems Ray has only the machine's outer address; see `compat.local_options`.
        return self.address == "local" and sys.platform == "linux"

    def close(self) -> None:
        """Leave it: what this process has started there ends."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
