"""The faults of ``transformers serve``, through the plain API and through the plugin."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_infserver import InferenceServer, PortInUseError, ServerStartupError

from .conftest import all_gone, occupied_while_booting, terminate_when

pytestmark = pytest.mark.engine("transformers")
Make = Callable[..., InferenceServer]


def test_kill_fails_the_test_that_runs_and_the_next_one_gets_a_new_server(
    run_project: Callable[..., pytest.RunResult],
) -> None:
    tests = """
        import os, signal, requests

        def complete(server):
            body = {"model": server.model, "prompt": "Hello", "max_tokens": 4}
            return requests.post(server.url_for("/v1/completions"), json=body, timeout=300)

        def test_kill(inference_server):
            os.kill(inference_server.pid, signal.SIGKILL)
            complete(inference_server)

        def test_next(inference_server):
            assert complete(inference_server).ok
    """
    result = run_project("transformers", tests)
    result.assert_outcomes(passed=1, failed=1)
    assert "transformers was killed by SIGKILL, while it was in use" in result.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "model", "code", "cause"),
    [
        ({"no-such-flag": True}, None, 2, "No such option '--no-such-flag'"),
        ({}, "/no/such/model", 1, "OSError: Repo id must be in the form"),
    ],
)
def test_a_start_that_fails_names_the_cause(
    make_server: Make, arguments: dict[str, object], model: str | None, code: int, cause: str
) -> None:
    server = make_server("transformers", arguments, **({} if model is None else {"model": model}))
    with pytest.raises(ServerStartupError) as caught:
        server.start()
    assert cause in str(caught.value).splitlines()[1], str(caught.value)
    assert caught.value.exit_code == code
    # The engine takes a path that does not exist for a name on the hub.
    assert ("a path that does not exist on this machine" in str(caught.value)) is (model is not None)


def test_a_named_port_that_is_taken_while_it_boots(make_server: Make) -> None:
    server = make_server("transformers", port=8992)
    with occupied_while_booting(server), pytest.raises(PortInUseError) as caught:
        server.start()
    assert "attempting to bind on address ('127.0.0.1', 8992)" in str(caught.value).splitlines()[1]
    assert server.launches == 1


def test_a_port_of_our_choice_that_is_taken_while_it_boots_is_exchanged(make_server: Make) -> None:
    phases: list[str] = []
    server = make_server("transformers")
    server.on_wait = lambda one: phases.append(one.phase) if one.phase not in phases else None
    with occupied_while_booting(server) as blocked:
        server.start()
        # The second launch begins anew; of the first one is seen what its silent port lets through.
        assert "importing" in phases
        assert server.launches == 2
        assert server.port != blocked[0].getsockname()[1]
        assert server.check_health()


def test_sigterm_during_the_start(make_server: Make) -> None:
    server = make_server("transformers")
    seen = terminate_when(server, lambda one: (one.runtime.starting_seconds or 0) > 1)
    with pytest.raises(ServerStartupError, match="transformers was killed by SIGTERM, before it was ready"):
        server.start()
    assert seen
    assert all_gone(seen)
