"""The provisioning command: what is there is reused, what was cut short does not count, what fails is tried again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from . import provision
from .provision import ProvisionError, missing
from .recipes import ENGINES, Engine

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFSERVER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(provision, "PAUSE", 0)
    return tmp_path / "cache"


class Maker:
    """Makes a folder; the first attempts fail."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.seen: list[bool] = []

    def __call__(self, folder: Path) -> None:
        self.seen.append(folder.exists())
        folder.mkdir(parents=True)
        (folder / "half").touch()
        if len(self.seen) <= self.failures:
            raise ProvisionError("pip says\nno network")


def test_what_is_there_is_reused(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maker = Maker()
    for _ in range(2):
        provision._make(cache / "engine-1", maker)
    assert maker.seen == [False]
    assert "engine-1: there already" in capsys.readouterr().out


def test_what_fails_is_tried_again_from_the_beginning(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maker = Maker(failures=2)
    provision._make(cache / "engine-1", maker)
    assert maker.seen == [False] * 3
    assert "engine-1: attempt 2 of 3 failed: no network" in capsys.readouterr().out


def test_what_keeps_failing_is_an_error_and_does_not_count(cache: Path) -> None:
    with pytest.raises(ProvisionError, match="no network"):
        provision._make(cache / "engine-1", Maker(failures=3))
    maker = Maker()
    # The next run begins anew.
    provision._make(cache / "engine-1", maker)
    assert maker.seen == [False]


def test_missing_names_the_command(cache: Path) -> None:
    assert missing("vllm", "sglang") == "python -m tests.engines.provision vllm sglang"
    for name in ("vllm", "sglang"):
        provision._make(provision.environment(name), Maker())
    assert missing("vllm", "sglang") == "python -m tests.engines.provision vllm"
    provision._make(provision.models_dir(), Maker())
    assert missing("vllm", "sglang") is None


def test_a_failing_command_shows_what_it_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('first'); print('no space left'); raise SystemExit(3)"]
    with pytest.raises(ProvisionError, match=r"(?s)exit status 3: .*no space left$"):
        provision._run(command, tmp_path)


def test_a_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "STEP_LIMIT", 0.5)
    with pytest.raises(ProvisionError, match="took longer than"):
        provision._run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path)


def test_two_at_once_wait_for_each_other(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.mkdir()
    order: list[str] = []

    def second() -> None:
        with provision._lock(cache / ".lock"):
            order.append("second")

    with provision._lock(cache / ".lock"):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 10
        while "waiting" not in capsys.readouterr().out and time.monotonic() < deadline:
            time.sleep(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_another_version_or_recipe_is_another_environment() -> None:
    one = ENGINES["sglang"]
    keys = {one.key, Engine(one.name, "0.5.24", one.packages).key, Engine(one.name, one.version, one.packages).key}
    assert len(keys) == 3
    assert all(key.startswith(("sglang-0.5.23-py3.", "sglang-0.5.24-py3.")) for key in keys)


def test_an_unknown_engine_is_refused_with_the_known_ones(cache: Path) -> None:
    command = [sys.executable, "-m", "tests.engines.provision", "vlm"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "unknown engine vlm; there are: vllm, sglang, transformers" in result.stderr
    assert not cache.exists()
