"""Why a test must not stop a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.servers.books import Books


def shared(server: InferenceServer) -> str:
    """Return why a test must not stop a server."""
    return (
        f"{server} is shared with other tests: a test must not stop it; @pytest.mark.infserver(exclusive=True) gives"
        " it one alone, inference_server_factory(..., fresh=True) starts one that it may stop"
    )


def stop_refusal(server: InferenceServer, books: Books) -> str | None:
    """Return why a test must not stop a server; who has asked the factory for one that nobody else uses may."""
    name, planner = server.name, books.planner
    with books.changed:
        is_own = name in books.handles.added and not planner.is_planned(name) and len(planner.leases(name)) <= 1
    return None if is_own else shared(server)


def why_down(server: InferenceServer, books: Books) -> str:
    """Return why a test must not stop a server that does not run; under the lock."""
    if server.name in books.failures:
        return f"{server} does not run: it has failed, and is not started again in this run"
    if books.planner.is_wanted(server.name):
        return f"{server} has been stopped: it is started again for the next test that needs it"
    return f"{server} has been stopped: no later test of this run was known to want it"
