"""inference_server_factory."""

from __future__ import annotations

import re

import pytest
from fake_servers import fake_command


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
            assert by_mapping.name.startswith("command+") and by_mapping.debug_mode
            pids.extend(server.pid for server in servers[1:])
            by_keywords.stop()
            with pytest.raises(Exception, match="shared with other tests"):
                inference_server.stop()
        def test_2(inference_server): assert len(pids) == 3 and not any(map(alive, pids))
        """
    )
    inline_project.run("--infserver-server=a", "--infserver-max-servers=8").assert_outcomes(passed=2)
    assert inline_project.events("started", "stopped", of=["a"]) == ["started a", "stopped a gone"]
    assert len(inline_project.events("started")) == 4


def test_scopes(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import alive
        pids = {}
        @pytest.fixture(scope="module")
        def shared(inference_server_factory):
            server = inference_server_factory("a", scope="module", env_vars={"SCOPE": "module"})
            pids["module"] = server.pid
            return server
        def running(): return {scope for scope, pid in pids.items() if alive(pid)}
        class TestClass:
            def test_1(self, shared, inference_server_factory):
                for scope in ("function", "class", "session"):
                    pids[scope] = inference_server_factory("a", scope=scope, env_vars={"SCOPE": scope}).pid
                assert len(running()) == 4
            def test_2(self, shared): assert running() == {"class", "module", "session"} and shared.check_health()
        def test_3(inference_server_factory):
            assert running() == {"module", "session"}
            pids["no class"] = inference_server_factory("a", scope="class", fresh=True).pid
        def test_4(): assert running() == {"module", "session"}
        """,
        test_2="""
        from test_1 import running
        def test_5(): assert running() == {"session"}
        """,
    )
    inline_project.run("--infserver-max-servers=8").assert_outcomes(passed=5)


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


def test_each_fresh_one_has_a_log_of_its_own_that_is_called_the_same_in_each_run(twin_project, servers_yaml) -> None:
    servers_yaml(a=[])
    twin_project.files(
        test_1="""
        from helpers import get, note
        def test_one(inference_server, inference_server_factory):
            for number in (1, 2):
                server = inference_server_factory("a", fresh=True)
                get(server, f"/say?text=words-of-{number}")
                note("log", server.name, server.log_path.parent.name, f"words-of-{number}" in server.read_log())
                assert f"words-of-{3 - number}" not in server.read_log()
            server = inference_server
            note("log", server.name, server.log_path.parent.name, "words" in server.read_log())
        """
    )
    for _ in range(2):
        twin_project.run("--infserver-max-servers=5").assert_outcomes(passed=1)
        # Which worker runs it is chance.
        logs = [re.sub(r"\bgw[01]\.", "", line) for line in twin_project.events("log")]
        assert logs == ["log a.fresh-1 a.fresh-1 True", "log a.fresh-2 a.fresh-2 True", "log a a False"]
        (twin_project.path / "events.txt").unlink()


def test_equal_settings_are_one_server_and_one_start(twin_project, servers_yaml) -> None:
    servers_yaml(a=[])
    twin_project.files(
        test_1="""
        import pytest
        from helpers import get, note
        @pytest.fixture(scope="module", params=["1", "2"])
        def server(request, inference_server_factory):
            return inference_server_factory("a", env_vars={"X": request.param})
        @pytest.mark.parametrize("n", range(3))
        def test_one(server, n, inference_server_factory):
            assert inference_server_factory("a", env_vars={"X": get(server, "/argv")["env"]["X"]}) is server
            assert inference_server_factory("a").name == "a"
        """
    )
    twin_project.run("--infserver-max-servers=5").assert_outcomes(passed=6)
    if not twin_project.on_workers:
        assert twin_project.events("started", of=["a+X=1", "a+X=2"]) == ["started a+X=1", "started a+X=2"]


def test_a_parametrised_fixtures_server_is_gone_before_the_next_one(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import alive
        pids = []
        @pytest.fixture(scope="module", params=["1", "2", "3"])
        def server(request, inference_server_factory):
            server = inference_server_factory("a", env_vars={"X": request.param})
            assert not any(map(alive, pids))
            pids.append(server.pid)
            return server
        def test_one(server): assert server.check_health()
        def test_two(server): assert server.check_health()
        """
    )
    inline_project.run().assert_outcomes(passed=6)


def test_a_server_of_a_wider_scope_that_dies_is_there_again_for_the_next_test(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import kill
        @pytest.fixture(scope="module")
        def server(inference_server_factory): return inference_server_factory("a", env_vars={"X": "1"})
        def test_1(server): assert server.check_health()
        def test_2(server): kill(server)
        def test_3(server): assert server.check_health()
        """
    )
    inline_project.run().assert_outcomes(passed=2, failed=1)


def test_a_test_that_wants_more_than_there_can_ever_be_fails_with_the_arithmetic(inline_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[])
    inline_project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver("a")
        def test_1(inference_server, inference_server_factory):
            with pytest.raises(Exception, match="needs 2 servers at the same time.*max-servers allows 1"):
                inference_server_factory("b", env_vars={"X": "1"})
        @pytest.mark.infserver("b")
        def test_2(inference_server_factory, request):
            with inference_server_factory("b", env_vars={"X": "1"}) as server: assert server.check_health()
        """
    )
    inline_project.run("--infserver-max-servers=1").assert_outcomes(passed=2)


def test_two_servers_of_one_name_are_refused_and_equal_ones_are_one(inline_project, servers_yaml) -> None:
    """Nobody gets another server than the one that was described."""
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        from pytest_infserver import ConfigError, variant
        def test_1(inference_server_factory):
            one = inference_server_factory("a", name="mine", env_vars={"X": "1"})
            assert inference_server_factory(variant("a", name="mine", env_vars={"X": "1"})) is one
            for name in ("mine", "a"):
                with pytest.raises(ConfigError, match=f"another server of this run is called '{name}'"):
                    inference_server_factory("a", name=name, env_vars={"X": "2"})
        """
    )
    inline_project.run().assert_outcomes(passed=1)


def test_a_block_gives_back_what_it_asked_for_and_stops_nothing_that_others_use(twin_project, servers_yaml) -> None:
    """Also where a fixture, another worker or the plan has the same server."""
    servers_yaml(a=[])
    twin_project.files(
        test_1="""
        import pytest
        from helpers import alive
        @pytest.fixture(scope="module")
        def held(inference_server_factory): return inference_server_factory("a", env_vars={"X": "1"})
        def test_1(held, inference_server_factory):
            with inference_server_factory("a", env_vars={"X": "1"}) as server:
                assert server is held and server.check_health()
            assert held.check_health()
            with held: pass
            assert held.check_health()
        @pytest.mark.infserver("a")
        def test_2(inference_server, inference_server_factory):
            with inference_server_factory("a") as server: assert server is inference_server
            assert inference_server.check_health()
            with inference_server: pass
            assert inference_server.check_health()
        @pytest.mark.infserver("a", env_vars={"X": "2"})
        def test_3(inference_server, inference_server_factory):
            with inference_server_factory("a", env_vars={"X": "2"}) as server: assert server is inference_server
            assert inference_server.check_health()
        def test_4(inference_server_factory):
            with inference_server_factory("a", fresh=True) as server: pid = server.pid
            assert not alive(pid)
            with inference_server_factory("a", env_vars={"X": "4"}) as server: pid = server.pid
            assert not alive(pid)
        """
    )
    twin_project.run("--infserver-max-servers=8").assert_outcomes(passed=4)


def test_a_server_that_others_use_is_not_stopped_and_the_way_out_is_named(twin_project, servers_yaml) -> None:
    servers_yaml(a=[])
    twin_project.files(
        test_1="""
        import pytest
        from helpers import alive
        @pytest.fixture(scope="module")
        def held(inference_server_factory): return inference_server_factory("a", env_vars={"X": "1"})
        def test_held(held, inference_server_factory):
            server = inference_server_factory("a", env_vars={"X": "1"})
            with pytest.raises(Exception, match="shared with other tests.*fresh=True"): server.stop()
            assert held.check_health()
        @pytest.mark.infserver("a", env_vars={"X": "2"})
        def test_variant(inference_server):
            with pytest.raises(Exception, match="shared with other tests.*fresh=True"): inference_server.stop()
            assert inference_server.check_health()
        def test_fresh(inference_server_factory):
            server = inference_server_factory("a", fresh=True)
            pid = server.pid
            server.stop()
            assert not alive(pid)
        """
    )
    twin_project.run("--infserver-max-servers=8").assert_outcomes(passed=3)


def test_a_test_whose_fixture_cannot_have_its_server_any_more_is_told(inline_project, servers_yaml, quiet) -> None:
    """It has died once too often: the tests that take it fail in their setup, the others do not."""
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import kill
        @pytest.fixture(scope="module")
        def held(inference_server_factory): return inference_server_factory("a", env_vars={"X": "1"})
        def test_1(held): kill(held)
        def test_2(held): pass
        def test_3(): pass
        """
    )
    result = inline_project.run("--infserver-on-crash=fail")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    text = quiet(result)
    assert "the server of the fixture 'held' (scope 'module') is not there any more" in text
    assert "is not restarted" in text
    assert 'scope="function"' in text


def test_a_test_whose_fixture_was_stopped_by_the_one_before_finds_it_running(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        @pytest.fixture(scope="module")
        def held(inference_server_factory): return inference_server_factory("a", env_vars={"X": "1"})
        def test_1(held): held.stop()
        def test_2(held): assert held.check_health()
        """
    )
    inline_project.run().assert_outcomes(passed=2)


def test_a_failed_test_whose_fixture_has_a_server_that_has_ended_is_told_the_scope(
    inline_project, servers_yaml
) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        @pytest.fixture(scope="module")
        def narrow(inference_server_factory): return inference_server_factory("a", scope="function", fresh=True)
        def test_1(narrow): assert narrow.check_health()
        def test_2(narrow): assert narrow.check_health()
        def test_3(): assert 0
        """
    )
    result = inline_project.run()
    result.assert_outcomes(passed=1, failed=2)
    text = result.stdout.str()
    assert text.count("had ended before this test") == 1
    assert "scope='function', and given back after test_1.py::test_1" in " ".join(text.split())
    assert "write scope='module'" in " ".join(text.split())


def test_it_takes_environment_and_directory_at_its_call(twin_project, servers_yaml) -> None:
    """What a test changes before counts, what it changes afterwards does not, nor for anybody else."""
    servers_yaml({"env_vars": {"MINE": "configured"}}, a=[])
    twin_project.files(
        test_1="""
        import os, pathlib, pytest
        from helpers import get, kill
        HERE = os.getcwd()
        def seen(server):
            told = get(server, "/argv")
            return [told["env"].get(name) for name in ("LEAK", "MINE", "GONE")], told["cwd"]
        UNCHANGED = [None, "configured", "there"], HERE
        def test_before(inference_server_factory, monkeypatch, tmp_path):
            monkeypatch.setenv("LEAK", "from-a-test")
            monkeypatch.setenv("MINE", "what is configured counts more")
            monkeypatch.delenv("GONE")
            monkeypatch.chdir(tmp_path)
            server = inference_server_factory("a")
            assert seen(server) == (["from-a-test", "configured", None], str(tmp_path))
            assert inference_server_factory("a") is server
            monkeypatch.setenv("LEAK", "another")
            assert seen(inference_server_factory("a"))[0][0] == "another"
            assert seen(inference_server_factory("a", fresh=True))[0][0] == "another"
        @pytest.fixture(scope="module")
        def held(inference_server_factory):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LEAK", "at-the-call")
                return inference_server_factory("a")
        def test_afterwards(held, monkeypatch, tmp_path):
            monkeypatch.setenv("LEAK", "too-late")
            monkeypatch.chdir(tmp_path)
            assert seen(held) == (["at-the-call", "configured", "there"], HERE)
            kill(held)
        def test_restarted(held): assert seen(held) == (["at-the-call", "configured", "there"], HERE)
        def test_others(inference_server, inference_server_factory):
            assert seen(inference_server) == UNCHANGED
            assert inference_server_factory("a") is inference_server
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GONE", "there")
        twin_project.run("--infserver-max-servers=8", "-v").assert_outcomes(passed=3, failed=1)


def test_without_a_configuration_the_first_call_s_changes_reach_no_other_server(inline_project) -> None:
    """The pool's process is started by that call."""
    inline_project.files(
        test_1=f"""
        import os, sys
        from helpers import get
        COMMAND = {fake_command()!r}
        def leak_of(server): return get(server, "/argv")["env"].get("LEAK"), get(server, "/argv")["cwd"]
        HERE = os.getcwd()
        def test_1(inference_server_factory, monkeypatch, tmp_path):
            monkeypatch.setenv("LEAK", "from-a-test")
            monkeypatch.chdir(tmp_path)
            server = inference_server_factory(backend="command", launch_command=COMMAND)
            assert leak_of(server) == ("from-a-test", str(tmp_path))
        def test_2(inference_server_factory):
            assert leak_of(inference_server_factory(backend="command", launch_command=COMMAND)) == (None, HERE)
        """
    )
    inline_project.bare().assert_outcomes(passed=2)
