"""Tests wait for what the hook `pytest_infserver_server_started` does with their servers: a warm-up, say."""

from __future__ import annotations

WARM = """
import time
from helpers import note

def pytest_infserver_server_started(server):
    time.sleep(0.5)
    note("warm", server.name)
"""
TESTS = """
from helpers import EVENTS

def is_warm(server):
    return f"warm {server.name}\\n" in EVENTS.read_text()

def test_configured(inference_server):
    assert is_warm(inference_server)

def test_of_the_factory(inference_server_factory):
    assert is_warm(inference_server_factory("mine", env_vars={"NAME": "another"}))
"""


def test_tests_wait_for_it(twin_project, quiet) -> None:
    twin_project.servers(mine=[])
    # A plugin of its own: the project's conftest.py has this hook already.
    twin_project.files(warm=WARM, test_it=TESTS)
    quiet(twin_project.run(plugins=("warm",)))
    assert twin_project.outcomes("test_it") == {"passed": 2}
