"""Small suites in the manner of those that engines have, each with the drop-in for its harness and in our manner."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
from engines.provision import environment, llama_server_binary

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "moving-over.md"
FORMS = ("dropin", "own")
LIMITS = {"llamacpp": 100, "vllm": 900, "sglang": 900}
TESTS = {"llamacpp": 13, "vllm": 5, "sglang": 3}
SLOW = [pytest.param(name, marks=[pytest.mark.engine(name), pytest.mark.nightly]) for name in ("vllm", "sglang")]
MAIN = "import sys; sys.path += {paths!r}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


@pytest.fixture
def hard_limit_seconds() -> int:
    return 1000


def run(engine: str, form: str, folder: Path) -> str:
    """Run a suite in a copy of it, and return what pytest has said."""
    shutil.copytree(HERE / engine, folder / engine)
    python = sys.executable
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if engine == "vllm":
        env["PATH"] = f"{environment(engine) / 'bin'}:{env['PATH']}"
    if engine == "sglang":
        # The drop-in starts SGLang with the interpreter that runs the tests, as SGLang's own tests do.
        python, env["PYTHONPATH"] = str(environment(engine) / "bin" / "python"), str(ROOT)
    code = MAIN.format(paths=site.getsitepackages())
    options = ["-q", "-p", "no:cacheprovider", "-p", "pytest_infserver.plugin", "-rA"]
    done = subprocess.run(
        [python, "-c", code, *options, "."],
        cwd=folder / engine / form,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMITS[engine],
        check=False,
    )
    return done.stdout + done.stderr


def counted(output: str) -> dict[str, int]:
    """Return how many tests had which outcome."""
    last = output.strip().splitlines()[-1]
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", last)}


@pytest.mark.run
@pytest.mark.parametrize("form", ["dropin", "own"])
def test_llamacpp(form: str, tmp_path: Path, nothing_left: None) -> None:
    output = run("llamacpp", form, tmp_path)
    assert counted(output) == {"passed": TESTS["llamacpp"]}, output


@pytest.mark.engine("llama-server")
@pytest.mark.parametrize("form", [pytest.param("dropin", marks=pytest.mark.nightly), "own"])
def test_the_binary_of_llamacpp(form: str, tmp_path: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMA_SERVER_BIN_PATH", "LLAMACPP_BINARY"):
        monkeypatch.setenv(name, str(llama_server_binary()))
    test_llamacpp(form, tmp_path, nothing_left)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", SLOW)
def test_an_engine_that_takes_its_time(engine: str, form: str, tmp_path: Path, nothing_left: None) -> None:
    output = run(engine, form, tmp_path)
    assert counted(output) == {"passed": TESTS[engine]}, output


def lines(engine: str, form: str) -> int:
    """Return how many lines a suite has that somebody has to write; imports and blank lines count as well."""
    files = [one for one in (HERE / engine / form).iterdir() if one.suffix in (".py", ".yaml", ".ini")]
    return sum(len(one.read_text().splitlines()) for one in files)


@pytest.mark.parametrize("engine", TESTS)
def test_the_page_says_how_long_they_are(engine: str) -> None:
    dropin, own = (lines(engine, form) for form in FORMS)
    assert own < dropin
    share = round(100 * (dropin - own) / dropin)
    assert f"| {engine} | {TESTS[engine]} | {dropin} | {own} | {share} % |" in PAGE.read_text()
