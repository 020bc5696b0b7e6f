"""The table of servers at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.reporting.terminal.summary import is_wanted, summary_lines


def server(name: str, **values: Any) -> dict[str, Any]:
    life = {"launched": 100.5, "end": "stopped", "taken_over": False, "node": None}
    heartbeat = {"count": 0, "failed": 0, "p50_seconds": None, "p99_seconds": None}
    return {
        "name": name,
        "backend": "vllm",
        "attached": False,
        "lives": [life],
        "log": f"{name}/server.log",
        "tests": 40,
        "failed": 0,
        "restarts": 0,
        "ready_seconds": 52.14,
        "stop_seconds": 2.4,
        "peak_rss_bytes": 4_100_000_000,
        "peak_gpu_bytes": None,
        "heartbeat": heartbeat,
        "leaks": None,
        **values,
    }


def shown(*servers: dict[str, Any], folder: Path | None = None) -> list[str]:
    return summary_lines({"started": 100.0, "servers": list(servers)}, folder or Path.cwd() / "server_logs")


def test_a_line_for_each_server_and_where_its_log_is() -> None:
    assert shown(server("llama"), server("b", tests=7, restarts=1)) == [
        "server  backend  start   ready   tests  restarts  peak RSS  stop",
        "llama   vllm     +0.5 s  52.1 s     40         0  4.1 GB    2.4 s",
        "b       vllm     +0.5 s  52.1 s      7         1  4.1 GB    2.4 s",
        "llama  server_logs/llama/server.log",
        "b      server_logs/b/server.log",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"failed": 3}, ["failed", "3"]),
        ({"peak_gpu_bytes": 70_200_000_000}, ["peak GPU", "70.2 GB"]),
        ({"heartbeat": {"failed": 0, "p50_seconds": 0.0031, "p99_seconds": 0.2}}, ["p50/p99", "3/200 ms"]),
        ({"heartbeat": {"failed": 2, "p50_seconds": 0.0031, "p99_seconds": 0.2}}, ["3/200 ms, 2 failed"]),
        ({"heartbeat": {"failed": 2, "p50_seconds": None, "p99_seconds": None}}, ["2 failed"]),
        ({"leaks": []}, ["leaks", "none"]),
        ({"leaks": [{"fails": True}, {"fails": True}, {"fails": False}]}, ["leaks", "2 errors, 1 warning"]),
        ({"ready_seconds": None, "stop_seconds": None}, ["never"]),
        ({"lives": [{"launched": 100.5, "end": "died", "taken_over": False, "node": None}]}, ["died"]),
        (
            {"lives": [{"launched": None, "end": "kept", "taken_over": True, "node": None}], "ready_seconds": None},
            ["ready", "kept"],
        ),
    ],
)
def test_what_a_column_says(values: dict[str, Any], words: list[str]) -> None:
    text = "\n".join(shown(server("a", **values)))
    for word in words:
        assert word in text


def test_a_column_that_says_nothing_is_left_out_but_a_gap_in_one_is_shown() -> None:
    head, first, second, *_ = shown(server("a", peak_gpu_bytes=5_000_000), server("b"))
    assert "peak GPU" in head
    assert "leaks" not in head
    column = head.index("peak GPU")
    assert (first[column : column + 4], second[column : column + 1]) == ("5 MB", "-")


def test_an_attached_server_has_no_log_and_no_start() -> None:
    lines = shown(
        server(
            "a",
            attached=True,
            lives=[{"launched": None, "end": None, "taken_over": False, "node": None}],
            log=None,
            backend="remote",
            peak_rss_bytes=None,
            stop_seconds=None,
            ready_seconds=0.01,
        )
    )
    assert lines == ["server  backend  ready  tests  restarts", "a       remote   0.0 s     40         0"]


def test_a_log_outside_of_the_working_directory_is_named_in_full(tmp_path: Path) -> None:
    assert shown(server("a"), folder=tmp_path)[-1] == f"a  {tmp_path}/a/server.log"


def test_on_a_cluster_the_nodes_are_beside_the_logs() -> None:
    life = {"launched": 100.5, "end": "stopped", "taken_over": False, "node": "gpu-1 (10.0.0.7)"}
    moved = [life, life, {**life, "node": "gpu-2"}, {**life, "node": None}]
    assert shown(server("llama", lives=[life]), server("b", lives=moved))[-2:] == [
        "llama  server_logs/llama/server.log  on gpu-1 (10.0.0.7)",
        "b      server_logs/b/server.log  on gpu-1 (10.0.0.7), then gpu-2",
    ]


def test_without_servers_there_is_no_table() -> None:
    assert shown() == []


@pytest.mark.parametrize(
    ("when", "verbosity", "failed", "wanted"),
    [
        ("auto", 0, False, False),
        ("auto", 1, False, True),
        ("auto", 0, True, True),
        ("auto", -1, True, True),
        ("auto", -1, False, False),
        ("always", -1, False, True),
        ("never", 2, True, False),
    ],
)
def test_when_it_is_shown(when: str, verbosity: int, failed: bool, wanted: bool) -> None:
    assert is_wanted(when, verbosity=verbosity, failed=failed) is wanted
