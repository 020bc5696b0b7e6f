"""The check of one launch, from the owner's side."""

from __future__ import annotations

import getpass
import json
import os
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer
from pytest_infserver.launcher.leaks import check as module
from pytest_infserver.launcher.leaks.check import LeakCheck
from pytest_infserver.launcher.supervision.supervised_process import ServerProcess
from pytest_infserver.leak_finding import Finding

pytestmark = pytest.mark.usefixtures("hard_limit")

FakeServer = Callable[..., CommandServer]
NOTHING: frozenset[str] = frozenset()


def process(**leaks: Any) -> ServerProcess:
    made = ServerProcess()
    made.leaks = {"findings": [], "not_checked": [], "processes": [], **leaks}
    return made


def environment_of(server: CommandServer) -> dict[str, str]:
    with urllib.request.urlopen(server.url_for("/argv"), timeout=30) as answer:
        found: dict[str, str] = json.load(answer)["env"]
    return found


def test_supervisor_that_was_killed_has_checked_nothing() -> None:
    check = LeakCheck({})
    os.mkdir(check.tmpdir)
    report = check.report(ServerProcess(), [], NOTHING)
    assert report.findings == ()
    assert not os.path.exists(check.tmpdir)
    assert report.not_checked == ("everything: the server's supervisor was killed",)


def test_report_is_judged_and_says_what_was_not_checked() -> None:
    known, secret = Finding("shm", "/dev/shm/known"), Finding("shm", "/dev/shm/hunter22222")
    leaks = process(findings=[known._asdict(), secret._asdict()], not_checked=["ports: ValueError: odd"])
    report = LeakCheck({"TMPDIR": "/x"}).report(leaks, ["shm:known"], frozenset({"hunter22222"}))
    assert report.findings == (known._replace(fails=False), secret._replace(name="/dev/shm/********"))
    assert report.not_checked[:2] == ("ports: ValueError: odd", "temporary files: TMPDIR is set in env_vars")
    assert report.failed


def test_caches_that_follow_tmpdir_stay_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "DOMAIN\\me")
    default = os.path.join(tempfile.gettempdir(), "torchinductor_DOMAIN_me")
    assert LeakCheck({}).environment({"A": "1"}) == {"A": "1", "TORCHINDUCTOR_CACHE_DIR": default}
    # vLLM 0.32 and SGLang 0.5.23 keep their processes' names only so.
    assert next(iter(LeakCheck({}).environment({"A": "1"}))) == "A"
    own = {"TORCHINDUCTOR_CACHE_DIR": "/x"}
    assert LeakCheck({}).environment(own) == own
    # Where the user says what TMPDIR is nothing of it is lost.
    assert LeakCheck({"TMPDIR": "/x"}).environment({"TMPDIR": "/x"}) == {"TMPDIR": "/x"}


@pytest.mark.parametrize("error", [OSError, KeyError])
def test_user_without_a_name(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fail() -> str:
        raise error("uid not found")

    monkeypatch.setattr(getpass, "getuser", fail)
    assert LeakCheck({}).environment({})["TORCHINDUCTOR_CACHE_DIR"].endswith(f"torchinductor_{os.getuid()}")


@pytest.mark.parametrize(
    ("usual", "expected"), [("/tmp", "/tmp"), ("/tmp/short", "/tmp/short"), (f"/tmp/{'long' * 20}", "/tmp")]
)
def test_temporary_directory_has_a_short_path(monkeypatch: pytest.MonkeyPatch, usual: str, expected: str) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: usual)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert os.path.dirname(LeakCheck({}).tmpdir) == expected


def test_long_path_is_better_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = f"/tmp/{'long' * 20}"
    monkeypatch.setattr(tempfile, "gettempdir", lambda: usual)
    monkeypatch.setattr(os, "access", lambda path, mode: path == usual)
    assert module._temporary_parent() == usual


def test_server_gets_a_temporary_directory_of_its_own(fake_server: FakeServer) -> None:
    with fake_server(debug_mode=True) as server:
        env = environment_of(server)
        folder = Path(env["TMPDIR"])
        assert folder.is_dir()
        assert list(folder.iterdir()) == []
        assert str(folder) != tempfile.gettempdir()
        assert env["TORCHINDUCTOR_CACHE_DIR"].startswith(tempfile.gettempdir())
    assert not folder.exists()


def test_tmpdir_of_the_user_is_kept_and_its_files_are_not_looked_for(fake_server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with fake_server(debug_mode=True, env_vars={"TMPDIR": str(tmp_path)}) as server:
        assert environment_of(server)["TMPDIR"] == str(tmp_path)
    assert server.leak_report is not None
    assert "temporary files: TMPDIR is set in env_vars" in server.leak_report.not_checked
    assert (tmp_path / "file").read_text() == "precious"


def test_what_pytorch_caches_there_is_no_error(fake_server: FakeServer) -> None:
    warnings: list[str] = []
    server = fake_server("--leak-file", "torchinductor_me", debug_mode=True)
    server.on_warning = warnings.append
    with server:
        pass
    assert server.leak_report is not None
    assert [(finding.kind, finding.fails, finding.removed) for finding in server.leak_report.findings] == [
        ("file", False, True)
    ]
    assert warnings == ["fake (command) left behind a temporary file, as its engine is known to do; removed"]


def test_without_debug_mode_nothing_is_changed_or_looked_for(fake_server: FakeServer) -> None:
    with fake_server() as server:
        env = environment_of(server)
        assert env.get("TMPDIR") == os.environ.get("TMPDIR")
        assert env.get("TORCHINDUCTOR_CACHE_DIR") == os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    assert server.leak_report is None


def test_each_life_of_a_server_is_checked_anew(fake_server: FakeServer) -> None:
    server = fake_server(debug_mode=True)
    folders = set()
    for _ in range(2):
        server.start()
        folders.add(environment_of(server)["TMPDIR"])
        server.stop()
        assert server.leak_report is not None
        assert not server.leak_report.failed
    assert len(folders) == 2
