"""The fixtures for clients, wherever a project overrides inference_server, and what a test may do to its server."""

from __future__ import annotations

import pytest
from fake_servers import fake_block

pytest.importorskip("openai")


def test_both_clients_talk_to_each_server(twin_project, quiet):
    twin_project.servers(small=[], large=[])
    twin_project.files(
        test_it="""
            import asyncio

            import pytest

            @pytest.fixture(scope="session")
            def session_client(inference_async_client):
                return inference_async_client

            @pytest.mark.parametrize("number", range(2))
            def test_both(inference_server, inference_client, session_client, number):
                assert inference_client.models.list().data[0].id == inference_server.api_model == "fake"
                assert str(session_client.base_url).startswith(inference_server.server_url)
                assert asyncio.run(listed(session_client)) == "fake"

            async def listed(client):
                return (await client.models.list()).data[0].id
        """
    )
    result = twin_project.run("-W", "error")
    result.assert_outcomes(passed=4)
    quiet(result)


def test_clients_have_the_scope_of_an_overridden_server(inline_project, quiet):
    inline_project.files(
        stand_in="""
            class Server:
                def __init__(self, name):
                    self.name = name

                def client(self):
                    return Client(self.name)

                async_client = client

            class Client:
                def __init__(self, name):
                    self.name, self.closed = name, False

                def close(self):
                    self.closed = True
        """,
        test_of_module="""
            import pytest
            from stand_in import Server

            made = []

            @pytest.fixture(scope="module")
            def inference_server():
                made.append(1)
                return Server("module")

            @pytest.fixture(scope="module")
            def own(inference_client):
                return inference_client

            @pytest.mark.parametrize("number", range(2))
            def test_one(inference_client, inference_async_client, own, number):
                assert inference_client.name == inference_async_client.name == "module"
                assert inference_client is own and not own.closed
                assert len(made) == 1
        """,
        test_of_function="""
            import pytest
            from stand_in import Server

            seen = []

            class TestAll:
                @pytest.fixture(params=["a", "b"])
                def inference_server(self, request):
                    return Server(request.param)

                def test_two(self, inference_client, inference_async_client, inference_server):
                    assert inference_client.name == inference_async_client.name == inference_server.name
                    assert all(one.closed for one in seen)
                    seen.append(inference_client)
        """,
    )
    result = inline_project.bare()
    result.assert_outcomes(passed=4)
    quiet(result)


def test_without_openai_the_client_says_what_to_install(inline_project, quiet):
    inline_project.servers(small=[])
    inline_project.files(
        test_it="""
            import sys

            import pytest

            @pytest.fixture(scope="session", autouse=True)
            def no_openai():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setitem(sys.modules, "openai", None)
                    yield

            def test_it(inference_server, inference_async_client):
                pass
        """
    )
    result = inline_project.run()
    result.assert_outcomes(errors=1)
    assert "pip install 'pytest-infserver[openai]'" in quiet(result)


def test_a_reset_comes_before_each_test_and_its_refusal_fails_one(twin_project, quiet):
    events = twin_project.path / "engine.txt"
    twin_project.servers(
        {"env_vars": {"FAKE_EVENTS": str(events)}},
        good=fake_block(reset="/reset"),
        bad=fake_block(reset=["/none"]),
    )
    twin_project.files(
        test_it="""
            import pathlib

            import pytest

            FILE = pathlib.Path("engine.txt")

            @pytest.mark.infserver("good")
            @pytest.mark.parametrize("number", range(3))
            def test_good(inference_server, number):
                assert FILE.read_text().count("POST /reset") >= 1

            @pytest.mark.infserver("bad")
            def test_bad(inference_server):
                pass
        """
    )
    result = twin_project.run()
    result.assert_outcomes(passed=3, errors=1)
    assert "POST /none was answered 404" in quiet(result)
    assert events.read_text().count("POST /reset") == 3


def test_signals_reach_a_server_that_a_test_has_alone(twin_project, quiet):
    twin_project.servers(small=[])
    twin_project.files(
        test_it="""
            import signal

            import pytest

            def test_shared(inference_server):
                with pytest.raises(Exception, match="shared"):
                    inference_server.process.send_signal(signal.SIGTERM)
                assert inference_server.process.poll() is None

            @pytest.mark.infserver(exclusive=True)
            def test_killed(inference_server):
                process = inference_server.process
                process.send_signal(signal.SIGKILL)
                assert process.wait(timeout=20) == process.returncode == -9
                inference_server.start()
                assert inference_server.process.pid != process.pid

            @pytest.mark.infserver(exclusive=True)
            def test_stopped(inference_server):
                process = inference_server.process
                inference_server.stop()
                assert process.wait(timeout=20) in (0, -15)
                inference_server.start()
        """
    )
    result = twin_project.run()
    result.assert_outcomes(passed=3)
    quiet(result)


def test_a_line_of_a_shared_servers_log_is_waited_for(twin_project, quiet):
    twin_project.servers(small=[])
    twin_project.files(
        test_it="""
            import pytest
            from helpers import get

            def test_it(inference_server):
                mark = inference_server.log_size
                get(inference_server, "/say?text=prefix+cache+reset")
                assert inference_server.wait_for_log("cache (reset)$", since=mark, timeout=10).group(1) == "reset"
                with pytest.raises(TimeoutError):
                    inference_server.wait_for_log("cache reset", since=inference_server.log_size, timeout=0.1)
        """
    )
    result = twin_project.run()
    result.assert_outcomes(passed=1)
    quiet(result)


def test_the_async_client_is_good_in_loops_of_any_scope(project, quiet):
    pytest.importorskip("pytest_asyncio")
    project.servers(small=[])
    project.files(
        test_it="""
            import pytest
            import pytest_asyncio

            @pytest_asyncio.fixture(scope="module", loop_scope="module")
            async def first_model(inference_async_client):
                return (await inference_async_client.models.list()).data[0].id

            @pytest.mark.asyncio(loop_scope="module")
            async def test_in_the_loop_of_the_module(inference_async_client, first_model):
                assert (await inference_async_client.models.list()).data[0].id == first_model

            @pytest.mark.asyncio
            @pytest.mark.parametrize("number", range(2))
            async def test_in_a_loop_of_its_own(inference_async_client, number):
                async with inference_async_client.models.with_streaming_response.list() as answer:
                    assert "fake" in await answer.text()

            @pytest.mark.anyio
            @pytest.mark.parametrize("number", range(2))
            async def test_with_anyio(inference_async_client, number):
                assert (await inference_async_client.models.list()).data[0].id == "fake"

            @pytest.fixture
            def anyio_backend():
                return "asyncio"
        """
    )
    ini = ("-o", "asyncio_default_fixture_loop_scope=function")
    result = project.run("-W", "error", *ini, plugins=("pytest_asyncio.plugin", "anyio.pytest_plugin"))
    result.assert_outcomes(passed=5)
    quiet(result)
