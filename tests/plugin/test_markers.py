"""On which servers a test runs, in which order, and what is said where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import yaml


def write_four(project: Any) -> None:
    """Four servers of three backends; none of them can be reached, which collecting must not need."""
    url = "http://127.0.0.1:1"
    servers = {
        "a": {"backend": "command", "url": url},
        "b-1": {"backend": "command", "url": url},
        "v": {"backend": "vllm", "url": url},
        "s": {"backend": "sglang", "url": url},
    }
    (project.path / "servers.yaml").write_text(yaml.safe_dump({"servers": servers}))


def collected(result: Any) -> list[str]:
    return sorted(line.split("::", 1)[1] for line in result.outlines if "::" in line)


@pytest.mark.promise
def test_each_test_runs_once_per_server_grouped_and_each_server_starts_once(inline_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[])
    inline_project.files(
        test_1="""
        import pytest
        seen = {}
        @pytest.fixture(scope="session", params=["x", "y"])
        def other(request): return request.param
        def check(server):
            first = seen.setdefault(server.name, (id(server), server.port, server.server_url))
            assert first == (id(server), server.port, server.server_url)
            assert server.running and server.check_health()
        def test_one(inference_server, other): check(inference_server)
        def test_none(): pass
        def test_two(inference_server): check(inference_server)
        """,
        test_2="""
        import pytest
        from test_1 import check
        @pytest.fixture
        def wrapped(inference_server): return inference_server
        @pytest.mark.infserver("b")
        class TestB:
            def test_three(self, wrapped): check(wrapped)
        @pytest.mark.usefixtures("inference_server")
        def test_four(): pass
        """,
    )
    result = inline_project.run("-v", "--strict-markers", "--infserver-max-servers=1")
    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines(["infserver: servers.yaml: a (command), b (command)"])
    b_tests = [
        "test test_one[x-b]",
        "test test_one[y-b]",
        "test test_two[b]",
        "test test_three[b]",
        "test test_four[b]",
    ]
    events = [event for event in inline_project.events() if event != "test test_none"]
    assert events[0] == "started a"
    assert sorted(events[1:5]) == ["test test_four[a]", "test test_one[x-a]", "test test_one[y-a]", "test test_two[a]"]
    assert events[5:8] == ["stopping a", "stopped a gone", "started b"]
    assert sorted(events[8:13]) == sorted(b_tests)
    assert events[13:] == ["stopping b", "stopped b gone"]


@pytest.mark.promise
def test_marks_choose_the_servers(inline_project) -> None:
    write_four(inline_project)
    inline_project.files(
        test_marks="""
        import pytest
        def test_all(inference_server): pass
        @pytest.mark.backend("vllm")
        def test_vllm(inference_server): pass
        @pytest.mark.backend("vllm", "sglang")
        def test_two(inference_server): pass
        @pytest.mark.backend(exclude="command")
        def test_not_command(inference_client): pass
        @pytest.mark.backend(exclude=["vllm", "sglang"])
        def test_not_two(inference_server): pass
        @pytest.mark.infserver("b-*", "v")
        def test_glob(inference_server): pass
        @pytest.mark.backend("command")
        class TestCommand:
            @pytest.mark.infserver("a")
            def test_both_hold(self, inference_server): pass
            def test_class(self, inference_server): pass
        @pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.infserver("a"))])
        def test_single(inference_server, x): pass
        @pytest.mark.parametrize("inference_server", ["s", "a"], indirect=True)
        def test_chosen(inference_server): pass
        """,
        test_module="""
        import pytest
        pytestmark = [pytest.mark.infserver("?"), pytest.mark.backend(exclude="command")]
        def test_module(inference_server): pass
        """,
    )
    result = inline_project.run("--collect-only", "-q", "--strict-markers")
    assert result.ret == 0
    assert collected(result) == sorted(
        [f"test_all[{name}]" for name in ("a", "b-1", "v", "s")]
        + ["test_vllm[v]", "test_two[v]", "test_two[s]", "test_not_command[v]", "test_not_command[s]"]
        + ["test_not_two[a]", "test_not_two[b-1]", "test_glob[b-1]", "test_glob[v]"]
        + ["TestCommand::test_both_hold[a]", "TestCommand::test_class[a]", "TestCommand::test_class[b-1]"]
        + [f"test_single[1-{name}]" for name in ("a", "b-1", "v", "s")]
        + ["test_single[2-a]", "test_chosen[s]", "test_chosen[a]", "test_module[v]", "test_module[s]"]
    )
    filtered = inline_project.run("--collect-only", "-q", "--infserver-backend", "vllm", "--infserver-server", "v*")
    assert "test_all[v]" in collected(filtered)
    assert "test_all[a]" not in collected(filtered)


NO_SERVER = """
    import pytest, unittest
    @pytest.mark.backend("transformers")
    def test_none(inference_server): pass
    @pytest.mark.infserver("a")
    @pytest.mark.backend("vllm")
    class TestContradiction:
        def test_none(self, inference_server): pass
    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.infserver("zz"))])
    def test_param(inference_server, x): pass
    @pytest.mark.infserver("nobody")
    class TestOld(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def give(self, inference_server): self.server = inference_server
        def test_old(self): pass
"""


@pytest.mark.promise
def test_no_server_left_is_a_skip_that_names_what_was_asked_and_what_is_configured(
    inline_project, servers_yaml
) -> None:
    servers_yaml(a=[])
    inline_project.files(test_marks=NO_SERVER)
    result = inline_project.run("-rs", "--infserver-optional-names=zz", "--infserver-optional-names=no*")
    result.assert_outcomes(skipped=4)
    for asked in ("backend('transformers')", "infserver('zz')", "infserver('nobody')"):
        result.stdout.fnmatch_lines([f"SKIPPED*no configured server fits {asked}; configured: a (command)"])
    result.stdout.fnmatch_lines(["SKIPPED*backend('vllm')*infserver('a')*"])
    assert inline_project.events() == []


@pytest.mark.promise
def test_strict_makes_it_fail(inline_project, servers_yaml, quiet) -> None:
    servers_yaml(a=[])
    inline_project.files(test_marks=NO_SERVER)
    result = inline_project.run("--infserver-strict", "--infserver-optional-names=zz", "--infserver-optional-names=no*")
    result.assert_outcomes(errors=4)
    assert quiet(result).count("no configured server fits backend('transformers'); configured: a (command)") >= 1
    assert inline_project.events() == []


@pytest.mark.promise
def test_arguments_without_a_meaning_are_errors_that_name_the_mark_and_the_test(
    inline_project, servers_yaml, quiet
) -> None:
    servers_yaml(a=[])
    marks = ["backend()", "backend(1)", "infserver(exclude='a')", "backend('vllm', only='x')", "infserver()"]
    marks += ["backend(exclude=5)", "backend(exclude=None)"]
    files = {
        f"test_{n}": f"import pytest\n@pytest.mark.{m}\ndef test(inference_server): pass" for n, m in enumerate(marks)
    }
    inline_project.files(**files)
    result = inline_project.run("--continue-on-collection-errors")
    result.assert_outcomes(errors=len(marks))
    text = quiet(result)
    for number, mark in enumerate(marks):
        kind = mark.split("(")[0]
        # Any keyword of infserver but exclusive is a setting of the server.
        said = f"test_{number}.py:2: unknown key 'exclude'" if "exclude='a'" in mark else f"{kind}("
        assert f"test_{number}.py::test: {said}" in text

    for file in files:
        (inline_project.path / f"{file}.py").unlink()
    inline_project.files(
        test_param="""
        import pytest
        @pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.infserver(3))])
        def test_x(inference_server, x): pass
        """
    )
    result = inline_project.run()
    result.assert_outcomes(passed=1, errors=1)
    assert "infserver(3): names must be texts" in quiet(result)


TYPOS = {
    'infserver("bgi")': "infserver('bgi'): no server is called 'bgi'; did you mean 'big'?",
    'infserver("small", "bgi")': "infserver('small', 'bgi'): no server is called 'bgi'; did you mean 'big'?",
    'backend("comand")': "backend('comand'): no backend is called 'comand'; did you mean 'command'?",
    'backend(exclude="vlm")': "backend(exclude='vlm'): no backend is called 'vlm'; did you mean 'vllm'?",
    'infserver("x")': "infserver('x'): no server is called 'x'; known are: big, small.",
}


@pytest.mark.promise
@pytest.mark.parametrize("mark", TYPOS)
def test_a_name_that_is_no_server_or_backend_is_an_error_before_anything_starts(
    inline_project, servers_yaml, quiet, mark
) -> None:
    servers_yaml(big=[], small=[])
    inline_project.files(
        test_typo=f"""
        import pytest
        @pytest.mark.{mark}
        def test_typo(inference_server): pass
        """,
        test_good="def test_good(inference_server): pass",
    )
    result = inline_project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*_ ERROR collecting test_typo.py _*", f"*test_typo.py::test_typo: {TYPOS[mark]}*"])
    assert "infserver_optional_names = " in quiet(result)
    assert inline_project.events() == []


def test_where_a_misspelt_name_is_known_only_later_it_is_an_error_of_its_test(inline_project, servers_yaml) -> None:
    servers_yaml(big=[])
    inline_project.files(
        test_typo="""
        import pytest, unittest
        @pytest.mark.infserver("bgi")
        class TestOld(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def give(self, inference_server): pass
            def test_old(self): pass
        @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.infserver("bgi"))])
        def test_param(inference_server, x): pass
        """
    )
    result = inline_project.run()
    result.assert_outcomes(errors=2)
    assert result.stdout.str().count("no server is called 'bgi'; did you mean 'big'?") >= 2
    assert inline_project.events("started") == []


@pytest.mark.parametrize(
    "words",
    [
        # Left out by the user, not misspelt.
        ["--infserver-server=b*"],
        ["--infserver-optional-names=els*"],
    ],
)
def test_a_name_that_may_be_absent_skips(inline_project, servers_yaml, words) -> None:
    servers_yaml(big=[], small=[])
    name = "elsewhere" if "optional" in words[0] else "small"
    inline_project.files(
        test_it=f"""
        import pytest
        @pytest.mark.infserver("{name}")
        def test_it(inference_server): pass
        @pytest.mark.infserver_needs("{name}", "big")
        def test_both(inference_servers): pass
        @pytest.mark.infserver("nothing-*")
        def test_glob(inference_server): pass
        """
    )
    inline_project.run(*words).assert_outcomes(skipped=3)


def test_without_a_file_names_of_servers_are_those_of_another_run(inline_project) -> None:
    inline_project.files(
        test_it="""
        import pytest
        @pytest.mark.infserver("small")
        def test_small(inference_server): pass
        @pytest.mark.backend("vlm")
        def test_vllm(inference_server): pass
        """
    )
    words = ["--infserver-url=http://127.0.0.1:1", "--continue-on-collection-errors", "--co", "-q"]
    result = inline_project.bare(*words)
    result.stdout.fnmatch_lines(
        ["test_it.py::test_vllm: backend('vlm'): no backend is called 'vlm'; did you mean 'vllm'?*"]
    )
    inline_project.files(
        test_it="""
        import pytest
        @pytest.mark.infserver("small")
        def test_small(inference_server): pass
        """
    )
    inline_project.bare(words[0]).assert_outcomes(skipped=1)


def test_marks_of_the_same_name_on_other_tests_do_no_harm(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.conftest(
        """
import pytest

@pytest.fixture
def model(): return "mine"

def pytest_configure(config):
    config.addinivalue_line("markers", "backend(number): of another plugin")
"""
    )
    inline_project.files(
        test_foreign="""
        import pytest
        @pytest.mark.backend(7, device="cpu")
        def test_foreign(model): assert model == "mine"
        @pytest.mark.infserver
        @pytest.mark.parametrize("inference_server", ["plain"])
        def test_own_parameter(inference_server): assert inference_server == "plain"
        """
    )
    inline_project.run("--strict-markers").assert_outcomes(passed=2)
    assert inline_project.events("started") == []
