"""The fixture ``response_snapshot`` in a project."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("syrupy")

TEST = """
    def test_it(inference_server, response_snapshot):
        answer = {"id": "1", "choices": [{"text": TEXT, "logprobs": {"token_logprobs": [LOGPROB]}}], "usage": {"n": N}}
        response_snapshot(answer)
"""


def project_with(project, text="'hi'", logprob="-1.0", n="1"):
    project.files(test_it=TEST.replace("TEXT", text).replace("LOGPROB", logprob).replace("N}", f"{n}}}"))


@pytest.fixture
def project(inline_project):
    inline_project.servers(small=[], large=[])
    project_with(inline_project)
    return inline_project


def run(project, *options):
    return project.run(*options, plugins=("syrupy",))


def test_each_server_has_its_answer_and_its_engine_is_shown(project):
    missing = run(project)
    missing.assert_outcomes(failed=2)
    missing.stdout.fnmatch_lines(["*no answer is stored at *test_it?small?.json: run pytest with --snapshot-update*"])
    run(project, "--snapshot-update").assert_outcomes(passed=2)
    folder = project.path / "__snapshots__" / "test_it"
    assert sorted(one.name for one in folder.iterdir()) == ["test_it[large].json", "test_it[small].json"]
    stored = json.loads((folder / "test_it[small].json").read_text())
    assert stored["engine"] == "command"
    assert stored["answer"]["choices"][0]["text"] == "hi"
    run(project).assert_outcomes(passed=2)
    # Within the tolerance, and what is ignored.
    project_with(project, logprob="-1.1", n="7")
    run(project).assert_outcomes(passed=2)
    project_with(project, text="'ho'")
    other = run(project)
    other.assert_outcomes(failed=2)
    other.stdout.fnmatch_lines(
        [
            "*the answer is not like the one stored at *test_it?small?.json (of command):",
            '*choices?0?.text: "ho", stored "hi"',
        ]
    )
    run(project, "--snapshot-update").assert_outcomes(passed=2)
    run(project).assert_outcomes(passed=2)


def test_a_server_that_the_id_does_not_name_is_in_the_file_s_name(inline_project):
    inline_project.servers(small=[])
    inline_project.files(
        test_it="""
            import pytest

            class Server:
                name, backend_name, attached = "mine", "own", True

            @pytest.fixture
            def inference_server():
                return Server()

            def test_it(inference_server, response_snapshot):
                response_snapshot({"choices": [{"text": "a"}]})
                response_snapshot({"choices": [{"text": "b"}]})
                response_snapshot({"choices": [{"text": "c"}]}, server=inference_server)
        """
    )
    run(inline_project, "--snapshot-update").assert_outcomes(passed=1)
    names = sorted(one.name for one in (inline_project.path / "__snapshots__" / "test_it").iterdir())
    assert names == ["test_it[mine.2].json", "test_it[mine.3].json", "test_it[mine].json"]
    run(inline_project).assert_outcomes(passed=1)


def test_without_syrupy_it_says_what_to_install(project):
    result = project.run()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*response_snapshot needs syrupy: pip install 'pytest-infserver?snapshot?'*"])
