"""``needs:``: servers that are started when others are ready, and stopped before them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ENGINE = str(Path(__file__).parents[1] / "fake_engine.py")
COMMAND = [sys.executable, "-S", ENGINE, "--port", "{port}"]


@pytest.fixture
def group(servers_yaml) -> None:
    servers_yaml(
        router={
            "backend": "command",
            "launch_command": [*COMMAND, "--said", "{servers.left.url}"],
            "env_vars": {"RIGHT": "{servers.right.host}:{servers.right.port}"},
            "needs": ["left", "right"],
        },
        left=["--delay", "0.5"],
        right=[],
    )


@pytest.mark.promise
def test_they_start_in_order_know_where_the_others_are_and_stop_in_order(twin_project, group) -> None:
    twin_project.files(
        test_1="""
        import pytest
        from helpers import get
        @pytest.mark.infserver("router")
        def test_router(inference_server):
            told = get(inference_server, "/argv")
            assert told["argv"][-1].startswith("http://127.0.0.1:")
            assert told["env"]["RIGHT"].startswith("127.0.0.1:")
        @pytest.mark.infserver_needs("router", "left")
        def test_together(inference_servers):
            assert get(inference_servers["router"], "/argv")["argv"][-1] == inference_servers["left"].server_url
        """
    )
    twin_project.run("--infserver-max-servers=3").assert_outcomes(passed=2)
    events = twin_project.events("started", "stopped")
    assert events.index("started router") > max(events.index("started left"), events.index("started right"))
    assert next(event for event in events if event.startswith("stopped")) == "stopped router gone"


def test_a_death_in_the_group_is_told_and_a_failed_start_fails_who_needs_it(inline_project, servers_yaml) -> None:
    servers_yaml(
        router={"backend": "command", "launch_command": COMMAND, "needs": ["left"]},
        left=[],
        lost={"backend": "command", "launch_command": COMMAND, "needs": ["broken"]},
        broken=["--exit", "3", "--say", "Error: no such weights"],
    )
    inline_project.files(
        test_1="""
        import pytest
        from helpers import kill
        @pytest.mark.infserver_needs("router", "left")
        def test_death(inference_servers):
            kill(inference_servers["left"])
            inference_servers["left"].wait_death(20)
        @pytest.mark.infserver("router")
        def test_after(inference_server): assert inference_server.check_health()
        @pytest.mark.infserver("lost")
        def test_lost(inference_server): pass
        """
    )
    result = inline_project.run("--infserver-max-servers=4")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    text = result.stdout.str()
    assert "left" in text
    assert "exited with code 3" in text
    assert "no such weights" in text


@pytest.fixture
def disaggregated(servers_yaml) -> None:
    """Prefill, decode and what is in front of them."""
    servers_yaml(
        proxy={
            "backend": "command",
            "launch_command": [*COMMAND, "--said", "{servers.prefill.url}", "{servers.decode.host}"],
            "env_vars": {"DECODE": "{servers.decode.port}", "PREFILL": "{servers.prefill.url}/v1"},
            "needs": ["prefill", "decode"],
        },
        decode={"backend": "command", "launch_command": [*COMMAND, "--delay", "0.3"], "needs": ["prefill"]},
        prefill=["--delay", "0.3"],
    )


@pytest.mark.promise
def test_prefill_decode_and_their_proxy(inline_project, disaggregated) -> None:
    """Each starts when those are ready that it needs, and is gone before they are told to stop."""
    inline_project.files(
        test_1="""
        import pytest
        from helpers import get
        @pytest.mark.infserver_needs("prefill", "decode", "proxy")
        def test_all(inference_servers):
            prefill, decode, proxy = inference_servers.values()
            told = get(proxy, "/argv")
            assert told["argv"][-2:] == [prefill.server_url, decode.host]
            assert told["env"]["DECODE"] == str(decode.port) != str(prefill.port)
            assert told["env"]["PREFILL"] == prefill.server_url + "/v1"
        @pytest.mark.infserver("proxy")
        def test_proxy(inference_server): assert get(inference_server, "/argv")["argv"][-1] == "127.0.0.1"
        """
    )
    inline_project.run("--infserver-max-servers=3").assert_outcomes(passed=2)
    assert inline_project.events("started", "stopping", "stopped") == [
        *("started prefill", "started decode", "started proxy"),
        *("stopping proxy", "stopped proxy gone"),
        *("stopping decode", "stopped decode gone"),
        *("stopping prefill", "stopped prefill gone"),
    ]


def test_a_death_in_the_group_is_told_in_all_tests_that_have_it(project, disaggregated, quiet) -> None:
    """Also in those that take the proxy only, which itself lives on; the next test has the whole group again."""
    pytest.importorskip("xdist")
    meeting = """
        import pytest, time, urllib.request
        from helpers import get, note
        def meet(word):
            note("here", word)
            end = time.monotonic() + 60
            while open("events.txt").read().count(f"here {word}") < 2:
                assert time.monotonic() < end
                time.sleep(0.02)
        pytestmark = pytest.mark.infserver("proxy")
    """
    project.files(
        test_1=meeting
        + """
        def test_kills(inference_server):
            meet("both")
            port = get(inference_server, "/argv")["env"]["DECODE"]
            with pytest.raises(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/exit?code=3&say=Error:+no+more+pages", timeout=20)
            meet("killed")
        """,
        test_2=meeting
        + """
        def test_beside(inference_server):
            meet("both")
            meet("killed")
        """,
        test_3="""
        import pytest
        from helpers import get
        @pytest.mark.infserver_needs("proxy", "decode")
        def test_after(inference_servers):
            assert all(server.check_health() for server in inference_servers.values())
            assert get(inference_servers["proxy"], "/argv")["env"]["DECODE"] == str(inference_servers["decode"].port)
        """,
    )
    result = project.run("--infserver-max-servers=3", "-n2", "-rA", plugins=("xdist",))
    result.assert_outcomes(passed=1, failed=2)
    text = quiet(result)
    for name in ("test_1.py::test_kills", "test_2.py::test_beside"):
        result.stdout.fnmatch_lines([f"FAILED {name}?proxy?*decode*exited with code 3*"])
    assert text.count("no more pages") >= 2


def test_what_a_chosen_server_needs_comes_along(inline_project, group) -> None:
    inline_project.files(test_1="def test_1(inference_server): assert inference_server.check_health()")
    result = inline_project.run("--infserver-server=router", "--infserver-max-servers=3", "-v")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("router", "words"),
    [
        ({"needs": ["lft"]}, "no server is called 'lft'; did you mean 'left'"),
        ({"needs": ["router"]}, "goes round in a circle: router -> router"),
        ({"env_vars": {"X": "{servers.left.url}"}}, "write needs: [[]left[]]"),
    ],
)
def test_mistakes_are_one_line_and_start_nothing(inline_project, servers_yaml, router, words) -> None:
    servers_yaml(router={"backend": "command", "launch_command": COMMAND, **router}, left=[])
    inline_project.files(test_1="def test_1(inference_server): pass")
    result = inline_project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: servers.yaml:*{words}*"])
    assert inline_project.events("started") == []


def test_also_one_that_nobody_could_know_of(project, group, run) -> None:
    """A server of the factory, and one that a test asks for in its body."""
    project.files(
        test_1="""
        from helpers import get
        from pytest_infserver import variant
        def test_factory(inference_server_factory):
            made = inference_server_factory(variant("router", env_vars={"EXTRA": "1"}))
            assert get(made, "/argv")["argv"][-1].startswith("http://127.0.0.1:")
        def test_body(request):
            made = request.getfixturevalue("inference_server_factory")("router")
            assert get(made, "/argv")["env"]["RIGHT"].startswith("127.0.0.1:")
        """
    )
    run("--infserver-max-servers=4").assert_outcomes(passed=2)


def test_only_tests_of_the_servers_that_were_asked_for_are_collected(inline_project, group) -> None:
    """Those that they need come along, and no tests of theirs with them."""
    inline_project.files(
        test_1="""
        import pytest
        def test_each(inference_server): pass
        @pytest.mark.infserver("left")
        def test_left(inference_server): pass
        @pytest.mark.parametrize("inference_server", ["left", "router"], indirect=True)
        def test_named(inference_server): pass
        """
    )
    inline_project.run("--infserver-server=router", "--infserver-max-servers=3")
    events = inline_project.events("test")
    assert sorted(events) == ["test test_each[router]", "test test_named[router]"]
    assert set(inline_project.events("started")) == {"started left", "started right", "started router"}
