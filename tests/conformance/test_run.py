"""The suite as a user runs it: its grid, its files, its end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .servers import hostile
from .servers.stand_in import StandIn

SUITE = ("--pyargs", "pytest_infserver.conformance")
Start = Callable[..., StandIn]
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def conform(run_inline: Run) -> Run:
    """Run the suite on a URL."""
    return lambda url, *words: run_inline(*SUITE, f"--infserver-url={url}", "--tb=short", *words)


def grid_of(pytester: pytest.Pytester) -> dict[str, Any]:
    return json.loads((pytester.path / "server_logs" / "conformance.json").read_text())


def counts_of(pytester: pytest.Pytester) -> dict[str, int]:
    return {word: count for word, count in grid_of(pytester)["servers"][0]["counts"].items() if count}


@pytest.mark.promise
def test_a_server_that_keeps_all(conform: Run, stand_in: Start, pytester: pytest.Pytester) -> None:
    result = conform(stand_in().url, "--conformance-level=full")
    assert result.ret == 0
    # It has no key, so that one cannot be missing.
    assert set(counts_of(pytester)) == {"passes", "not offered"}
    assert counts_of(pytester)["not offered"] == 1
    assert {one["area"] for one in grid_of(pytester)["verdicts"]} >= {"models", "chat", "tools", "concurrency"}
    text = result.stdout.str()
    assert re.search(r"^  usage chunk +pass$", text, re.M)
    assert "written: server_logs/conformance.json, server_logs/conformance.html" in text
    assert "streaming" in (pytester.path / "server_logs" / "conformance.html").read_text()


def test_core_is_a_part_of_it(conform: Run, stand_in: Start, pytester: pytest.Pytester) -> None:
    assert conform(stand_in().url).ret == 0
    found = grid_of(pytester)
    assert {one["level"] for one in found["verdicts"]} == {"core"}
    assert found["level"] == "core"
    assert 30 <= len(found["verdicts"]) <= 60


@pytest.mark.promise
def test_a_failure_says_what_how_and_why(conform: Run, stand_in: Start, pytester: pytest.Pytester) -> None:
    server = stand_in("no done", key="secret-of-a-test")
    result = conform(server.url, "--infserver-set=api_key=secret-of-a-test", "-k", "test_streaming")
    assert result.ret == 1
    text = result.stdout.str()
    assert "streaming.done: fails: the last event is" in text
    assert "source: OpenAI API reference, `stream`" in text
    assert f"curl -sS -i {server.url}/v1/chat/completions" in text
    assert '-H "Authorization: Bearer $API_KEY"' in text
    assert "secret-of-a-test" not in text
    for file in ("conformance.json", "conformance.html"):
        assert "secret-of-a-test" not in (pytester.path / "server_logs" / file).read_text()


def test_known_differences_in_both_directions(conform: Run, stand_in: Start, pytester: pytest.Pytester) -> None:
    entries = [{"test": f"models.{name}", "engine": "vllm 1.2", "reason": "so it is"} for name in ("list", "fields")]
    file = pytester.path / "own.yaml"
    file.write_text(json.dumps(entries))
    server = stand_in("no list", "version")
    words = (f"--conformance-known={file}", "--conformance-level=full", "-k", "test_models")
    result = conform(server.url, *words)
    assert result.ret == 0
    assert counts_of(pytester) == {"passes": 2, "known": 1, "passes now": 1}
    assert "remote: models.fields: passes now: take it out of" in result.stdout.str()
    assert "vllm 1.2.3" in result.stdout.str()


def test_a_wrong_file_of_known_differences_ends_the_run(conform: Run, stand_in: Start) -> None:
    result = conform(stand_in().url, "--conformance-known=absent.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--conformance-known: absent.yaml: No such file or directory" in result.stderr.str()


@pytest.mark.promise
def test_a_server_that_is_not_there(conform: Run, pytester: pytest.Pytester) -> None:
    result = conform("http://127.0.0.1:1")
    assert result.ret == 1
    assert set(counts_of(pytester)) == {"not asked"}
    assert "could not be asked" in result.stdout.str()
    assert "http://127.0.0.1:1 refused the connection" in result.stdout.str()


@pytest.mark.run
def test_a_server_that_says_nothing(run_pytest: Run, pytester: pytest.Pytester) -> None:
    with hostile.hostile(hostile.silent) as url:
        words = ("--conformance-timeout=0.2", "--infserver-model=any", "-k", "test_chat or test_errors")
        result = run_pytest("-p", "pytest_infserver.plugin", *SUITE, f"--infserver-url={url}", *words)
    assert result.ret == 1
    assert set(counts_of(pytester)) == {"not asked"}
    assert "nothing more was asked" in result.stdout.str()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (hostile.talks, "it speaks TLS: write https://"),
        (hostile.wants_a_key, "the server wants a key (401): --infserver-set api_key_env=VARIABLE"),
        (hostile.redirects, "sent on (307) to http://127.0.0.1:1/v1: ask there"),
        (hostile.hangs_in_a_stream, "had no whole answer within 0.3 s (after 6"),
        (hostile.floods, "was answered with more than 16777216 bytes"),
    ],
    ids=["tls", "key", "redirect", "hang", "1 GB"],
)
def test_the_suite_ends_and_says_what_it_could_not_ask(
    certificate: Path, conform: Run, pytester: pytest.Pytester, answer: hostile.Answer, said: str
) -> None:
    """The certificate is made before `pytester` looks which modules this process has: it loads some of its own."""
    seconds = 0.3 if answer is hostile.hangs_in_a_stream else 30
    with hostile.hostile(answer, certificate if answer is hostile.talks else None) as url:
        words = (f"--conformance-timeout={seconds}", "--infserver-model=any", "-k", "models or streaming or bad_json")
        result = conform(url, *words)
    assert result.ret == 1
    assert set(counts_of(pytester)) == {"not asked"}
    assert said in result.stdout.str()


def test_several_servers_side_by_side(run_inline: Run, stand_in: Start, pytester: pytest.Pytester) -> None:
    servers = {"good": stand_in(), "bad": stand_in("no list")}
    block = {name: {"backend": "remote", "url": one.url, "ready": {"tcp": True}} for name, one in servers.items()}
    (pytester.path / "servers.yaml").write_text(json.dumps({"servers": block}))
    result = run_inline(*SUITE, "--infserver-config=servers.yaml", "-k", "test_models")
    assert result.ret == 1
    assert re.search(r"^  list +pass +FAIL$", result.stdout.str(), re.M)


@pytest.mark.run
def test_with_workers_and_names_of_the_projects_own(
    run_pytest: Run, stand_in: Start, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\npython_files = check_*.py\npython_functions = check_*\n")
    words = (*SUITE, f"--infserver-url={stand_in().url}", "-n2", "-k", "test_models or test_errors", "--strict-markers")
    result = run_pytest("-p", "pytest_infserver.plugin", "-p", "xdist", *words)
    assert result.ret == 0, result.stdout.str()
    assert counts_of(pytester) == {"passes": 6}
    assert re.search(r"^  unknown model +pass$", result.stdout.str(), re.M)


@pytest.mark.run
def test_llamacpp_keeps_the_core(run_pytest: Run, pytester: pytest.Pytester) -> None:
    """Of the embedded llama.cpp, with a real model, all that is not known is known to pass."""
    pytest.importorskip("xllamacpp")
    words = ("-p", "pytest_infserver.plugin", "--infserver-backend=llamacpp", "--infserver-model=builtin:smollm2")
    # One thread: on a busy machine several would wait for one another most of the time.
    result = run_pytest(*words, "--infserver-set=config.server_args.threads=1", *SUITE)
    found = counts_of(pytester)
    assert found.keys() <= {"passes", "known", "not offered"}, result.stdout.str()
    assert found["passes"] >= 30


def test_the_files_go_where_they_are_wanted(conform: Run, stand_in: Start, pytester: pytest.Pytester) -> None:
    conform(stand_in().url, "--conformance-output=elsewhere", "-k", "test_models")
    assert (Path(pytester.path) / "elsewhere" / "conformance.json").exists()
