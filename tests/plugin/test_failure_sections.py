"""What a failed test says of its server: its state, its last heartbeat, how it died, and what it wrote."""

from __future__ import annotations

import os
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"
TITLE = re.compile(r"^-* ?(\w+): state(?: \((\w+), (http://[\d.:]+)\))? ?-*$")


def states(result: pytest.RunResult) -> list[tuple[str, list[str]]]:
    """Return the names of the servers whose state is shown, each with the lines that say it."""
    lines = result.stdout.lines
    found = []
    for number, line in enumerate(lines):
        match = TITLE.match(line)
        if match:
            found.append((match[1], lines[number + 1 : number + 3]))
    return found


def test_each_phase_that_fails_says_how_its_server_is_and_a_test_that_passes_asks_nobody(
    project, servers_yaml, run
) -> None:
    servers_yaml({"heartbeat_interval": 0.05}, a=[], b=[])
    project.conftest(
        """
import pytest, time
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.pool.remote import RemoteMember

def spy(kind):
    original = kind.view
    def view(self, *names):
        import traceback
        if any(frame.name == "add_server_sections" for frame in traceback.extract_stack()):
            note("asked")
        return original(self, *names)
    kind.view = view
spy(RemoteMember)
spy(InferenceServer)

@pytest.fixture
def bad_setup(inference_server):
    time.sleep(0.3)
    assert 0
@pytest.fixture
def bad_teardown(inference_server):
    yield
    assert 0
"""
    )
    project.files(
        test_1="""
        import pytest
        pytestmark = pytest.mark.infserver("a")
        def test_call_and_teardown(bad_teardown): assert 0
        def test_setup(bad_setup): pass
        @pytest.mark.parametrize("n", range(4))
        def test_pass(inference_server, n): pass
        @pytest.mark.xfail
        def test_xfail(inference_server): assert 0
        def test_skip(inference_server): pytest.skip("no")
        """
    )
    result = run("-v")
    result.assert_outcomes(passed=4, failed=1, errors=2, xfailed=1, skipped=1)
    assert len(project.events("asked")) == 3
    found = states(result)
    assert [name for name, _ in found] == ["a"] * 3
    for _, (state, heartbeat) in found:
        assert re.fullmatch(r"ready, up [\d.]+ s, pid \d+", state), state
        assert heartbeat.startswith("heartbeat: ")
    waited = [heartbeat for _, (_, heartbeat) in found if "none yet" not in heartbeat]
    assert waited
    for heartbeat in waited:
        assert re.fullmatch(r"heartbeat: answered 200 in \d+ ms, [\d.e-]+ s ago", heartbeat), heartbeat


def test_none_yet_says_when_the_first_heartbeat_comes(project, servers_yaml, run) -> None:
    servers_yaml({"heartbeat_interval": 77}, a=[])
    project.files(test_1="def test_it(inference_server): assert 0")
    result = run()
    result.assert_outcomes(failed=1)
    ((_, (_, heartbeat)),) = states(result)
    assert heartbeat == "heartbeat: none yet, the first comes after heartbeat_interval 77 s"


def test_a_heartbeat_that_fails_says_why_and_since_when(project, servers_yaml, run) -> None:
    servers_yaml({"heartbeat_interval": 0.05, "hang_timeout": 99}, a=[])
    project.files(
        test_1="""
        import time
        from helpers import get
        def test_it(inference_server):
            time.sleep(0.5)
            get(inference_server, "/sick")
            time.sleep(0.5)
            assert 0
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    ((_, (state, heartbeat)),) = states(result)
    assert state.startswith("ready, up ")
    pattern = r"heartbeat: failing for \S+ s \(hang_timeout 99 s\): answered 503 in \d+ ms, \S+ s ago; last good answer"
    assert re.match(pattern, heartbeat), heartbeat


def test_a_server_that_died_in_any_phase_says_how_and_a_restarted_one_which_launch_it_is(
    project, servers_yaml, run
) -> None:
    servers_yaml({"heartbeat_interval": 0.05}, a=[], b=[], c=[])
    project.files(
        test_1="""
        import pytest, time
        from helpers import get, kill
        @pytest.fixture
        def in_setup(inference_server):
            kill(inference_server)
            assert 0
        @pytest.fixture
        def in_teardown(inference_server):
            yield
            kill(inference_server, "/kill?signal=11")
            assert 0
        @pytest.mark.infserver("a", exclusive=True)
        @pytest.mark.parametrize("n", range(2))
        def test_alone(inference_server, n):
            kill(inference_server)
            assert inference_server.wait_death(20)
            assert 0
        @pytest.mark.infserver("b")
        def test_setup(in_setup): pass
        @pytest.mark.infserver("c")
        def test_teardown(in_teardown): pass
        @pytest.mark.infserver("a")
        def test_last(inference_server): assert 0
        """
    )
    result = run("-v", "-p", "no:randomly")
    outcomes = result.parseoutcomes()
    assert outcomes == {"failed": 3, "passed": 1, "errors": 2}
    text = result.stdout.str()
    lines = [state for _, (state, _) in states(result)]
    assert len(lines) == 5
    assert "b (command) exited with code 3, while it was in use" in text
    assert "c (command) was killed by SIGSEGV, while it was in use" in text
    assert any(re.match(r"died: exited with code 3, \S+ s ago, after \S+ s", line) for line in lines), lines
    # It may be starting again already.
    assert all(re.match(r"died: |ready, |starting", line) for line in lines), lines
    assert any(re.search(r", launch [2-5] of this run$", line) for line in lines), lines


def test_a_server_that_the_test_hung_says_so(project, servers_yaml, run) -> None:
    servers_yaml({"heartbeat_interval": 0.05, "hang_timeout": 0.3}, a=[])
    project.files(
        test_1="""
        from helpers import get
        def test_1(inference_server):
            get(inference_server, "/sick")
            assert inference_server.wait_death(30)
            assert 0
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    assert "a (command) hung and was killed: its health check has failed for" in result.stdout.str()
    ((_, (state, _)),) = states(result)
    assert re.match(r"died: hung and was killed: |starting", state), state


def test_an_attached_server_says_its_state_and_has_no_log(project, fake_server, run) -> None:
    engine = fake_server().start()
    url = engine.server_url
    (project.path / "servers.yaml").write_text(
        f"servers: {{far: {{backend: remote, url: '{url}', heartbeat_interval: 0.05}}}}\n"
    )
    project.files(test_1="import time\ndef test_it(inference_server): time.sleep(0.5); assert 0")
    result = run()
    result.assert_outcomes(failed=1)
    ((name, (state, heartbeat)),) = states(result)
    assert name == "far"
    assert re.fullmatch(r"ready, up \S+ s, attached: not started by this run", state), state
    assert heartbeat.startswith("heartbeat: answered 200 in ")
    assert ": log during" not in result.stdout.str()


def test_servers_of_the_factory_and_several_at_once(project, servers_yaml, run) -> None:
    servers_yaml(a=[], b=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_needs("a", "b")
        def test_both(inference_servers, inference_server_factory):
            inference_server_factory("a", port=None)
            assert 0
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    found = states(result)
    assert [name for name, _ in found] == ["a", "b", "a"]
    assert all(state.startswith("ready, up ") for _, (state, _) in found)


def test_a_failed_start_is_told_once_in_full_and_then_in_a_line(project, servers_yaml, run, quiet, monkeypatch) -> None:
    # pytest repeats whole texts in its short summary there.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    words = ["--say", "RuntimeError: no such kernel", "--say", "more", "--say", "words", "--exit", "3"]
    servers_yaml(bad=words)
    project.files(
        test_1="""
        import pytest
        @pytest.mark.parametrize("n", range(6))
        def test_it(inference_server, n): pass
        """
    )
    result = run("-v", "--junitxml=junit.xml")
    result.assert_outcomes(errors=6)
    text = quiet(result)
    head = "bad (command) exited with code 3, before it was ready"
    full = [line for line in result.outlines if line.removeprefix("E").strip() == head]
    assert len(full) == 1
    pattern = rf"{re.escape(head)}: RuntimeError: no such kernel \(all of it is shown with (\S+)\)"
    short = re.findall(rf"^E?\s*{pattern}$", text, re.MULTILINE)
    assert len(short) == 5
    assert len(set(short)) == 1
    assert text.count("  command: ") == 1
    assert text.count(": log during start") == 1
    # The test that it names is the one that shows it.
    cases = ET.parse(project.path / "junit.xml").getroot().iter("testcase")
    told = {case.get("name"): case.find("error").text for case in cases}
    assert len(told) == 6
    (shown,) = [name for name, reason in told.items() if "  command: " in reason]
    assert short[0] == f"test_1.py::{shown}"


def test_a_rerun_of_the_first_test_keeps_all_of_a_failed_start(project, servers_yaml) -> None:
    pytest.importorskip("pytest_rerunfailures")
    servers_yaml(bad=["--exit", "3"])
    project.files(test_1="def test_1(inference_server): pass\ndef test_2(inference_server): pass")
    result = project.run("-v", "--reruns=1", plugins=("pytest_rerunfailures",))
    assert result.parseoutcomes() == {"errors": 2, "rerun": 2}
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_1?bad?*",
            "bad (command) exited with code 3, before it was ready",
            "  command: *",
            "*ERROR at setup of test_2?bad?*",
            "bad (command) exited with code 3, before it was ready (all of it is shown with test_1.py::test_1?bad?)",
        ]
    )


def test_junit_stays_valid_and_no_secret_is_shown_whatever_the_server_writes(
    project, servers_yaml, run, monkeypatch
) -> None:
    secret = "very-secret-\u00e9-1"
    garbage = r"\x1b[31mRuntimeError: very-\x1b[0msecret-\u00e9-1 \x00\x01\x07\x1b]0;title\x07 \ud800 end"
    servers_yaml({"env_vars": {"MY_TOKEN": secret}}, a=[], b=[])
    project.files(
        test_1=f"""
        import os, pytest
        from helpers import kill, get
        BYTES = "{garbage}".encode("utf-8", "surrogatepass") + b"\\xff\\xfe\\xc3\\n"
        def test_it(inference_server):
            with open(inference_server.log_path, "ab") as log:
                log.write(BYTES + b"x" * 20_000 + b"\\r" * 100 + b"last words very-secret-" + b"\\n" + BYTES)
            kill(inference_server)
            assert 0
        """
    )
    result = run("--junitxml=junit.xml")
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    assert "\x1b" not in text
    assert "\0" not in text
    assert secret not in text
    assert "title" not in text
    assert "RuntimeError: ********" in text
    root = ET.parse(project.path / "junit.xml").getroot()
    assert len(list(root.iter("failure"))) == 2
    assert secret not in (project.path / "junit.xml").read_text()
    assert len(text) < 80_000


def test_a_log_of_a_gigabyte_costs_no_time(project, servers_yaml, run) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        from helpers import get
        def test_it(inference_server):
            # Sparse: it has the size, but takes no room.
            with open(inference_server.log_path, "r+b") as log: log.truncate(2**30)
            get(inference_server, "/say?text=last-words")
            assert 0
        """
    )
    result = run("--durations=0", "-vv")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["?... 10737* bytes left out, see *", "last-words"])
    assert len(result.stdout.str()) < 20_000


def test_a_worker_that_crashes_costs_its_test_and_no_section(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[])
    project.files(
        test_1="""
        import os, pytest
        def test_crash(inference_server): os._exit(1)
        @pytest.mark.parametrize("n", range(4))
        def test_fails(inference_server, n): assert 0
        """
    )
    result = project.run("-n2", plugins=("xdist",))
    result.assert_outcomes(failed=5)
    assert "INTERNALERROR" not in result.stdout.str()
    found = states(result)
    assert len(found) == 4
    assert all(state.startswith("ready, ") for _, (state, _) in found)


def test_the_kernel_kills_the_server_of_a_test(project, memory_cgroup, run) -> None:
    move = f'echo $$ > {memory_cgroup}/cgroup.procs; exec "$0" "$@"'
    command = ["sh", "-c", move, sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}"]
    text = yaml.safe_dump({"servers": {"a": {"backend": "command", "launch_command": command}}})
    (project.path / "servers.yaml").write_text(text)
    project.files(
        test_1="""
        from helpers import kill
        def test_1(inference_server):
            kill(inference_server, "/eat?bytes=200000000")
            assert 0
        """
    )
    result = run("-v", "-rf")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*inference server died during this test*",
            "a (command) was killed by the kernel for memory (SIGKILL), while it was in use",
            "  cause:   the kernel killed *",
            "           the limit of its cgroup is 64 MiB, peak 6* MiB (*)",
            "           memory of the host, not of a GPU *",
        ]
    )
    summary = next(line for line in result.stdout.lines if line.startswith("FAILED"))
    assert "killed by the kernel for memory" in summary


@pytest.mark.skipif(os.environ.get("SKIP_INTEGRATION_TESTS") == "1", reason="SKIP_INTEGRATION_TESTS=1 is set")
def test_a_real_engine(project, run) -> None:
    pytest.importorskip("xllamacpp")
    (project.path / "servers.yaml").write_text(
        "defaults: {backend: llamacpp, model: 'builtin:tiny', heartbeat_interval: 0.2}\nservers: {llama: , other: }\n"
    )
    project.files(
        test_1="""
        import os, pytest, signal, time
        from helpers import get
        @pytest.mark.infserver("other")
        def test_1_fails(inference_server):
            time.sleep(1)
            get(inference_server, "/v1/models")
            assert 0
        @pytest.mark.infserver("llama")
        def test_2_dies(inference_server):
            os.kill(inference_server.pid, signal.SIGKILL)
            assert inference_server.wait_death(20)
            assert 0
        """
    )
    result = run("-v")
    result.assert_outcomes(failed=2)
    found = states(result)
    assert len(found) == 2
    lines = [line for _, pair in found for line in pair]
    assert any(re.match(r"ready, up \S+ s, pid \d+", line) for line in lines), lines
    assert any(re.match(r"heartbeat: answered 200 in \d+ ms", line) for line in lines), lines
    assert "llama (llamacpp) was killed by SIGKILL, while it was in use" in result.stdout.str()
    assert "for memory" not in result.stdout.str()


def test_a_server_that_died_and_runs_again_is_shown_as_it_was_when_it_died(project, servers_yaml, run) -> None:
    servers_yaml({"heartbeat_interval": 0.05}, a=["--say", "first words", "--say-when-ready", "at your service"])
    project.files(
        test_1="""
        import time
        from helpers import get, kill
        def test_dies(inference_server):
            time.sleep(0.5)
            get(inference_server, "/say?text=before-the-end")
            kill(inference_server)
            # Long enough for its successor to be ready.
            time.sleep(2)
            assert 0
        def test_later(inference_server): pass
        def test_last(inference_server): assert inference_server.check_health()
        """
    )
    result = run("-p", "no:randomly")
    found = dict(states(result))
    state, heartbeat = found["a"]
    assert re.match(r"died: exited with code 3, [\d.]+ s ago, after [\d.]+ s", state), state
    assert re.match(r"heartbeat: (answered 200 in|last good answer)", heartbeat), heartbeat
    text = result.stdout.str()
    assert "before-the-end" in text
    # What the next launch wrote is none of this test's business.
    assert "first words" not in text
