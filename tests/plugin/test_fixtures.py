"""The fixtures, and those of projects that depend on them."""

from __future__ import annotations

import re

import pytest


@pytest.mark.promise
def test_dependent_fixtures_are_finished_while_the_server_runs(inline_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import get, note
        def dependent(scope, name):
            @pytest.fixture(scope=scope, name=name)
            def fixture(inference_server):
                yield
                get(inference_server, "/health")
                note("finished", name, inference_server.name)
            return fixture
        s, m, c, f = (dependent(scope, scope[0]) for scope in ("session", "module", "class", "function"))
        def test_1(s, m, c, f): pass
        def test_2(s): pass
        """,
        test_2="""
        from test_1 import s
        def test_3(s): pass
        def test_last(): pass
        """,
    )
    result = inline_project.run()
    result.assert_outcomes(passed=7)
    events = inline_project.events("started", "finished", "stopped")
    assert [event for event in events if event.endswith("a") or " a " in event][-2:] == [
        "finished s a",
        "stopped a gone",
    ]
    for name in ("a", "b"):
        mine = [event for event in events if f" {name}" in event]
        assert mine[0] == f"started {name}"
        assert sorted(mine[1:-1]) == [f"finished {fixture} {name}" for fixture in "cfm"] + [f"finished s {name}"] * (
            mine.count(f"finished s {name}")
        )
        assert mine[-1] == f"stopped {name} gone"


def test_an_error_in_the_teardown_of_a_dependent_is_the_last_tests_and_the_server_stops(
    inline_project, servers_yaml
) -> None:
    servers_yaml(a=[], b=[])
    inline_project.files(
        test_1="""
        import pytest
        @pytest.fixture(scope="session")
        def dependent(inference_server):
            yield
            print("said at the end")
            pytest.fail(f"user error of {inference_server.name}")
        def test_1(dependent): pass
        def test_2(inference_server): pass
        """
    )
    result = inline_project.run("-v")
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_2[[]a]*",
            "E       Failed: user error of a",
            "said at the end",
            "*ERROR at teardown of test_2[[]b]*",
            "E       Failed: user error of b",
        ]
    )
    assert not re.search(r"pytest_infserver/\w+\.py", result.stdout.str())
    for name in "ab":
        assert [line for line in inline_project.events("started", "stopped") if line.split()[1] == name] == [
            f"started {name}",
            f"stopped {name} gone",
        ]


@pytest.mark.parametrize("stop", ["-x", "--maxfail=1"])
def test_dependents_are_finished_before_the_stop_when_the_run_ends_early(inline_project, servers_yaml, stop) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import get, note
        @pytest.fixture(scope="session")
        def dependent(inference_server):
            yield
            get(inference_server, "/health")
            note("finished")
        def test_1(dependent): assert False
        def test_2(dependent): pass
        """
    )
    inline_project.run(stop).assert_outcomes(failed=1)
    assert inline_project.events() == ["started a", "test test_1[a]", "finished", "stopping a", "stopped a gone"]


@pytest.mark.promise
def test_dynamic_requests_get_the_only_server_until_the_end(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import get, kill
        def test_1(request): get(request.getfixturevalue("inference_server"), "/health")
        def test_plain(): pass
        def test_3(request):
            get(request.getfixturevalue("inference_server"), "/health")
            assert 0
        def test_4(request): kill(request.getfixturevalue("inference_server"))
        def test_5(request): get(request.getfixturevalue("inference_server"), "/health")
        def test_6(inference_server): get(inference_server, "/health")
        """
    )
    result = inline_project.run()
    result.assert_outcomes(passed=4, failed=2)
    assert inline_project.events("started", "stopped") == ["started a", "started a", "stopped a gone"]
    result.stdout.fnmatch_lines(["*exited with code 3, while it was in use*"])


def test_several_servers_and_a_dynamic_request_or_a_testcase_give_a_clear_error(
    inline_project, servers_yaml, quiet
) -> None:
    servers_yaml(a=[], b=[])
    inline_project.files(
        test_1="""
        import pytest, unittest
        class TestOld(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def give(self, inference_server): self.server = inference_server
            def test_old(self): pass
            @pytest.mark.infserver("b")
            def test_chosen(self): assert self.server.name == "b"
            @unittest.skip("no")
            def test_skipped(self): pass
        def test_dynamic(request): request.getfixturevalue("inference_server")
        """
    )
    result = inline_project.run()
    result.assert_outcomes(passed=1, failed=1, errors=1, skipped=1)
    text = quiet(result)
    old, dynamic = "test_1.py::TestOld::test_old is a method of a unittest.TestCase", "test_1.py::test_dynamic asks for"
    for words in (old, dynamic, '@pytest.mark.infserver("a")', '@pytest.mark.usefixtures("inference_server")'):
        assert words in text
    assert inline_project.events("started", "stopped") == ["started b", "stopped b gone"]
    inline_project.run("--infserver-server", "a").assert_outcomes(passed=2, skipped=2)


@pytest.mark.promise
def test_a_testcase_works_with_one_server_and_its_dependents_are_finished_in_time(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest, unittest
        from helpers import get, note
        @pytest.fixture(scope="session")
        def dependent(inference_server):
            yield inference_server
            get(inference_server, "/health")
            note("finished")
        class TestOld(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def give(self, dependent): self.server = dependent
            def test_1(self): get(self.server, "/health")
            def test_2(self): get(self.server, "/health")
        def test_other(): pass
        """
    )
    inline_project.run().assert_outcomes(passed=3)
    assert inline_project.events("finished", "test")[:3] == ["test test_1", "test test_2", "finished"]
    assert inline_project.events("finished", "stopped") == ["finished", "stopped a gone"]


def test_doctests_and_items_of_other_kinds_run_beside_ours(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.conftest(
        """
import pytest

class Item(pytest.Item):
    def runtest(self): pass

class File(pytest.File):
    def collect(self): yield Item.from_parent(self, name="thing")

def pytest_collect_file(file_path, parent):
    return File.from_parent(parent, path=file_path) if file_path.suffix == ".thing" else None
"""
    )
    (inline_project.path / "x.thing").touch()
    inline_project.files(
        test_1='''
        def f():
            """
            >>> server = getfixture("inference_server")
            >>> server.check_health()
            True
            """
        def test_it(inference_server): pass
        '''
    )
    inline_project.run("--doctest-modules").assert_outcomes(passed=3)
    assert inline_project.events("started", "stopped") == ["started a", "stopped a gone"]


def test_a_doctest_sees_its_output_also_when_the_start_of_its_server_is_shown_meanwhile(
    inline_project, servers_yaml
) -> None:
    servers_yaml(a=["--delay", "6"])
    inline_project.files(
        test_1='''
        def f():
            """
            >>> server = getfixture("inference_server")
            >>> server.check_health()
            True
            """
        '''
    )
    result = inline_project.run("--doctest-modules")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*infserver: a (command): ready after *"])


def test_a_project_may_override_the_fixture(inline_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[])
    inline_project.conftest(
        "\nimport pytest\n@pytest.fixture(params=[1, 2])\ndef inference_server(request): return request.param\n"
    )
    inline_project.files(
        test_1="""
        import pytest
        @pytest.mark.backend("nothing of ours")
        def test_it(inference_server): assert inference_server in (1, 2)
        """
    )
    inline_project.run().assert_outcomes(passed=2)
    assert inline_project.events("started") == []


def test_a_project_may_wrap_the_fixture(inline_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[])
    inline_project.conftest(
        """
import pytest

@pytest.fixture
def inference_server(inference_server):
    yield ("wrapped", inference_server)
    note("unwrapped", inference_server.name)
"""
    )
    inline_project.files(
        test_1="""
        def test_1(inference_server): assert inference_server[0] == "wrapped" and inference_server[1].running
        def test_2(inference_server): assert inference_server[1].check_health()
        """
    )
    # One place and nothing ahead of time: all in one order.
    inline_project.run("--infserver-max-servers=1", "--no-infserver-prelaunch").assert_outcomes(passed=4)
    assert inline_project.events("started", "unwrapped", "stopped") == [
        *("started a", "unwrapped a", "unwrapped a", "stopped a gone"),
        *("started b", "unwrapped b", "unwrapped b", "stopped b gone"),
    ]


def test_a_server_that_a_test_names_itself_must_be_configured(inline_project, servers_yaml, quiet) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        @pytest.mark.parametrize("inference_server", ["a", "zz", 7], indirect=True)
        def test_it(inference_server): assert inference_server.name == "a"
        """
    )
    result = inline_project.run()
    result.assert_outcomes(passed=1, errors=2)
    assert "no server is called 'zz'; configured: a" in quiet(result)


@pytest.mark.promise
def test_client(inline_project, servers_yaml, monkeypatch) -> None:
    pytest.importorskip("openai")
    servers_yaml({"config": {"server_args": ["--api-key", "very-secret-1"]}}, a=[])
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_API_KEY", "the-users-own-key")
    monkeypatch.delenv("NO_PROXY", raising=False)
    inline_project.files(
        test_1="""
        from helpers import kill
        def chat(client):
            messages = [{"role": "user", "content": "abc"}]
            return client.chat.completions.create(model="fake", messages=messages).choices[0].message.content
        def test_1(inference_client, inference_server):
            assert str(inference_client.base_url).rstrip("/") == inference_server.server_url + "/v1"
            assert inference_client.max_retries == 0
            assert inference_client.api_key == "very-" + "secret-1"
            assert chat(inference_client) == "cba"
            kill(inference_server)
        def test_2(inference_client): assert chat(inference_client) == "cba"
        """
    )
    result = inline_project.run()
    result.assert_outcomes(passed=1, failed=1)
    assert "very-secret-1" not in result.stdout.str()


def test_client_without_openai(inline_project, servers_yaml, quiet) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import sys
        sys.modules["openai"] = None
        def test_1(inference_client): pass
        """
    )
    result = inline_project.run()
    result.assert_outcomes(errors=1)
    assert "pip install 'pytest-infserver[openai]'" in quiet(result)


def test_a_session_reaches_the_server_without_a_proxy(
    inline_project, servers_yaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    servers_yaml(a=["--need-key", "a-key-of-mine", "--api-key", "a-key-of-mine"])
    inline_project.files(
        test_1="""
        import requests
        def test_session(inference_server, inference_session):
            assert inference_session.get("/health", timeout=20).status_code == 200
            assert inference_session.get(inference_server.url_for("/health"), timeout=20).ok
            assert inference_session.base_url == inference_server.server_url
        def test_own_request(inference_server):
            requests.get(inference_server.url_for("/health"), timeout=20)
        """
    )
    result = inline_project.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["proxy: http_proxy is set and NO_PROXY does not exempt 127.0.0.1: requests of your*"])
