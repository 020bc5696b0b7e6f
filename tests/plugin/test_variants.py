"""Variants: marks that replace settings of a configured server, or describe one."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

ENGINE = str(Path(__file__).parents[1] / "fake_engine.py")
COMMAND = [sys.executable, "-S", ENGINE, "--port", "{port}"]


@pytest.mark.promise
def test_settings_in_marks_make_one_server_for_all_tests_that_have_the_same(twin_project, servers_yaml) -> None:
    servers_yaml(a=[])
    twin_project.files(
        test_1="""
        import pytest
        from helpers import get
        pytestmark = pytest.mark.infserver(env_vars={"X": "module", "Y": "1"})
        def x_of(server): return [get(server, "/argv")["env"].get(name) for name in "XY"]
        def test_module(inference_server): assert x_of(inference_server) == ["module", "1"]
        @pytest.mark.infserver(env_vars={"X": "test"})
        def test_closer_marks_count_key_by_key(inference_server): assert x_of(inference_server) == ["test", "1"]
        @pytest.mark.infserver(env_vars={"X": "class"})
        class TestClass:
            def test_class(self, inference_server): assert x_of(inference_server) == ["class", "1"]
            @pytest.mark.infserver(env_vars={"X": "test"})
            def test_method(self, inference_server): assert x_of(inference_server) == ["test", "1"]
        @pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.infserver(env_vars={"X": "class"}))])
        def test_param(inference_server, n):
            assert x_of(inference_server) == [["module", "1"], ["class", "1"]][n - 1]
        """,
        test_2="""
        def test_plain(inference_server): assert inference_server.name == "a"
        """,
    )
    result = twin_project.run("-v", "--infserver-max-servers=2")
    result.assert_outcomes(passed=7)
    # Test ids keep the server's name.
    result.stdout.fnmatch_lines(["*test_1.py::test_module?a?*"])
    started = twin_project.events("started")
    assert sorted(set(started)) == [
        "started a",
        "started a+X=class+Y=1",
        "started a+X=module+Y=1",
        "started a+X=test+Y=1",
    ]
    if not twin_project.on_workers:
        assert len(started) == 4


def test_every_form_of_a_setting(inline_project, servers_yaml) -> None:
    servers_yaml({"env_vars": {"KEPT": "yes"}}, a=["--said", "first"])
    inline_project.files(
        test_1="""
        import pytest
        from pytest_infserver import variant
        from helpers import get
        @pytest.mark.infserver("a", extra_args=["--said", "added"])
        def test_arguments(inference_server): assert get(inference_server, "/argv")["argv"][-2:] == ["--said", "added"]
        @pytest.mark.infserver("a", env_vars=None)
        def test_none(inference_server): assert "KEPT" not in get(inference_server, "/argv")["env"]
        @pytest.mark.infserver("a", env_vars={"ROOT": lambda config: str(config.rootpath)})
        def test_callable(inference_server, pytestconfig):
            assert get(inference_server, "/argv")["env"]["ROOT"] == str(pytestconfig.rootpath)
        @pytest.mark.parametrize("inference_server", ["a", variant("a", env_vars={"X": "1"})], indirect=True)
        def test_value(inference_server):
            assert get(inference_server, "/argv")["env"].get("X") == ("1" if "X=1" in inference_server.name else None)
        """
    )
    inline_project.run().assert_outcomes(passed=5)


def test_a_mark_describes_a_server_where_none_is_configured(twin_project) -> None:
    twin_project.files(
        test_1=f"""
        import pytest
        COMMAND = [{sys.executable!r}, "-S", {ENGINE!r}, "--port", "{{port}}"]
        pytestmark = pytest.mark.infserver(backend="command", launch_command=COMMAND)
        def test_1(inference_server): assert inference_server.check_health()
        @pytest.mark.infserver(env_vars={{"X": "1"}})
        def test_2(inference_server): assert inference_server.env_vars["X"] == "1"
        """
    )
    twin_project.bare().assert_outcomes(passed=2)


def test_mistakes_name_the_file_and_line_and_start_nothing(inline_project, servers_yaml, fake_server, quiet) -> None:
    running = fake_server().start()
    servers_yaml(a=[], there={"backend": "remote", "url": running.server_url})
    marks = {
        'infserver("a", modl="x")': "unknown key 'modl'",
        'infserver("a", startup_timeout="soon")': "'startup_timeout'",
        'infserver("a", backend="vllm")': "cannot change",
        'infserver("there", model="x")': "its settings cannot be changed from here",
        'infserver("a", extra_args="--x")': "must be a list of words",
    }
    for number, mark in enumerate(marks):
        inline_project.files(
            **{f"test_{number}": f"import pytest\n\n@pytest.mark.{mark}\ndef test(inference_server): pass"}
        )
    result = inline_project.run("--continue-on-collection-errors")
    result.assert_outcomes(errors=len(marks))
    text = quiet(result)
    for number, words in enumerate(marks.values()):
        assert f"test_{number}.py:3: " in text
        assert words in text
    assert inline_project.events("started") == []


def test_the_closest_name_counts_and_marks_that_exclude_one_another_are_told(inline_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[])
    inline_project.files(
        test_1="""
        import pytest
        pytestmark = pytest.mark.infserver("a")
        def test_a(inference_server): assert inference_server.name == "a"
        @pytest.mark.infserver("b")
        def test_b(inference_server): assert inference_server.name == "b"
        """,
        test_2="""
        import pytest
        @pytest.mark.infserver("a")
        @pytest.mark.backend("remote")
        def test_none(inference_server): pass
        """,
    )
    result = inline_project.run("-rs", "--continue-on-collection-errors")
    result.assert_outcomes(passed=2, skipped=1)


def test_dry_run_prints_them(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver(env_vars={"X": "1"})
        def test_1(inference_server): pass
        """
    )
    result = inline_project.run("--collect-only", "-q")
    result.stdout.fnmatch_lines(["test_1.py::test_1?a?"])
    assert inline_project.events("started") == []


def test_ids_of_several_variants_of_one_server_are_told_apart_by_what_is_different(
    inline_project, servers_yaml
) -> None:
    """So an id is the same when another variant comes before it, and on another machine."""
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pathlib, pytest
        from pytest_infserver import variant
        ROOT = pathlib.Path(__file__).parent
        VARIANTS = [
            variant("a", env_vars={"X": "1"}),
            variant("a", env_vars={"X": "2", "MY_TOKEN": "very-secret-1"}),
            variant("a", output_dir=ROOT / "logs", extra_args=["--said", str(ROOT / "word")]),
        ]
        @pytest.mark.parametrize("inference_server", VARIANTS, indirect=True)
        def test_value(inference_server): pass
        """
    )
    result = inline_project.run("--collect-only", "-q")
    assert [line for line in result.outlines if "::" in line] == [
        "test_1.py::test_value[a+X=1]",
        "test_1.py::test_value[a+MY_TOKEN+X=2]",
        "test_1.py::test_value[a+extra_args=--said,word+output_dir=logs]",
    ]


def test_settings_of_several_marks_are_merged_as_those_of_a_file(inline_project, servers_yaml) -> None:
    """Probes are replaced as a whole; a list over a mapping is refused, not taken silently."""
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        pytestmark = pytest.mark.infserver("a", ready={"http": "/nowhere"}, server_args={"x": 1})
        @pytest.mark.infserver(ready={"tcp": True})
        def test_probe(inference_server): assert inference_server.check_health()
        """,
        test_2="""
        import pytest
        pytestmark = pytest.mark.infserver("a", server_args={"x": 1})
        @pytest.mark.infserver(server_args=["--y"])
        def test_list(inference_server): pass
        """,
    )
    inline_project.run("test_1.py", "--infserver-startup-timeout=20").assert_outcomes(passed=1)
    result = inline_project.run("test_2.py")
    result.assert_outcomes(errors=1)
    assert "is a mapping in one place and a list in another" in result.stdout.str()


def test_marks_of_parameters_that_name_the_same_server(inline_project, servers_yaml) -> None:
    """Their ids are pytest's own: `llama0` and `llama1`; which is which their marks say, not their number."""
    servers_yaml(llama=[], other=[])
    inline_project.files(
        test_1="""
        import pytest
        from helpers import get
        ONE, TWO = (pytest.mark.infserver(env_vars={"X": x}) for x in "12")
        NAMED = pytest.mark.infserver("llama", env_vars={"X": "1"})
        def x_of(server): return server.name, get(server, "/argv")["env"].get("X")
        PARAMS = [pytest.param("llama", marks=ONE), pytest.param("llama", marks=TWO), "llama", "other"]
        @pytest.mark.parametrize("inference_server", PARAMS, indirect=True)
        def test_it(inference_server, request):
            assert x_of(inference_server) == {
                "llama0": ("llama+X=1", "1"),
                "llama1": ("llama+X=2", "2"),
                "llama2": ("llama", None),
                "other": ("other", None),
            }[request.node.callspec.id]
        @pytest.mark.infserver(env_vars={"X": "2"})
        @pytest.mark.parametrize("inference_server", [pytest.param("llama", marks=NAMED), "llama"], indirect=True)
        def test_over_the_function_s_own(inference_server, request):
            want = {"llama0": ("llama+X=1", "1"), "llama1": ("llama+X=2", "2")}[request.node.callspec.id]
            assert x_of(inference_server) == want
        """,
    )
    result = inline_project.run("-v", "--infserver-max-servers=4")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["*::test_it?llama0? PASSED*"])
    started = inline_project.events("started")
    assert sorted(started) == ["started llama", "started llama+X=1", "started llama+X=2", "started other"]
    (inline_project.path / "events.txt").unlink()
    inline_project.run("-k", "llama1 and test_it").assert_outcomes(passed=1, deselected=5)
    assert inline_project.events("started") == ["started llama+X=2"]


def test_one_that_dies_is_there_again_for_the_next_test_and_three_times_at_most(inline_project, servers_yaml) -> None:
    """As a configured one, with its own settings and on the same port; so is one that only the factory describes."""
    servers_yaml(a=[])
    inline_project.files(
        test_mark="""
        import pytest
        from helpers import get, kill, note
        @pytest.mark.infserver("a", env_vars={"X": "1"})
        @pytest.mark.parametrize("n", range(6))
        def test_it(inference_server, n):
            assert get(inference_server, "/argv")["env"]["X"] == "1"
            note("port", inference_server.port)
            kill(inference_server)
        """,
        test_factory="""
        import pytest
        from helpers import get, kill, note
        @pytest.fixture(scope="module")
        def held(inference_server_factory): return inference_server_factory("a", env_vars={"X": "2"})
        @pytest.mark.parametrize("n", range(6))
        def test_it(held, n):
            assert get(held, "/argv")["env"]["X"] == "2"
            kill(held)
        """,
    )
    result = inline_project.run("--infserver-max-servers=2")
    result.assert_outcomes(failed=8, errors=4)
    for name in ("a+X=1", "a+X=2"):
        assert inline_project.events("started", of=[name]) == [f"started {name}"] * 4
        assert f"{name} (command) has died 4 times and is not restarted any more" in result.stdout.str()
    assert len(set(inline_project.events("port"))) == 1


def test_a_fixed_port_that_is_taken_fails_the_tests_that_want_it_and_names_the_holder(
    inline_project, servers_yaml, quiet
) -> None:
    """Whoever has it may be gone by the time of the test: only then can it be told."""
    servers_yaml(a={"backend": "command", "launch_command": [*COMMAND, "--said", "a"], "port": 21999}, b=[])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        inline_project.files(
            test_1=f"""
            import pytest
            @pytest.mark.infserver("a", port={port})
            def test_mark(inference_server): pass
            def test_factory(inference_server_factory): inference_server_factory("a", port={port})
            @pytest.mark.infserver("b")
            def test_other(inference_server): assert inference_server.check_health()
            """
        )
        result = inline_project.run("--infserver-max-servers=2")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    text = quiet(result)
    assert text.count(f"a+port={port} (command) cannot start: port {port} is taken by pid {os.getpid()} ") == 2
    assert inline_project.events("started") == ["started b"]
