"""inference_server_factory."""

from __future__ import annotations

import pytest


@pytest.mark.promise
def test_servers_by_name_keywords_and_mapping_are_stopped_with_the_test(inline_project, servers_yaml) -> None:
    servers_yaml(a=["--said", "by-a"], b=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import alive, get
        pids = []
        @pytest.mark.infserver("a")
        def test_1(inference_server, inference_server_factory):
            by_name = inference_server_factory("a", port=None, env_vars={"X": "1"})
            command = list(by_name.settings.launch_command)
            by_keywords = inference_server_factory(backend="command", launch_command=command, name="mine")
            by_mapping = inference_server_factory({"backend": "command", "launch_command": command}, debug_mode=True)
            servers = [inference_server, by_name, by_keywords, by_mapping]
            assert len({server.port for server in servers}) == 4
            assert get(by_name, "/argv")["env"]["X"] == "1" and "by-a" in get(by_name, "/argv")["argv"]
            assert "X" not in get(inference_server, "/argv")["env"]
            assert by_mapping.name == "command" and by_mapping.debug_mode
            pids.extend(server.pid for server in servers[1:])
            by_keywords.stop()
            with pytest.raises(Exception, match="shared with other tests"):
                inference_server.stop()
        def test_2(inference_server): assert len(pids) == 3 and not any(map(alive, pids))
        """
    )
    inline_project.run("--infserver-server=a").assert_outcomes(passed=2)
    assert inline_project.events("started", "stopped") == ["started a", "stopped a gone"]


def test_scopes(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import alive
        pids = {}
        @pytest.fixture(scope="module")
        def shared(inference_server_factory):
            server = inference_server_factory("a", scope="module")
            pids["module"] = server.pid
            return server
        def running(): return {scope for scope, pid in pids.items() if alive(pid)}
        class TestClass:
            def test_1(self, shared, inference_server_factory):
                for scope in ("function", "class", "session"):
                    pids[scope] = inference_server_factory("a", scope=scope).pid
                assert len(running()) == 4
            def test_2(self, shared): assert running() == {"class", "module", "session"} and shared.check_health()
        def test_3(inference_server_factory):
            assert running() == {"module", "session"}
            pids["no class"] = inference_server_factory("a", scope="class").pid
        def test_4(): assert running() == {"module", "session"}
        """,
        test_2="""
        from test_1 import running
        def test_5(): assert running() == {"session"}
        """,
    )
    inline_project.run().assert_outcomes(passed=5)


def test_mistakes_and_failed_starts_are_errors_without_our_traceback(inline_project, servers_yaml, quiet) -> None:
    servers_yaml(alpha=["--exit", "3", "--say", "Error: no such weights"])
    inline_project.files(
        test_1="""
        import pytest
        def test_name(inference_server_factory): inference_server_factory("alpa")
        def test_scope(inference_server_factory): inference_server_factory("alpha", scope="modul")
        def test_keyword(inference_server_factory): inference_server_factory("alpha", prt=1)
        def test_backend(inference_server_factory): inference_server_factory(backend="vlm", model="x")
        def test_nothing(inference_server_factory): inference_server_factory()
        TOKEN = "very-" + "secret-1"
        def test_start(inference_server_factory): inference_server_factory("alpha", env_vars={"MY_TOKEN": TOKEN})
        @pytest.fixture(scope="module")
        def broken(inference_server_factory): return inference_server_factory("alpha", scope="module")
        def test_fixture(broken): pass
        """
    )
    result = inline_project.run()
    result.assert_outcomes(failed=6, errors=1)
    text = quiet(result)
    assert "'alpa'" in text
    assert "'alpha'" in text
    assert "'modul'" in text
    assert "'prt'" in text
    assert "'port'" in text
    assert "'vlm'" in text
    assert "exited with code 3" in text
    assert "cause:   Error: no such weights" in text
    assert "MY_TOKEN=********" in text
    assert "very-secret-1" not in text


def test_factory_needs_no_configuration_and_knows_the_projects_backends(inline_project) -> None:
    inline_project.conftest(
        """
from pytest_infserver import CommandServer
class Mine(CommandServer):
    def get_backend_name(self): return "mine"
def pytest_infserver_backends(config): return [Mine]
"""
    )
    inline_project.files(
        test_1="""
        import pytest
        def test_backend(inference_server_factory):
            with pytest.raises(Exception, match="launch_command"):
                inference_server_factory(backend="mine")
        """
    )
    inline_project.bare().assert_outcomes(passed=1)


def test_logs_deaths_and_leaks_of_these_servers_are_reported_at_the_test(inline_project, servers_yaml) -> None:
    servers_yaml(a=[], leaky=["--children", "1", "--stubborn-children", "--forget-children"])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import get, kill
        @pytest.fixture(scope="module")
        def shared(inference_server_factory): return inference_server_factory("a", scope="module")
        def test_1(shared): get(shared, "/say?text=first-words")
        def test_2(shared, inference_server_factory):
            other = inference_server_factory("a", name="other")
            get(shared, "/say?text=second-words")
            get(other, "/say?text=other-words")
            assert 0
        @pytest.mark.infserver("a")
        def test_3(inference_server, inference_server_factory):
            own = inference_server_factory("a")
            kill(own)
        def test_4(inference_server_factory): inference_server_factory("leaky", debug_mode=True, stop_timeout=2)
        def test_5(): pass
        """
    )
    result = inline_project.run("-v", "--reruns=1", "--only-rerun=nothing", plugins=("pytest_rerunfailures",))
    result.assert_outcomes(passed=3, failed=2, errors=1)
    text = result.stdout.str()
    assert "second-words" in text
    assert "other-words" in text
    assert "first-words" not in text
    result.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_4*", "leaky*", "*exited with code 3, while it was in use*"]
    )
