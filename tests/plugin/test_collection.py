"""What a run reads and prints before it starts anything, and what keeps servers from being started."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from fake_servers import fake_block

SIMPLE = """
def test_it(inference_server):
    assert inference_server.check_health()
"""
BROKEN = "servers:\n  a: {backend: comand, launch_command: [x]}\n"
BACKEND = """
import sys
from pytest_infserver import CommandServer
class Mine(CommandServer):
    def get_backend_name(self): return "mine"
    def get_launch_command(self): return [sys.executable, "-S", ENGINE, "--port", str(self.port), "--model", self.model]
    def _check_settings(self): pass
"""


def backend(engine: str) -> str:
    return BACKEND.replace("ENGINE", repr(engine))


@pytest.fixture
def engine() -> str:
    return str(Path(__file__).parent.parent / "fake_engine.py")


@pytest.mark.promise
def test_no_configuration_shows_the_three_ways(inline_project, quiet) -> None:
    inline_project.files(
        test_simple="""
        import pytest
        def test_it(inference_server): pass
        @pytest.mark.backend("vllm")
        def test_client(inference_client): pass
        def test_dynamic(request): request.getfixturevalue("inference_server")
        def test_plain(): pass
        """
    )
    result = inline_project.bare()
    result.assert_outcomes(passed=1, errors=2, failed=1)
    text = quiet(result)
    for way in ("--infserver-config servers.yaml", "--infserver-backend llamacpp", "--infserver-url http"):
        assert way in text
    # What pytest has made of the command line, for those who have given one.
    assert f"pytest took {inline_project.path} for rootdir and {inline_project.path / 'tox.ini'} for its ini" in text
    assert "write a path outside of the project with '='" in text


@pytest.mark.promise
@pytest.mark.parametrize("arguments", [(), ("--collect-only",), ("--infserver-dry-run",), ("--setup-plan",)])
def test_configuration_errors_are_exit_status_4_in_one_paragraph(inline_project, quiet, arguments) -> None:
    (inline_project.path / "servers.yaml").write_text(BROKEN)
    inline_project.files(test_simple=SIMPLE)
    result = inline_project.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = quiet(result)
    assert "servers.yaml:2:" in text
    assert "'comand'" in text
    assert "'command'" in text
    assert inline_project.events() == []


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ({"gpus": [1], "exclude": [{"gpus": 1}]}, "'matrix' stands for no server"),
        (
            {"gpus": [*range(100)], "nodes": [*range(1, 101)]},
            "'matrix' stands for 10000 servers",
        ),
    ],
)
def test_a_matrix_of_no_server_or_of_too_many_starts_nothing(inline_project, quiet, matrix, words) -> None:
    inline_project.servers(a=fake_block(matrix=matrix), b=[])
    inline_project.files(test_simple=SIMPLE)
    result = inline_project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in quiet(result).splitlines() if line]
    assert re.fullmatch(rf"ERROR: servers.yaml:\d+:\d+: {words}.*", line)
    assert inline_project.events() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--infserver-config", "absent.yaml"),
        ("--infserver-set", "nonsense"),
        ("--infserver-url", "http://127.0.0.1:1", "--infserver-server", "zz"),
        ("--infserver-backend", "nosuch"),
    ],
)
def test_wrong_options_are_exit_status_4_too(inline_project, quiet, arguments) -> None:
    inline_project.files(test_simple=SIMPLE)
    result = inline_project.bare(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: " in quiet(result)


def test_commands_that_only_show_something_do_not_need_a_good_configuration(inline_project, pytester) -> None:
    (inline_project.path / "servers.yaml").write_text(BROKEN)
    pytester.makeini("[pytest]\ninfserver_config = servers.yaml\ninfserver_debug = perhaps\n")
    inline_project.files(test_simple=SIMPLE)
    for arguments, shown in (
        (["--help"], "--infserver-config=PATH"),
        (["--version"], "pytest "),
        (["--fixtures"], "inference_server_factory [session scope]"),
        (["--fixtures-per-test"], "inference_server"),
        (["--markers"], "@pytest.mark.infserver(*names, exclusive=False)"),
    ):
        result = inline_project.bare(*arguments)
        assert result.ret == 0, arguments
        assert shown in result.stdout.str()
    assert inline_project.bare().ret == pytest.ExitCode.USAGE_ERROR


def test_collect_only_setup_plan_and_dry_run_start_nothing(inline_project, servers_yaml) -> None:
    servers_yaml(a=["--api-key", "very-secret-1"], b=[])
    inline_project.files(
        test_simple="""
        import pytest
        @pytest.fixture(scope="module")
        def dependent(inference_server): yield 1 / 0
        def test_it(dependent): pass
        """
    )
    for arguments in (["--collect-only"], ["--co", "-q"], ["--setup-plan"]):
        result = inline_project.run(*arguments)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["*test_it[[]b]*"])
    result = inline_project.run("--infserver-dry-run")
    assert result.ret == 0
    command = "*fake_engine.py --host 127.0.0.1 --port 8000"
    result.stdout.fnmatch_lines([f"a: {command} --api-key *****", f"b: {command}"])
    assert "very-secret-1" not in result.stdout.str()
    assert inline_project.bare("--infserver-dry-run").ret == 0
    assert inline_project.events() == []
    assert not (inline_project.path / "server_logs").exists()


@pytest.mark.promise
def test_a_url_attaches_with_and_without_a_file(inline_project, servers_yaml, fake_server) -> None:
    running = fake_server().start()
    inline_project.files(
        test_simple="""
        import pytest
        from helpers import get
        def test_it(inference_server):
            assert inference_server.attached and get(inference_server, "/argv")["pid"]
            with pytest.raises(Exception, match="shared"):
                inference_server.stop()
        @pytest.mark.backend("command")
        def test_keeps_its_backend(inference_server): assert inference_server.name == "a"
        """
    )
    result = inline_project.bare("--infserver-url", running.server_url, "-v")
    result.assert_outcomes(passed=1, skipped=1)
    servers_yaml(a=["--exit", "1"], b=["--exit", "1"])
    result = inline_project.run("--infserver-url", running.server_url, "--infserver-server", "a")
    result.assert_outcomes(passed=2)
    assert inline_project.run("--infserver-url", running.server_url).ret == pytest.ExitCode.USAGE_ERROR
    assert running.check_health()
    with socket.socket() as closed:  # bound, so that nobody else gets the port, and not listening
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = inline_project.bare("--infserver-url", url, "-v", "--infserver-startup-timeout", "2")
    result.assert_outcomes(errors=1, skipped=1)
    assert "pytest_infserver/" not in result.stdout.str()


@pytest.mark.promise
@pytest.mark.parametrize(
    "hook",
    [
        "def pytest_infserver_backends(config): return [Mine]",
        "def pytest_infserver_backends(config): return Mine",
        "def pytest_configure(config):\n    from pytest_infserver import register_backend\n    register_backend(Mine)",
    ],
)
def test_a_backend_of_the_project_runs_without_a_file(inline_project, engine, hook) -> None:
    inline_project.conftest(backend(engine) + hook)
    inline_project.files(
        test_simple="""
        from helpers import get
        def test_it(inference_server):
            assert inference_server.get_backend_name() == "mine"
            assert get(inference_server, "/argv")["argv"][-1] == "my-model"
        """
    )
    arguments = ["--infserver-backend", "mine", "--infserver-model", "my-model"]
    inline_project.bare(*arguments, "-v").assert_outcomes(passed=1)
    dry = inline_project.bare(*arguments, "--infserver-dry-run")
    dry.stdout.fnmatch_lines(["mine: *--model my-model"])


@pytest.mark.promise
def test_skipped_and_deselected_tests_start_no_server(inline_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[], c=[])
    inline_project.files(
        test_skips="""
        import pytest, sys, unittest
        @pytest.mark.infserver("a")
        class TestA:
            @pytest.mark.skip
            def test_skip(self, inference_server): pass
            @pytest.mark.skipif("sys.version_info > (3,)", reason="always")
            def test_skipif(self, inference_server): pass
            @pytest.mark.xfail(run=False)
            def test_xfail(self, inference_server): pass
            @unittest.skip("no")
            def test_unittest(self, inference_server): pass
            @pytest.mark.skipif("no such thing", reason="broken")
            def test_broken_condition(self, inference_server): pass
            def test_left_out(self, inference_server): pass
            @pytest.mark.slow
            def test_slow(self, inference_server): pass
        @pytest.mark.infserver("b")
        class TestB:
            def test_runs(self, inference_server): pass
            def test_left_out(self, inference_server): pass
            @pytest.mark.skip
            def test_skip(self, inference_server): pass
            @pytest.mark.slow
            def test_slow(self, inference_server): pass
        @pytest.mark.infserver("c")
        def test_c(inference_server): pass
        """
    )
    result = inline_project.run("-k", "not left_out", "-m", "not slow", "--deselect", "test_skips.py::test_c")
    result.assert_outcomes(passed=1, skipped=4, xfailed=1, errors=1, deselected=5)
    assert inline_project.events("started", "test", "stopped") == ["started b", "test test_runs[b]", "stopped b gone"]
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*1 passed, *"])


@pytest.mark.promise
def test_a_server_stops_after_its_last_running_test(inline_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[])
    inline_project.files(
        test_skips="""
        import pytest
        def test_1(inference_server): pass
        @pytest.mark.skip
        def test_2(inference_server): pass
        """
    )
    inline_project.conftest('\ndef pytest_runtest_logfinish(nodeid): note("end", nodeid.split("::")[1])\n')
    # With one place the second one cannot start before the first one has stopped.
    inline_project.run("--infserver-max-servers=1").assert_outcomes(passed=2, skipped=2)
    assert [line for line in inline_project.events() if "end test_2" not in line] == [
        *("started a", "test test_1[a]", "end test_1[a]", "stopping a", "stopped a gone"),
        *("started b", "test test_1[b]", "end test_1[b]", "stopping b", "stopped b gone"),
    ]


def test_rootdir_need_not_be_the_working_directory(inline_project, pytester, servers_yaml, monkeypatch) -> None:
    servers_yaml(a=[])
    pytester.makeini("[pytest]\ninfserver_config = servers.yaml\n")
    inline_project.files(test_simple=SIMPLE)
    elsewhere = inline_project.path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    inline_project.bare(os.fspath(inline_project.path)).assert_outcomes(passed=1)
    assert (inline_project.path / "server_logs" / "a" / "server.log").exists()
    assert list(elsewhere.iterdir()) == []


def check_that_a_dropped_option_is_refused(project, installed_vllm, arguments, quiet) -> None:
    project.files(test_it="def test_it(inference_server): pass")
    block = f"{{binary_path: {installed_vllm}, config: {{server_args: {{task: x}}}}}}"
    (project.path / "servers.yaml").write_text(
        f"defaults: {{backend: vllm, model: m}}\nservers:\n  good: {{binary_path: {installed_vllm}}}\n  bad: {block}\n"
    )
    result = project.run(*arguments, plugins=("xdist.plugin",))
    assert result.ret == 4
    assert "server 'bad': vllm 0.32.0+cpu has no --task: write --runner" in quiet(result)
    assert project.events() == []


@pytest.mark.parametrize("arguments", [(), ("--collect-only",), ("--infserver-dry-run",)])
def test_an_option_that_the_engine_dropped_is_an_error_before_anything_starts(
    inline_project, installed_vllm, arguments, quiet
) -> None:
    check_that_a_dropped_option_is_refused(inline_project, installed_vllm, arguments, quiet)


def test_an_option_that_the_engine_dropped_is_an_error_before_workers_start(project, installed_vllm, quiet) -> None:
    check_that_a_dropped_option_is_refused(project, installed_vllm, ("-n1",), quiet)
