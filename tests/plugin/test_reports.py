"""What a test shows of its server when something goes wrong."""

from __future__ import annotations

import re

import pytest


def sections(result: pytest.RunResult) -> list[str]:
    """Return the titles of the sections with logs."""
    return re.findall(r"^-* ?(\w+): log during", result.stdout.str(), re.MULTILINE)


def test_a_failing_test_shows_what_its_server_logged_meanwhile(project, servers_yaml, monkeypatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "very-secret-1")
    servers_yaml(a=["--say", "words of the start"], b=[])
    project.files(
        test_1="""
        import pytest
        from helpers import get
        pytestmark = pytest.mark.infserver("a")
        def say(server, text): get(server, "/say?text=" + text)
        @pytest.fixture
        def bad_setup(inference_server):
            say(inference_server, "in-setup")
            assert 0
        @pytest.fixture
        def bad_teardown(inference_server):
            yield
            say(inference_server, "in-teardown")
            assert 0
        def test_pass(inference_server): say(inference_server, "in-pass")
        def test_fail(inference_server): say(inference_server, "in-fail-very-" + "secret-1") or 1 / 0
        def test_silent(inference_server): assert 0
        def test_setup(bad_setup): pass
        def test_teardown(bad_teardown): pass
        @pytest.mark.xfail
        def test_xfail(inference_server): say(inference_server, "in-xfail") or 1 / 0
        def test_flood(inference_server):
            say(inference_server, "before-the-" + "flood")
            get(inference_server, "/flood?bytes=200000")
            say(inference_server, "after-the-flood")
            assert 0
        """
    )
    result = project.run("-v")
    result.assert_outcomes(passed=2, failed=3, errors=2, xfailed=1)
    assert sections(result) == ["a"] * 5
    text = result.stdout.str()
    for shown in ("in-setup", "in-teardown", "in-fail-********", "(nothing)", "after-the-flood", "bytes left out, see"):
        assert shown in text
    for hidden in ("in-pass", "in-xfail", "very-secret-1", "words of the start", "before-the-" + "flood"):
        assert hidden not in text
    assert "very-secret-1" in (project.path / "server_logs" / "a" / "server.log").read_text()
    result.stdout.fnmatch_lines(["*a: log during this test (command, http://127.0.0.1:*, *server_logs/a/server.log)*"])
    assert len(text) < 40_000


def test_a_secret_that_the_limit_of_the_section_cuts_stays_hidden(project, servers_yaml) -> None:
    secret = "s" * 400 + "-end-of-the-secret"
    servers_yaml({"env_vars": {"MY_TOKEN": secret}}, a=[])
    project.files(
        test_1="""
        from helpers import get
        from pytest_infserver.reporting.sections import MAX_LOG
        def test_it(inference_server):
            secret = get(inference_server, "/argv")["env"]["MY_TOKEN"]
            get(inference_server, "/say?text=" + secret + "x" * (MAX_LOG - 100))
            assert 0, "on purpose"
        """
    )
    result = project.run("--tb=line")
    result.assert_outcomes(failed=1)
    result = project.run("--tb=short")
    assert "bytes left out" in result.stdout.str()
    assert "end-of-the-secret" not in result.stdout.str()


def test_a_start_error_is_an_error_of_each_test_with_the_cause_and_one_attempt(project, servers_yaml, quiet) -> None:
    servers_yaml(
        {"env_vars": {"MY_TOKEN": "very-secret-1"}},
        bad=["--say", "RuntimeError: out of memory", "--exit", "0", "--api-key", "very-secret-2"],
        good=[],
    )
    project.files(
        test_1="""
        def test_1(inference_server): pass
        def test_2(inference_server): pass
        """
    )
    result = project.run("-v")
    result.assert_outcomes(passed=2, errors=2)
    text = quiet(result)
    assert text.count("bad (command) exited with code 0") >= 2
    assert "cause:   RuntimeError: out of memory" in text
    assert "command: MY_TOKEN=********" in text
    assert "--api-key '********'" in text or "--api-key ********" in text
    assert "very-secret" not in text
    assert "server_logs/bad/server.log" in text
    assert (project.path / "server_logs/bad/server.log").read_text().count("out of memory") == 1
    assert sections(result) == ["bad"]
    assert project.events("started", "stopped") == ["started good", "stopped good gone"]


def test_a_start_that_takes_too_long_and_a_binary_that_is_missing(project, servers_yaml, quiet) -> None:
    path = servers_yaml({"startup_timeout": 0.5}, slow=["--delay", "60"])
    path.write_text(path.read_text() + "  none: {backend: command, launch_command: [no-such-binary, '{port}']}\n")
    project.files(test_1="def test_1(inference_server): pass")
    result = project.run("-v", "--reruns=2", plugins=("pytest_rerunfailures",))
    text = quiet(result)
    assert "raise startup_timeout" in text
    assert "'no-such-binary' is not on PATH" in text
    assert "4 rerun" in text
    assert result.ret == pytest.ExitCode.TESTS_FAILED


DEATHS = [("exit0", "/exit?code=0", "exited with code 0"), ("exit3", "/exit?code=3", "exited with code 3")]
DEATHS += [("kill", "/kill?signal=9", "was killed by SIGKILL"), ("segv", "/kill?signal=11", "was killed by SIGSEGV")]


def test_a_server_that_dies_fails_the_test_and_the_next_one_gets_a_new_one(project, servers_yaml) -> None:
    servers_yaml(**{name: [] for name, _, _ in DEATHS})
    project.files(
        test_1=f"""
        import pytest
        from helpers import get, kill
        HOW = {[(name, how) for name, how, _ in DEATHS]!r}
        ports = {{}}
        def test_1_passes(inference_server):
            ports[inference_server.name] = inference_server.port
            kill(inference_server, dict(HOW)[inference_server.name])
        def test_2_good(inference_server):
            assert inference_server.port == ports[inference_server.name] and get(inference_server, "/health") == {{}}
        @pytest.mark.xfail
        def test_3_xfails(inference_server):
            kill(inference_server, dict(HOW)[inference_server.name])
            assert 0
        def test_4_skips(inference_server):
            kill(inference_server, dict(HOW)[inference_server.name])
            pytest.skip("no")
        def test_5_good(inference_server): get(inference_server, "/health")
        """
    )
    result = project.run("-v")
    result.assert_outcomes(passed=8, failed=12)
    for name, _, reason in DEATHS:
        for number in ("1_passes", "3_xfails", "4_skips"):
            result.stdout.fnmatch_lines([f"FAILED test_1.py::test_{number}[[]{name}]*"])
        assert result.outlines.count(f"{name} (command) {reason}, while it was in use") == 3
        assert project.events().count(f"started {name}") == 4
        assert project.events().count(f"stopped {name} gone") == 1


def test_a_failing_test_whose_server_died_shows_the_reason_and_the_last_words(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        from helpers import get
        def test_1(inference_server): get(inference_server, "/exit?code=3&say=last-words")
        """
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *",
            "*inference server died during this test*",
            "a (command) exited with code 3*",
            "*log during*",
            "last-words",
        ]
    )


def test_deaths_in_setup_and_teardown_and_between_tests(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.conftest(
        """
import pytest
from helpers import kill

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    if "test_good" in item.name:
        kill(servers[0])
    return (yield)

servers = []

@pytest.fixture(autouse=True)
def remember(inference_server): servers[:] = [inference_server]
"""
    )
    project.files(
        test_1="""
        import pytest
        from helpers import kill
        @pytest.fixture
        def in_setup(inference_server): kill(inference_server)
        @pytest.fixture
        def in_teardown(inference_server):
            yield
            kill(inference_server)
        def test_setup(in_setup): pass
        def test_teardown(in_teardown): pass
        def test_before(): pass
        def test_good(inference_server): assert inference_server.check_health()
        """
    )
    result = project.run("-v")
    result.assert_outcomes(passed=3, errors=2)
    assert project.events().count("started a") == 4
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_setup*",
            "*ERROR at teardown of test_teardown*",
            "between two tests: a (command) exited*",
        ]
    )


def test_a_server_is_restarted_three_times_at_most(project, servers_yaml, quiet) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        from helpers import kill
        @pytest.mark.parametrize("n", range(6))
        def test_it(inference_server, n): kill(inference_server)
        """
    )
    result = project.run("-v")
    result.assert_outcomes(failed=4, errors=2)
    assert "a (command) has died 4 times and is not restarted any more" in quiet(result)
    assert project.events().count("started a") == 4


def test_a_hung_server_is_killed_and_its_test_fails(project, servers_yaml) -> None:
    servers_yaml({"heartbeat_interval": 0.05, "hang_timeout": 0.3}, a=[])
    project.files(
        test_1="""
        from helpers import get
        def test_1(inference_server):
            get(inference_server, "/sick")
            assert inference_server.wait_death(30)
        def test_2(inference_server): assert inference_server.check_health()
        """
    )
    result = project.run("-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["a (command) hung and was killed: its health check has failed for*503*"])


def test_errors_in_hooks_and_backends_of_the_project_are_errors_of_the_tests(project, servers_yaml) -> None:
    servers_yaml(a=[], b=[])
    project.conftest(
        """
def pytest_infserver_server_started(server):
    if server.name == "a": raise KeyError("user bug at the start")

def pytest_infserver_server_stopping(server):
    raise KeyError("user bug at the stop")
"""
    )
    project.files(test_1="def test_1(inference_server): pass")
    result = project.run("-v")
    result.assert_outcomes(passed=1, errors=3)
    text = result.stdout.str()
    assert "INTERNALERROR" not in text
    assert "pytest_infserver/" not in text
    assert "user bug at the start" in text
    assert text.count("user bug at the stop") >= 2


def test_a_start_that_never_launched_shows_no_old_log(project, servers_yaml) -> None:
    servers_yaml(a=["--say", "words of an earlier run"])
    project.files(test_1="def test_it(inference_server): pass")
    project.run().assert_outcomes(passed=1)
    result = project.run("--infserver-set", "binary_path=no-such-binary")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the binary 'no-such-binary' is not on PATH*"])
    assert sections(result) == []
    assert "words of an earlier run" not in result.stdout.str()


def test_similar_lines_are_shown_once_with_their_number(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        from helpers import get
        def test_it(inference_server):
            for number in range(30):
                get(inference_server, f"/say?text=probe-{number}")
            get(inference_server, "/say?text=other")
            assert 0
        """
    )
    result = project.run()
    result.stdout.fnmatch_lines(["probe-0", "?... 28 similar lines left out?", "probe-29", "other"], consecutive=True)


def test_the_summary_line_says_that_the_server_died(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        from helpers import kill
        def test_it(inference_server):
            kill(inference_server)
            raise ConnectionError("refused")
        """
    )
    result = project.run("-rf")
    line = next(line for line in result.stdout.lines if line.startswith("FAILED"))
    assert "a (command) exited with code 3" in line


def test_a_marker_with_a_slip_of_the_pen_suggests_the_right_name(project, servers_yaml) -> None:
    servers_yaml(tiny=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.backend("comand")
        def test_backend(inference_server): pass
        @pytest.mark.infserver("tinny")
        def test_name(inference_server): pass
        @pytest.mark.infserver("huge-*")
        def test_glob(inference_server): pass
        """
    )
    result = project.run("-rs")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines_random(
        ["*configured: tiny (command); did you mean 'command'?", "*did you mean 'tiny'?"]
    )
    result.stdout.fnmatch_lines(["*fits infserver('huge-[*]'); configured: tiny (command)"])


@pytest.mark.parametrize("hook", ["started", "stopping", "stopped"])
def test_pytest_fail_in_a_hook_is_an_error_of_a_test_and_the_server_is_stopped(project, servers_yaml, hook) -> None:
    servers_yaml(a=[])
    (project.path / "myplugin.py").write_text(
        f"import pytest\ndef pytest_infserver_server_{hook}(server): pytest.fail('wrong version')\n"
    )
    project.files(test_1="def test_it(inference_server): pass")
    result = project.run("-p", "myplugin")
    result.assert_outcomes(passed=0 if hook == "started" else 1, errors=1)
    assert "wrong version" in result.stdout.str()
    assert "INTERNALERROR" not in result.stdout.str()


def test_an_indirect_parameter_that_is_no_name(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.parametrize("inference_server", [["a"]], indirect=True)
        def test_it(inference_server): pass
        """
    )
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no server is called *'a'*"])


@pytest.mark.parametrize(
    ("option", "order"),
    [
        ("--infserver-prelaunch", ["test_2", "test_1", "test_3"]),
        ("--no-infserver-prelaunch", ["test_1", "test_2", "test_3"]),
    ],
)
def test_only_what_needs_no_server_leaves_its_place(project, servers_yaml, option, order) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        def test_3(inference_server): pass
        def test_2(): pass
        def test_1(inference_server): pass
        """
    )
    (project.path / "order.py").write_text(
        "import pytest\n@pytest.hookimpl(trylast=True)\n"
        "def pytest_collection_modifyitems(items): items.sort(key=lambda item: item.name)\n"
    )
    project.run("-p", "order", option).assert_outcomes(passed=3)
    assert [line.split()[1][:6] for line in project.events("test")] == order
