"""What a test shows of its server when something goes wrong."""

from __future__ import annotations

import re
import string
import sys

import pytest
from fake_servers import fake_block
from installed import installed
from parts import part

SECRETS = {"env_vars": {"MY_TOKEN": "very-secret-1"}}
DEATHS = [("exit0", "/exit?code=0", "exited with code 0"), ("exit3", "/exit?code=3", "exited with code 3")]
DEATHS += [("kill", "/kill?signal=9", "was killed by SIGKILL"), ("segv", "/kill?signal=11", "was killed by SIGSEGV")]


@pytest.fixture(scope="module")
def shared(shared_project):
    """A project with a file of tests for each kind of mishap, each with servers of its own; and what its run showed."""
    project = shared_project(MY_TOKEN="very-secret-1")
    project.servers(
        says=["--say", "words of the start"],
        bad=fake_block("--say", "RuntimeError: out of memory", "--exit", "0", "--api-key", "very-secret-2", **SECRETS),
        good=fake_block(**SECRETS),
        slow=fake_block("--delay", "60", startup_timeout=0.5),
        none={"backend": "command", "launch_command": ["no-such-binary", "{port}"]},
        **{name: [] for name, _, _ in DEATHS},
        last_words=[],
        phases=[],
        four_times=[],
        hung=fake_block(heartbeat_interval=0.05, hang_timeout=1.5),
        similar=[],
        one=[],
    )
    project.conftest(BETWEEN)
    project.files(
        test_log=LOG,
        test_start_error=START_ERROR,
        test_no_start=NO_START,
        test_deaths=TESTS_OF_DEATHS,
        test_last_words=LAST_WORDS,
        test_phases=PHASES,
        test_four_times=FOUR_TIMES,
        test_hung=HUNG,
        test_similar=SIMILAR,
        test_one=ONE_LINE,
    )
    return project, project.run("-v", "--infserver-max-servers=4", plugins=installed("pytest_rerunfailures"))


@pytest.fixture
def everything(shared):
    """Return the shared project."""
    return shared[0]


@pytest.fixture
def result(shared):
    """Return what the shared project's run showed."""
    return shared[1]


def sections(result: pytest.RunResult | pytest.LineMatcher) -> list[str]:
    """Return the titles of the sections with logs."""
    text = result.stdout.str() if isinstance(result, pytest.RunResult) else result.str()
    return re.findall(r"^-* ?(\w+): log during", text, re.MULTILINE)


@pytest.mark.promise
def test_nothing_of_the_inside_is_shown_and_the_run_has_failed(result, quiet) -> None:
    quiet(result)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


LOG = """
import pytest
from helpers import get
pytestmark = pytest.mark.infserver("says")
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
def test_says_and_passes(inference_server): say(inference_server, "in-pass")
def test_says_and_fails(inference_server): say(inference_server, "in-fail-very-" + "secret-1") or 1 / 0
def test_silent(inference_server): assert 0
def test_says_in_setup(bad_setup): pass
def test_says_in_teardown(bad_teardown): pass
@pytest.mark.xfail
def test_says_and_xfails(inference_server): say(inference_server, "in-xfail") or 1 / 0
def test_flood(inference_server):
    say(inference_server, "before-the-" + "flood")
    get(inference_server, "/flood?bytes=200000")
    say(inference_server, "after-the-flood")
    assert 0
"""


@pytest.mark.promise
def test_a_failing_test_shows_what_its_server_logged_meanwhile(everything, result) -> None:
    assert everything.outcomes("test_log") == {"passed": 2, "failed": 3, "errors": 2, "xfailed": 1}
    assert sections(result).count("says") == 5
    names = ("test_says_in_setup", "test_says_in_teardown", "test_says_and_fails", "test_silent", "test_flood")
    shown = part(result, *names)
    assert sections(shown) == ["says"] * 5
    for words in ("in-setup", "in-teardown", "in-fail-********", "(nothing)", "after-the-flood", "bytes left out, see"):
        assert words in shown.str()
    # The command has all that it is told to say.
    text = "\n".join(line for line in result.outlines if "--say" not in line)
    for hidden in ("in-pass", "in-xfail", "very-secret-1", "words of the start", "before-the-" + "flood"):
        assert hidden not in text
    assert "very-secret-1" in (everything.path / "server_logs" / "says" / "server.log").read_text()
    shown.fnmatch_lines(["*says: log during this test (command, http://127.0.0.1:*, *server_logs/says/server.log)*"])
    assert len(shown.str()) < 40_000


def test_a_secret_that_the_limit_of_the_section_cuts_stays_hidden(inline_project) -> None:
    secret = "s" * 400 + "-end-of-the-secret"
    inline_project.servers({"env_vars": {"MY_TOKEN": secret}}, a=[])
    inline_project.files(
        test_1="""
        from helpers import get
        from pytest_infserver.reporting.sections import MAX_LOG
        def test_it(inference_server):
            secret = get(inference_server, "/argv")["env"]["MY_TOKEN"]
            get(inference_server, "/say?text=" + secret + "x" * (MAX_LOG - 100))
            assert 0, "on purpose"
        """
    )
    result = inline_project.run("--tb=line")
    result.assert_outcomes(failed=1)
    result = inline_project.run("--tb=short")
    assert "bytes left out" in result.stdout.str()
    assert "end-of-the-secret" not in result.stdout.str()


START_ERROR = """
import pytest
pytestmark = pytest.mark.infserver("bad", "good")
def test_start_1(inference_server): pass
def test_start_2(inference_server): pass
"""


@pytest.mark.promise
def test_a_start_error_is_an_error_of_each_test_with_the_cause_and_one_attempt(everything, result) -> None:
    assert everything.outcomes("test_start_error") == {"passed": 2, "errors": 2}
    shown = part(result, "test_start_1", "test_start_2")
    text = shown.str()
    assert text.count("bad (command) exited with code 0") >= 2
    assert "cause:   RuntimeError: out of memory" in text
    assert "command: MY_TOKEN=********" in text
    assert "--api-key '********'" in text or "--api-key ********" in text
    assert "very-secret" not in result.stdout.str()
    assert "server_logs/bad/server.log" in text
    assert (everything.path / "server_logs/bad/server.log").read_text().count("out of memory") == 1
    assert sections(shown) == ["bad"]
    assert everything.events("started", "stopped", of=("bad", "good")) == ["started good", "stopped good gone"]


NO_START = """
import pytest
pytestmark = [pytest.mark.infserver("slow", "none"), pytest.mark.flaky(reruns=2)]
def test_no_start(inference_server): pass
"""


def test_a_start_that_takes_too_long_and_a_binary_that_is_missing(everything, result) -> None:
    pytest.importorskip("pytest_rerunfailures")
    text = part(result, "test_no_start").str()
    assert "raise startup_timeout" in text
    assert "'no-such-binary' is not on PATH" in text
    assert everything.outcomes("test_no_start") == {"errors": 2, "rerun": 4}


TESTS_OF_DEATHS = f"""
import pytest
from helpers import get, kill
HOW = {[(name, how) for name, how, _ in DEATHS]!r}
pytestmark = pytest.mark.infserver(*dict(HOW))
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


@pytest.mark.promise
def test_a_server_that_dies_fails_the_test_and_the_next_one_gets_a_new_one(everything, result) -> None:
    assert everything.outcomes("test_deaths") == {"passed": 8, "failed": 12}
    for name, _, reason in DEATHS:
        for number in ("1_passes", "3_xfails", "4_skips"):
            result.stdout.fnmatch_lines([f"FAILED test_deaths.py::test_{number}[[]{name}]*"])
        assert result.outlines.count(f"{name} (command) {reason}, while it was in use") == 3
        assert everything.events().count(f"started {name}") == 4
        assert everything.events().count(f"stopped {name} gone") == 1


LAST_WORDS = """
import pytest
from helpers import get
@pytest.mark.infserver("last_words")
def test_last_words(inference_server): get(inference_server, "/exit?code=3&say=last-words")
"""


@pytest.mark.promise
def test_a_failing_test_whose_server_died_shows_the_reason_and_the_last_words(everything, result) -> None:
    assert everything.outcomes("test_last_words") == {"failed": 1}
    part(result, "test_last_words").fnmatch_lines(
        [
            "E *",
            "*inference server died during this test*",
            "last_words (command) exited with code 3*",
            "*log during*",
            "last-words",
        ]
    )


PHASES = """
import pytest
from helpers import kill
pytestmark = pytest.mark.infserver("phases")
servers = []
@pytest.fixture(autouse=True)
def remember(inference_server): servers[:] = [inference_server]
@pytest.fixture
def in_setup(inference_server): kill(inference_server)
@pytest.fixture
def in_teardown(inference_server):
    yield
    kill(inference_server)
def test_dies_in_setup(in_setup): pass
def test_dies_in_teardown(in_teardown): pass
def test_before(): pass
def test_after_a_death(inference_server): assert inference_server.check_health()
"""
BETWEEN = """
import pytest
from helpers import kill

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    if "test_after_a_death" in item.name:
        kill(item.module.servers[0])
    return (yield)
"""


def test_deaths_in_setup_and_teardown_and_between_tests(everything, result) -> None:
    assert everything.outcomes("test_phases") == {"passed": 3, "errors": 2}
    assert everything.events().count("started phases") == 4
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_dies_in_setup*",
            "*ERROR at teardown of test_dies_in_teardown*",
            "between two tests: phases (command) exited*",
        ]
    )


FOUR_TIMES = """
import pytest
from helpers import kill
@pytest.mark.infserver("four_times")
@pytest.mark.parametrize("n", range(6))
def test_it(inference_server, n): kill(inference_server)
"""


@pytest.mark.promise
def test_a_server_is_restarted_three_times_at_most(everything, result) -> None:
    assert everything.outcomes("test_four_times") == {"failed": 4, "errors": 2}
    assert "four_times (command) has died 4 times and is not restarted any more" in result.stdout.str()
    assert everything.events().count("started four_times") == 4


HUNG = """
import pytest
from helpers import get
pytestmark = pytest.mark.infserver("hung")
def test_hung(inference_server):
    get(inference_server, "/sick")
    assert inference_server.wait_death(30)
def test_after_it_hung(inference_server): assert inference_server.check_health()
"""


@pytest.mark.promise
def test_a_hung_server_is_killed_and_its_test_fails(everything, result) -> None:
    assert everything.outcomes("test_hung") == {"passed": 1, "failed": 1}
    words = "hung (command) hung and was killed: its health check has failed for*503*"
    part(result, "test_hung").fnmatch_lines([words])


@pytest.mark.promise
def test_errors_in_hooks_and_backends_of_the_project_are_errors_of_the_tests(inline_project) -> None:
    inline_project.servers(a=[], b=[])
    inline_project.conftest(
        """
def pytest_infserver_server_started(server):
    if server.name == "a": raise KeyError("user bug at the start")

def pytest_infserver_server_stopping(server):
    raise KeyError("user bug at the stop")
"""
    )
    inline_project.files(test_1="def test_1(inference_server): pass")
    result = inline_project.run("-v")
    result.assert_outcomes(passed=1, errors=3)
    text = result.stdout.str()
    assert "INTERNALERROR" not in text
    assert "pytest_infserver/" not in text
    assert "user bug at the start" in text
    assert text.count("user bug at the stop") >= 2


def test_of_a_server_that_was_never_ready_the_last_lines_are_shown(inline_project) -> None:
    code = (
        "import string, time; print('\\n'.join(a + b for a in 'wxyz' for b in string.ascii_lowercase)); time.sleep(60)"
    )
    command = [sys.executable, "-u", "-S", "-c", code, "{port}"]
    inline_project.servers(a={"backend": "command", "launch_command": command, "startup_timeout": 2})
    inline_project.files(test_1="def test_1(inference_server): pass")
    result = inline_project.run()
    result.assert_outcomes(errors=1)
    lines = [line for line in result.outlines if len(line) == 2 and line[0] in "wxyz"]
    assert lines == [f"z{letter}" for letter in string.ascii_lowercase[-20:]]


def test_a_start_that_never_launched_shows_no_old_log(inline_project) -> None:
    inline_project.servers(a=["--say", "words of an earlier run"])
    inline_project.files(test_1="def test_it(inference_server): pass")
    inline_project.run().assert_outcomes(passed=1)
    result = inline_project.run("--infserver-set", "binary_path=no-such-binary")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the binary 'no-such-binary' is not on PATH*"])
    assert sections(result) == []
    assert "words of an earlier run" not in result.stdout.str()


SIMILAR = """
import pytest
from helpers import get
@pytest.mark.infserver("similar")
def test_similar(inference_server):
    for number in range(30):
        get(inference_server, f"/say?text=probe-{number}")
    get(inference_server, "/say?text=other")
    assert 0
"""


def test_similar_lines_are_shown_once_with_their_number(result) -> None:
    lines = ["probe-0", "?... 28 similar lines left out?", "probe-29", "other"]
    part(result, "test_similar").fnmatch_lines(lines, consecutive=True)


ONE_LINE = """
import pytest
from helpers import kill
@pytest.mark.infserver("one")
def test_one(inference_server):
    kill(inference_server)
    raise ConnectionError("refused")
"""


def test_the_summary_line_says_that_the_server_died(result) -> None:
    line = next(line for line in result.stdout.lines if line.startswith("FAILED test_one.py"))
    assert "one (command) exited with code 3" in line


def test_a_marker_with_a_slip_of_the_pen_suggests_the_right_name(inline_project) -> None:
    inline_project.servers(tiny=[])
    inline_project.files(
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
    # Of another configuration they may be right.
    result = inline_project.run("-rs", *(f"--infserver-optional-names={name}" for name in ("comand", "tinny")))
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines_random(
        ["*configured: tiny (command); did you mean 'command'?", "*did you mean 'tiny'?"]
    )
    result.stdout.fnmatch_lines(["*fits infserver('huge-[*]'); configured: tiny (command)"])


@pytest.mark.parametrize("hook", ["started", "stopping", "stopped"])
def test_pytest_fail_in_a_hook_is_an_error_of_a_test_and_the_server_is_stopped(inline_project, hook) -> None:
    inline_project.servers(a=[])
    inline_project.files(
        myplugin=f"import pytest\ndef pytest_infserver_server_{hook}(server): pytest.fail('wrong version')\n",
        test_1="def test_it(inference_server): pass",
    )
    result = inline_project.run("-p", "myplugin")
    result.assert_outcomes(passed=0 if hook == "started" else 1, errors=1)
    assert "wrong version" in result.stdout.str()
    assert "INTERNALERROR" not in result.stdout.str()


def test_an_indirect_parameter_that_is_no_name(inline_project) -> None:
    inline_project.servers(a=[])
    inline_project.files(
        test_1="""
        import pytest
        @pytest.mark.parametrize("inference_server", [["a"]], indirect=True)
        def test_it(inference_server): pass
        """
    )
    result = inline_project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no server is called *'a'*"])
