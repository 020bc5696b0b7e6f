"""The provisioning command: what is there is reused, what was cut short does not count, what fails is tried again."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import chromium, debian, nsight, provision
from .provision import ProvisionError, missing
from .recipes import CLIENTS, ENGINES, Engine

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


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.usefixtures("nothing_left")
def test_a_failing_command_shows_what_it_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('first'); print('no space left'); raise SystemExit(3)"]
    with pytest.raises(ProvisionError, match=r"(?s)exit status 3: .*no space left$"):
        provision._run(tmp_path, command)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.usefixtures("nothing_left")
def test_a_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "STEP_LIMIT", 0.5)
    with pytest.raises(ProvisionError, match="took longer than"):
        provision._run(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"])


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


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.usefixtures("nothing_left")
def test_an_unknown_engine_is_refused_with_the_known_ones(cache: Path) -> None:
    command = [sys.executable, "-m", "tests.engines.provision", "vlm"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "unknown name vlm; there are: vllm, sglang, transformers, openai, " in result.stderr
    assert not cache.exists()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend to be on another machine."""

    def be(codename: str | None = "bookworm", processor: str = "x86_64") -> None:
        release = {"ID": "arch"} if codename is None else {"ID": "debian", "VERSION_CODENAME": codename}
        monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
        monkeypatch.setattr(platform, "machine", lambda: processor)

    return be


@pytest.mark.parametrize("tool", provision.TOOLS)
@pytest.mark.parametrize(("codename", "processor"), [("noble", "x86_64"), ("bookworm", "aarch64"), (None, "x86_64")])
def test_where_a_tool_cannot_be_installed_its_tests_say_why(
    cache: Path, machine: Callable[..., None], codename: str | None, processor: str, tool: str
) -> None:
    machine(codename, processor)
    reason = f"{tool} is installed from Debian (bookworm or trixie) on amd64; this is {codename or 'arch'} {processor}"
    assert missing(tool) == reason
    with pytest.raises(ProvisionError, match=re.escape(reason)):
        provision.provision([tool])
    # Not its place, but what is there: it may have been copied.
    provision._make(provision.environment(tool), Maker())
    assert missing(tool) is None


@pytest.mark.parametrize("tool", provision.TOOLS)
def test_without_apt_a_tool_cannot_be_installed(
    cache: Path, machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    machine()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing(tool) == f"{tool} is installed with apt-get, which is not here"


def test_all_without_the_tool_that_cannot_be_installed(
    cache: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[list[str]] = []
    monkeypatch.setattr(provision, "provision", lambda names: made.append(list(names)))
    monkeypatch.setattr(sys, "argv", ["provision"])
    monkeypatch.setattr(provision.nsight, "unsupported", lambda: None)
    monkeypatch.setattr(provision.chromium, "unsupported", lambda: None)
    assert provision.main() == 0
    monkeypatch.setattr(provision.nsight, "unsupported", lambda: "no Debian")
    assert provision.main() == 0
    installed = [*ENGINES, *CLIENTS, "llama-server"]
    assert made == [[*installed, "nsys", "chromium"], [*installed, "chromium"]]
    assert "left out: no Debian" in capsys.readouterr().out


def test_a_client_needs_no_models(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing("openai", "litellm") == "python -m tests.engines.provision openai litellm"
    monkeypatch.setattr(provision, "_install", lambda recipe, folder: folder.mkdir(parents=True))
    provision.provision(["openai", "litellm"])
    assert missing("openai", "litellm") is None
    assert not provision.models_dir().exists()


@pytest.mark.parametrize("tool", provision.TOOLS)
def test_a_tool_needs_no_models(cache: Path, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    monkeypatch.setattr(provision.TOOLS[tool], "unsupported", lambda: None)
    assert missing(tool) == f"python -m tests.engines.provision {tool}"
    seen: list[bool] = []

    def install(folder: Path, run: debian.Run) -> None:
        seen.append((folder / "half").exists())
        (folder / "half").touch()
        if len(seen) == 1:
            raise ProvisionError("no network")

    monkeypatch.setattr(provision.TOOLS[tool], "install", install)
    provision.provision([tool])
    # It is tried again, too.
    assert seen == [False, False]
    assert missing(tool) is None
    assert missing("vllm", tool) == "python -m tests.engines.provision vllm"


def test_another_debian_has_another_nsys_and_chromium(machine: Callable[..., None]) -> None:
    machine("bookworm")
    old, browser = nsight.key(), chromium.key()
    machine("trixie")
    assert old.startswith("nsys-2022.4.2-")
    assert nsight.key().startswith("nsys-2023.4.4-")
    assert browser.startswith("chromium-bookworm-")
    assert chromium.key().startswith("chromium-trixie-")


@pytest.mark.parametrize(
    ("lines", "url"),
    [
        ("https://apt.example.com/debian/ bookworm main\n", "https://apt.example.com/debian"),
        # Other suites, other sections and what others publish.
        ("http://a/debian/ bookworm-updates main\nhttp://docker/linux/debian bookworm stable\n", None),
        ("http://packages.example.com/apt bookworm main\nhttp://b/debian bookworm main\n", "http://b/debian"),
        ("", None),
    ],
)
def test_packages_come_from_the_machines_own_mirror(lines: str, url: str | None) -> None:
    assert debian.mirror_among(lines, "bookworm") == (url or debian.USUAL_MIRROR)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.skipif(shutil.which("apt-config") is None, reason="needs apt")
@pytest.mark.usefixtures("nothing_left")
def test_apt_keeps_to_the_folder_and_to_the_machines_proxy(tmp_path: Path) -> None:
    own = tmp_path / "own.conf"
    own.write_text(debian.settings(tmp_path))
    machines = tmp_path / "machine.conf"
    machines.write_text('Acquire::http::Proxy "http://proxy:3128";\nAPT::Update::Post-Invoke { "touch /hook"; };\n')
    result = subprocess.run(
        ["apt-config", "-c", str(own), "dump"],
        env={**os.environ, "APT_CONFIG": str(machines)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = result.stdout.splitlines()
    assert 'Acquire::http::Proxy "http://proxy:3128";' in said
    assert f'Dir::State::lists "{tmp_path / "lists"}";' in said
    assert f'Dir::Cache "{tmp_path / "cache"}";' in said
    assert "/hook" not in result.stdout
