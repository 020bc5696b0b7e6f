"""The files of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from descriptors import open_descriptors

from pytest_infserver.config.model import ServerConfig
from pytest_infserver.reporting.record import run_files as module
from pytest_infserver.reporting.record.run_files import RunFiles, as_json, run_folder
from pytest_infserver.settings import Settings
from pytest_infserver.system.disk.locks import take_lock


def config(name: str, **settings: object) -> ServerConfig:
    return ServerConfig(name=name, backend="command", **settings)  # type: ignore[arg-type]


def test_the_folder_is_that_of_the_servers(tmp_path: Path) -> None:
    settings = Settings(defaults=(("rootdir", {"output_dir": "/root/server_logs"}),))
    one, other = config("a", output_dir="/logs"), config("b", output_dir="/other")
    remote = config("c", output_dir="/elsewhere", url="http://127.0.0.1:1")
    assert run_folder(settings, {"a": one}) == Path("/logs")
    assert run_folder(settings, {"a": one, "c": remote}) == Path("/logs")
    assert run_folder(settings, {"a": one, "b": other}) == Path("/root/server_logs")
    assert run_folder(settings, {}) == Path("/root/server_logs")
    told = Settings(defaults=settings.defaults, overrides=(("--infserver-output-dir", {"output_dir": "/told"}),))
    assert run_folder(told, {}) == Path("/told")


def test_a_file_replaces_that_of_an_earlier_run(tmp_path: Path) -> None:
    for text in ("one", "two"):
        files = RunFiles(tmp_path / "logs")
        assert files.write("run.json", lambda text=text: text) == tmp_path / "logs" / "run.json"  # type: ignore[misc]
        files.close()
    assert (tmp_path / "logs" / "run.json").read_text() == "two"
    assert sorted(os.listdir(tmp_path / "logs")) == [".gitignore", ".run.lock", "CACHEDIR.TAG", "run.json"]


def test_runs_at_the_same_time_do_not_overwrite_each_other(tmp_path: Path) -> None:
    first, second = RunFiles(tmp_path), RunFiles(tmp_path)
    first.claim()
    second.claim()
    assert second.write("run.json", lambda: "second").name == "run-2.json"
    assert first.write("run.json", lambda: "first").name == "run.json"
    first.close()
    second.close()
    assert RunFiles(tmp_path).write("run.json", lambda: "third").name == "run.json"


def test_servers_that_start_at_the_same_time_claim_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, count = RunFiles(tmp_path), 4
    together = threading.Barrier(count)
    locks: list[int | None] = []

    def take_slowly(path: Path) -> int | None:
        # Whoever else is on the way to it gets there meanwhile.
        time.sleep(0.05)
        locks.append(take_lock(path))
        return locks[-1]

    def claim() -> None:
        together.wait(30)
        files.claim()
        # From now on it counts on its name.
        claimed.append(bool(locks))

    claimed: list[bool] = []
    monkeypatch.setattr(module, "take_lock", take_slowly)
    before = open_descriptors()
    threads = [threading.Thread(target=claim) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert files.write("run.json", lambda: "x").name == "run.json"
    assert claimed == [True] * count
    assert len(locks) == 1
    assert sorted(os.listdir(tmp_path)) == [".run.lock", "run.json"]
    files.close()
    assert open_descriptors() == before


def test_without_a_name_of_its_own_a_run_leaves_the_files_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text("another run's")
    monkeypatch.setattr(module, "take_lock", lambda path: None)
    RunFiles(tmp_path).claim()
    assert (tmp_path / "run.json").read_text() == "another run's"


def test_the_files_of_an_earlier_run_go_when_a_run_begins(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    for name in ("run.json", "report.html", "trace.json"):
        files.write(name, lambda: "old")
    files.close()
    (tmp_path / "other.json").write_text("")
    RunFiles(tmp_path).claim()
    assert sorted(os.listdir(tmp_path)) == [".run.lock", "other.json"]


@pytest.mark.usefixtures("nothing_left")
def test_a_run_that_was_killed_does_not_hold_its_name(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from pytest_infserver.reporting.record.run_files import RunFiles
RunFiles(pathlib.Path({str(tmp_path)!r})).claim()
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert RunFiles(tmp_path).write("run.json", lambda: "x").name == "run.json"


def test_what_cannot_be_written_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.write("run.json", lambda: "old")

    def broken() -> str:
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        files.write("run.json", broken)
    assert (tmp_path / "run.json").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [".run.lock", "run.json"]


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = RunFiles(tmp_path / "file" / "logs")
    files.claim()
    with pytest.raises(OSError, match=r"."):
        files.write("run.json", lambda: "x")


def test_text_that_is_no_unicode_is_written_all_the_same(tmp_path: Path) -> None:
    path = RunFiles(tmp_path).write("report.html", lambda: "a\udc80b")
    assert path.read_text() == "a\\udc80b"


def test_json_has_a_line_for_each_test_and_is_strict() -> None:
    record = {"version": 1, "servers": [], "tests": [{"id": "a"}, {"id": "b\n"}], "errors": ["x"]}
    text = as_json(record)
    assert json.loads(text) == record
    assert '{"id": "a"},\n{"id": "b\\n"}\n' in text
    with pytest.raises(ValueError, match="JSON"):
        as_json({"tests": [{"value": float("nan")}]})


# What others may have put there.


@pytest.mark.parametrize("name", [".run.json.part", "run.json", "run.part"])
def test_links_that_somebody_has_planted_lead_nowhere(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / name).symlink_to(precious)
    assert RunFiles(tmp_path).write("run.json", lambda: "x") == tmp_path / "run.json"
    assert not (tmp_path / "run.json").is_symlink()
    assert precious.read_text() == "precious"


@pytest.mark.usefixtures("hard_limit")
def test_a_pipe_in_place_of_the_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".run.lock")
    assert RunFiles(tmp_path).write("run.json", lambda: "x").read_text() == "x"


def test_a_folder_that_anybody_may_write_is_refused_with_words(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    files = RunFiles(tmp_path)
    files.claim()
    with pytest.raises(OSError, match=r"can be written by anybody.*chmod o-w"):
        files.write("run.json", lambda: "x")
    assert os.listdir(tmp_path) == []


def test_nobody_else_can_write_the_files_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        path = RunFiles(tmp_path / "logs").write("run.json", lambda: "x")
    finally:
        os.umask(previous)
    for made in (path, path.parent):
        assert not made.stat().st_mode & 0o022
