"""Servers that start while pytest still collects, since the last run of the same invocation has wanted them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fake_servers import fake_block
from plugin.conftest import Project, run_in

from pytest_infserver.cli.main import main

pytestmark = pytest.mark.run
PLANS = ".pytest_cache/d/infserver/plans.json"
AHEAD = """
import pathlib, time
LOGS = pathlib.Path(__file__).parent / "server_logs"

def started(name):
    return [path.parent.name for path in LOGS.rglob("command.txt") if name in path.parts]

def wait_for(name):
    deadline = time.monotonic() + 60
    while not started(name):
        assert time.monotonic() < deadline, f"{name} was not started while pytest collected"
        time.sleep(0.02)
"""
# What a file says besides its code changes nothing that the plan depends on.
TEST = """
import pathlib, ahead
for name in pathlib.Path(__file__).with_name("wait").read_text().split():
    ahead.wait_for(name)
def test_server(inference_server): pass
def test_plain(): pass
"""


@pytest.fixture(params=[(), pytest.param(("-n2",), marks=pytest.mark.nightly)], ids=["alone", "n2"])
def workers(request: pytest.FixtureRequest) -> tuple[str, ...]:
    if request.param:
        pytest.importorskip("xdist")
    return request.param


@pytest.fixture
def project(tmp_path: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose runs are called with the same words, which those of pytester are not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    return Project(folder, lambda *words: run_in(folder, os.environ, *words))


@pytest.fixture
def ahead(project: Any, workers: tuple[str, ...]) -> Any:
    """A project whose tests wait at their import for the servers that the file ``wait`` names."""
    (project.path / "wait").write_text("")
    project.files(ahead=AHEAD, test_1=TEST)
    plugins = ("cacheprovider", "xdist") if workers else ("cacheprovider",)
    run = project.run
    project.run = lambda *words: run(*workers, *words, plugins=plugins)
    return project


def await_servers(project: Any, *names: str) -> None:
    """Let the next import of the tests wait for starts of these servers that no earlier run has made."""
    shutil.rmtree(project.path / "server_logs", ignore_errors=True)
    (project.path / "events.txt").unlink(missing_ok=True)
    (project.path / "wait").write_text(" ".join(names))


def logs(project: Any) -> set[str]:
    return {path.parent.name for path in (project.path / "server_logs").rglob("command.txt")}


@pytest.mark.parametrize(
    "workers",
    [pytest.param((), id="alone", marks=pytest.mark.promise), pytest.param(("-n2",), id="n2")],
    indirect=True,
)
def test_the_second_run_starts_them_while_it_collects_and_once(ahead) -> None:
    ahead.servers(a=[], b={**fake_block(), "needs": ["a"]}, unused=[])
    variants = """
import pytest
pytestmark = pytest.mark.infserver("b")
@pytest.mark.infserver("a", env_vars={"X": "1"})
def test_variant(inference_server): pass
"""
    ahead.files(test_1=TEST + variants)
    ahead.run("--infserver-max-servers=3").assert_outcomes(passed=3)
    file = ahead.path / PLANS
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.stat().st_mtime_ns
    # What needs another one waits for that one's hook, which is called when everything is imported.
    await_servers(ahead, "a", "a+X=1")
    result = ahead.run("--infserver-max-servers=3")
    result.assert_outcomes(passed=3)
    assert sorted(ahead.events("started")) == ["started a", "started a+X=1", "started b"]
    assert "while pytest collected" not in result.stdout.str()
    # What is the same is not written again: pytest -f looks at files.
    assert file.stat().st_mtime_ns == before


def test_nothing_starts_where_the_last_run_was_another_one(project) -> None:
    project.servers(a=[])
    project.files(test_1="def test_server(inference_server): pass", test_2="def test_plain(): pass")

    def run(*words: str) -> None:
        shutil.rmtree(project.path / "server_logs", ignore_errors=True)
        assert project.run(*words, plugins=("cacheprovider",)).ret == 0

    run()
    assert logs(project) == {"a"}
    for words in (["--collect-only"], ["--infserver-dry-run"], ["-k", "plain"], ["test_2.py"], ["--setup-plan"]):
        run(*words)
        assert logs(project) == set(), words
    # The same words, and a file that has changed since.
    run("-v")
    assert logs(project) == {"a"}
    project.files(test_1="def test_server_no_more(): pass")
    run("-v")
    assert logs(project) == set()


def test_it_can_be_switched_off(project) -> None:
    project.servers(a=[])
    project.files(test_1="def test_server(inference_server): pass")
    project.run("--no-infserver-prelaunch", plugins=("cacheprovider",)).assert_outcomes(passed=1)
    assert not (project.path / PLANS).exists()


CHOOSES = """
def pytest_collection_modifyitems(config, items):
    left = (pathlib.Path(__file__).with_name("left")).read_text()
    items[:] = [item for item in items if left in item.name]
"""


@pytest.mark.parametrize("keep", [(), ("--infserver-keep=10m",)], ids=["", "keep"])
def test_what_nobody_wants_is_stopped(ahead, keep, monkeypatch) -> None:
    folder = tempfile.mkdtemp(prefix="infserver-")
    monkeypatch.setenv("INFSERVER_STATE_DIR", folder)
    ahead.servers(a=[])
    (ahead.path / "left").write_text("")
    ahead.conftest("import pathlib" + CHOOSES)
    # The next run finds none that is kept.
    try:
        ahead.run(*keep)
        main(["stop", "--all"])
        await_servers(ahead, "a")
        (ahead.path / "left").write_text("plain")
        result = ahead.run(*keep)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["a was started while pytest collected, since the last run *is stopped: no test*"])
        assert "failed" not in result.stdout.str()
        # The first of the runs after that knows it.
        await_servers(ahead)
        ahead.run(*keep).assert_outcomes(passed=1)
        assert logs(ahead) == set()
    finally:
        main(["stop", "--all"])
        shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["no tests", "collection error", "interrupt"])
def test_they_are_stopped_where_nothing_runs(ahead, what) -> None:
    ahead.servers(a=[], b=[])
    ahead.files(test_1=TEST.replace("def test_server", '@__import__("pytest").mark.infserver("a")\ndef test_server'))
    (ahead.path / "left").write_text("")
    ahead.conftest(
        """
import pathlib
import pytest
def pytest_collect_file(file_path):
    left = pathlib.Path(__file__).with_name("left").read_text()
    if left in ("collection error", "interrupt") and file_path.name == "test_1.py":
        import ahead
        ahead.wait_for("a")
        raise KeyboardInterrupt if left == "interrupt" else ValueError("x")
"""
        + CHOOSES
    )
    ahead.run().assert_outcomes(passed=2)
    plans = (ahead.path / PLANS).read_text()
    await_servers(ahead, "a")
    (ahead.path / "left").write_text(what)
    if what == "interrupt":
        ahead.files(test_0='import pytest\n@pytest.mark.infserver("b")\ndef test_other(inference_server): pass\n')
    result = ahead.run()
    assert result.ret != 0
    if what == "interrupt":
        # Of tests that nobody has collected to the end nothing is known.
        assert "while pytest collected" not in result.stdout.str()
    if what != "no tests":
        assert (ahead.path / PLANS).read_text() == plans
    # That no process is left the fixture of all these tests looks at.
    assert logs(ahead) == {"a"}
    assert ahead.events("test") == []


def test_a_start_that_was_too_early_is_made_again(project) -> None:
    """It needs a file that the tests make when they are imported."""
    made = project.path / "made.py"
    project.servers(
        a={
            "backend": "command",
            "launch_command": ["sh", "-c", f'exec "$@" < {made}', "sh", *fake_block()["launch_command"]],
        }
    )
    made.write_text("")
    project.files(
        ahead=AHEAD,
        test_1="""
import pathlib, ahead, time
made = pathlib.Path(__file__).with_name("made.py")
if not made.exists():
    ahead.wait_for("a")
    deadline = time.monotonic() + 60
    while "No such file" not in "".join(path.read_text() for path in ahead.LOGS.rglob("*.log")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    made.write_text("")
def test_server(inference_server): pass
""",
    )
    project.run(plugins=("cacheprovider",)).assert_outcomes(passed=1)
    made.unlink()
    await_servers(project)
    project.run(plugins=("cacheprovider",)).assert_outcomes(passed=1)
