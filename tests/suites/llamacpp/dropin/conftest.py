import socket

import pytest

from pytest_infserver.compat_llamacpp import ServerProcess, server_instances


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def tiny():
    def make():
        server = ServerProcess()
        server.server_port = free_port()
        server.model_file = "builtin:tiny"
        server.model_alias = "tiny"
        server.n_threads = 1
        return server

    yield make
    for server in list(server_instances):
        server.stop()
