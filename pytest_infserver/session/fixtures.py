"""The fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import pytest

from pytest_infserver.session.current_run import BEFORE_TESTS, run_for_fixture

if TYPE_CHECKING:
    import openai
    import requests

    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.measures.inference_load import InferenceLoad
    from pytest_infserver.measures.inference_score import InferenceScore
    from pytest_infserver.snapshots.response_snapshot import ResponseSnapshot

_Client = TypeVar("_Client")


@pytest.fixture(scope="session")
def inference_server(request: pytest.FixtureRequest) -> InferenceServer:
    """A running inference server; the test runs once on each configured one that its marks allow.

    The value stays the same object, with the same name, port and URL, when the server is started again.
    """
    run = run_for_fixture(request.config)
    return run.handle(run.choice.named(getattr(request, "param", None), run.item))


@pytest.fixture
def inference_servers(request: pytest.FixtureRequest) -> Mapping[str, InferenceServer]:
    """The running servers that ``@pytest.mark.infserver_needs("a", "b")`` names, by name; all of them or none."""
    return run_for_fixture(request.config).needed(request.node)


@pytest.fixture(scope="session")
def inference_server_factory(request: pytest.FixtureRequest) -> Callable[..., InferenceServer]:
    """Starts more servers: ``factory("name")`` or ``factory(backend=..., model=...)``, stopped with their scope.

    ``scope`` is function (default), class, module, package or session. Keywords beside a name replace its settings.
    """
    from pytest_infserver.pool.factory import ServerFactory

    before = request.config.stash.get(BEFORE_TESTS, None)
    return ServerFactory(run_for_fixture(request.config), request.session, before)


@pytest.fixture(scope="session")
def inference_client(inference_server: InferenceServer) -> Iterator[openai.OpenAI]:
    """An ``openai.OpenAI`` for the current server, without retries (extra ``openai``)."""
    client = _client_of(inference_server.client)
    yield client
    client.close()


@pytest.fixture(scope="session")
def inference_async_client(inference_server: InferenceServer) -> openai.AsyncOpenAI:
    """An ``openai.AsyncOpenAI`` for the current server, good in every event loop (extra ``openai``)."""
    # Nothing to close: it keeps no connection.
    return _client_of(inference_server.async_client)


@pytest.fixture(scope="session")
def inference_session(inference_server: InferenceServer) -> Iterator[requests.Session]:
    """A ``requests.Session`` for the current server: with its key and certificates, and without proxies."""
    from pytest_infserver.launcher.clients.openai_clients import make_session

    with _client_of(lambda: make_session(inference_server)) as session:
        yield session


@pytest.fixture
def response_snapshot(request: pytest.FixtureRequest) -> ResponseSnapshot:
    """Compares answers with stored ones: ``response_snapshot(answer, rtol=0.2, ignore=["usage"])``; extra ``snapshot``.

    Texts are compared exactly, log probabilities within the tolerance. ``--snapshot-update`` stores them.
    """
    if not request.config.pluginmanager.hasplugin("syrupy"):
        pytest.fail("response_snapshot needs syrupy: pip install 'pytest-infserver[snapshot]'", pytrace=False)
    from pytest_infserver.snapshots.response_snapshot import ResponseSnapshot

    has_server = "inference_server" in request.fixturenames
    server = request.getfixturevalue("inference_server") if has_server else None
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    return ResponseSnapshot(request.getfixturevalue("snapshot"), server, is_in_id="inference_server" in parameters)


@pytest.fixture
def inference_load(request: pytest.FixtureRequest, inference_server: InferenceServer) -> InferenceLoad:
    """Sends many requests to the current server: ``inference_load(concurrency=16, requests=200)``; extra ``load``.

    What it returns has times, rates and failures, and ``assert_not_slower()``.
    """
    from pytest_infserver.measures.inference_load import InferenceLoad

    return InferenceLoad(request.node, inference_server, run_for_fixture(request.config).settings)


@pytest.fixture
def inference_score(request: pytest.FixtureRequest) -> InferenceScore:
    """Records a figure of a test beside its limits and its baseline: ``inference_score("gsm8k", 0.93, min=0.9)``."""
    from pytest_infserver.measures.inference_score import InferenceScore
    from pytest_infserver.settings import read_settings

    has_server = "inference_server" in request.fixturenames
    server = request.getfixturevalue("inference_server") if has_server else None
    return InferenceScore(request.node, server, read_settings(request.config))


def _client_of(make: Callable[[], _Client]) -> _Client:
    from pytest_infserver.errors import InferenceServerError

    try:
        return make()
    except InferenceServerError as error:
        pytest.fail(str(error), pytrace=False)
