"""The hooks of a session whose tests xdist's workers run, in its controller; registered where there are workers."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.session.current_run import BROKER, POOL_REQUESTS, RUN, WORKER_NOTES, run_of

if TYPE_CHECKING:
    from pytest_infserver.pool.broker.pool_requests import PoolRequests


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist where it gets its servers, and where it leaves what the summary is to show."""
    from pytest_infserver.errors import InferenceServerError
    from pytest_infserver.pool.broker.broker import INPUT as POOL
    from pytest_infserver.reporting.record.worker_notes import INPUT, WorkerNotes

    if WORKER_NOTES not in node.config.stash:
        node.config.stash[WORKER_NOTES] = WorkerNotes()
    node.workerinput[INPUT] = node.config.stash[WORKER_NOTES].folder
    if BROKER not in node.config.stash:
        # Nobody knows yet whether the tests want servers.
        node.workerinput[POOL] = _pool_requests(node.config).key
        return
    memory = node.config.stash[RUN].memory
    if memory is not None:
        from pytest_infserver.pool.collection import remembered

        node.workerinput[remembered.INPUT] = remembered.as_input(memory)
    try:
        node.workerinput[POOL] = node.config.stash[BROKER].key
    except InferenceServerError as error:
        raise pytest.UsageError(str(error)) from None


def _pool_requests(config: pytest.Config) -> PoolRequests:
    from pytest_infserver.pool.broker.pool_requests import PoolRequests

    def open_pool() -> Mapping[str, Any]:
        if BROKER not in config.stash:
            from pytest_infserver.setup import open_broker

            config.stash[BROKER] = open_broker(config, run_of(config))
        return config.stash[BROKER].key

    if POOL_REQUESTS not in config.stash:
        config.stash[POOL_REQUESTS] = PoolRequests(open_pool)
    return config.stash[POOL_REQUESTS]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of one server to the workers together, where xdist leaves the order to its scheduler."""
    if BROKER not in config.stash or config.getoption("dist") not in ("load", "worksteal"):
        return None
    from pytest_infserver.pool.broker.affinity import ServerAffinity

    broker = config.stash[BROKER]
    return ServerAffinity(config, log, broker.servers_of, broker.is_ready, broker.in_order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    """End a run that wants more than there is; in a worker it would be an internal error."""
    if BROKER not in node.config.stash:
        return
    from pytest_infserver.errors import InferenceServerError

    try:
        refusal = node.config.stash[BROKER].refusal
    except InferenceServerError as error:
        refusal = str(error)
    if refusal is not None:
        raise pytest.UsageError(refusal)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take back what a worker had that has ended."""
    if BROKER in node.config.stash:
        node.config.stash[BROKER].leave(node.gateway.id)
        if error == "keyboard-interrupt":
            node.config.stash[BROKER].wind_up()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> Generator[None, object, object]:
    """Remember the tests of xdist's workers, for what turns up after them; end a run that has to end."""
    node = getattr(report, "node", None)
    if node is None or BROKER not in node.config.stash:
        return (yield)
    node.config.stash[RUN].know(report)
    session = node.config.pluginmanager.getplugin("session")
    if session is not None and (session.shouldfail or session.shouldstop):
        # The other workers would first wait for all servers of the tests that they have got already.
        node.config.stash[BROKER].wind_up()
    result = yield
    node.config.stash[BROKER].raise_exit()
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Stop the servers of xdist's controller while an error can still make the run fail."""
    result = yield
    if BROKER in session.config.stash:
        session.config.stash[RUN].close()
    return result
