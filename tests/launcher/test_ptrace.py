"""Whether py-spy may look into a server, and what to do if not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_infserver.system.processes import ptrace
from pytest_infserver.system.processes.ptrace import may_trace


@pytest.fixture(autouse=True)
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")


def set_up(monkeypatch: pytest.MonkeyPatch, scope: int, *, own: bool = False, file: bool = False) -> None:
    monkeypatch.setattr(ptrace, "_scope", lambda: scope)
    monkeypatch.setattr(ptrace, "_has_capability", lambda: own)
    monkeypatch.setattr(ptrace, "_has_file_capability", lambda path: file)


@pytest.mark.parametrize(
    ("scope", "own", "file", "allowed"),
    [
        (0, False, False, True),
        (1, False, False, False),
        (1, True, False, True),
        (1, False, True, True),
        (2, False, False, False),
        (2, True, False, True),
        # Nobody at all.
        (3, True, True, False),
    ],
)
def test_scopes_of_yama(monkeypatch: pytest.MonkeyPatch, scope: int, own: bool, file: bool, allowed: bool) -> None:
    set_up(monkeypatch, scope, own=own, file=file)
    assert (may_trace("/bin/py-spy") is None) is allowed


def test_advice_names_the_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, 1)
    text = may_trace("/venv/bin/py-spy") or ""
    assert "kernel.yama.ptrace_scope=1" in text
    assert "sudo setcap cap_sys_ptrace=ep /venv/bin/py-spy" in text
    assert "docker run --cap-add SYS_PTRACE" in text
    assert "{" not in text


def test_strictest_scope_is_not_answered_with_what_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, 3, own=True, file=True)
    text = may_trace("/bin/py-spy") or ""
    # It cannot be undone before the next boot.
    assert "setcap" not in text
    assert "kernel.yama.ptrace_scope=3" in text
    assert "until it boots again" in text


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (501, False)])
def test_macos(monkeypatch: pytest.MonkeyPatch, user: int, allowed: bool) -> None:
    set_up(monkeypatch, 0)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ptrace.os, "geteuid", lambda: user)
    text = may_trace("/bin/py-spy")
    assert (text is None) is allowed
    assert allowed or "run it with sudo" in (text or "")


def test_what_this_machine_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    # A kernel without Yama allows it.
    assert ptrace._scope() == (int(scope.read_text()) if scope.exists() else 0)
    status = Path("/proc/self/status").read_text()
    mask = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    assert ptrace._has_capability() is bool(mask & 1 << 19)
    plain = tmp_path / "py-spy"
    plain.touch()
    assert not ptrace._has_file_capability(str(plain))
    assert not ptrace._has_file_capability(str(tmp_path / "missing"))
