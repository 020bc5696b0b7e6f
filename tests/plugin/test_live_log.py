"""Servers' logs where a CI job is looked at: live, so many lines of them, and in groups."""

from __future__ import annotations

import pytest
from fake_servers import fake_block

SAYS = """
    import pytest
    from helpers import get

    def test_says(inference_server):
        get(inference_server, "/say?text=hello+from+the+engine")
        print("printed by the test")

    def test_factory(inference_server_factory):
        inference_server_factory("small", env_vars={"LEVEL": "3"})
"""


@pytest.mark.parametrize("how", [("-s",), ("--infserver-log", "live")], ids=["s", "live"])
def test_the_lines_of_all_servers_come_with_their_names(run, project, quiet, how):
    project.servers(
        small=fake_block("--say", "starts with sk-very-secret-1", env_vars={"MY_TOKEN": "sk-very-secret-1"})
    )
    project.files(test_it=SAYS)
    result = run(*how)
    result.assert_outcomes(passed=2)
    text = quiet(result)
    lines = text.splitlines()
    assert "small | starts with ********" in lines
    assert "small | hello from the engine" in lines
    others = [line for line in lines if line.endswith(" | starts with ********") and not line.startswith("small |")]
    assert len(others) == 1
    assert others[0].startswith("small")
    assert "sk-very-secret-1" not in text


@pytest.mark.parametrize("how", [(), ("-s", "--infserver-log", "failed")], ids=["default", "failed"])
def test_without_it_only_failed_tests_show_them(inline_project, quiet, how):
    inline_project.servers(small=["--say", "engine starts"])
    inline_project.files(test_it=SAYS)
    result = inline_project.run(*how)
    result.assert_outcomes(passed=2)
    assert "engine" not in quiet(result)


def test_so_many_lines_of_a_log_are_in_a_report(inline_project, quiet):
    inline_project.servers(small=[])
    inline_project.files(
        test_it="""
            from helpers import get

            def test_it(inference_server):
                for number in range(9):
                    get(inference_server, f"/say?text={'abcdefghi'[number]}-line")
                assert False
        """
    )
    text = quiet(inline_project.run("--infserver-log-lines", "3"))
    assert "f-line" not in text
    assert "[... 6 lines left out]\ng-line\nh-line\ni-line\n" in text
    assert "--infserver-log-lines: expected a number from 1 on" in quiet(inline_project.run("--infserver-log-lines=0"))


FAILS = """
    import pytest
    from helpers import get, kill

    @pytest.mark.infserver("small")
    def test_fails(inference_server):
        get(inference_server, "/say?text=about+to+fail")
        assert False, "100% wrong"

    @pytest.mark.infserver("dies")
    def test_dies(inference_server):
        kill(inference_server)
"""


def test_github_gets_groups_and_annotations(twin_project, quiet, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(twin_project.path.parent))
    twin_project.servers(small=[], dies=[])
    twin_project.files(test_it=FAILS)
    result = twin_project.run("--junitxml=junit.xml")
    result.assert_outcomes(failed=2)
    text = quiet(result)
    lines = text.splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith("::group::small: log during this test"))
    assert lines[begin + 1 : begin + 3] == ["about to fail", "::endgroup::"]
    place = f"file={twin_project.path.name}/test_it.py,line="
    found = [line for line in lines if line.startswith(f"::error {place}")]
    assert len(found) == 2
    assert any("AssertionError: 100%25 wrong" in line and "test_fails[small] (small)" in line for line in found)
    assert any("exited with code 3" in line for line in found)
    assert "::group::" not in (twin_project.path / "junit.xml").read_text()


def test_buildkite_gets_sections(inline_project, quiet, monkeypatch):
    monkeypatch.setenv("BUILDKITE", "true")
    inline_project.servers(small=[], dies=[])
    inline_project.files(test_it=FAILS)
    text = quiet(inline_project.run("-k", "fails"))
    assert "\n--- small: log during this test" in text
    assert "about to fail\n+++ pytest\n" in text
    assert "::error" not in text


def test_the_state_of_a_failed_tests_server_names_its_command(twin_project, quiet):
    twin_project.servers(small=fake_block("--say", "x", env_vars={"MY_TOKEN": "sk-very-secret-1", "LEVEL": "3"}))
    twin_project.files(test_it="def test_it(inference_server): assert False")
    text = quiet(twin_project.run())
    line = next(line for line in text.splitlines() if line.startswith("command: "))
    assert "LEVEL=3" in line
    assert "MY_TOKEN=" in line
    assert line.endswith("--say x")
