"""What became of one server, as it stands in run.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer
from pytest_infserver.launcher.diagnosis.journal import Event, Journal
from pytest_infserver.reporting.paths import relative
from pytest_infserver.reporting.record.server_record import heartbeat_record, lives_of, merged, server_record


def events(*steps: tuple[Any, ...]) -> list[Event]:
    return [Event(step[0], step[1], step[2] if len(step) > 2 else {}) for step in steps]


def test_a_life_from_start_to_stop() -> None:
    [life] = lives_of(
        events(
            (1, "starting"),
            (2, "launched", {"launch": 1, "pid": 7}),
            (3, "phase", {"phase": "importing"}),
            (4, "ready", {"seconds": 3.0}),
            (9, "stopping"),
            (10, "stopped", {"how": "exited with code 0", "seconds": 1.0}),
        )
    )
    assert life == {
        "launch": 1,
        "pid": 7,
        "node": None,
        "launched": 1,
        "ready": 4,
        "stopping": 9,
        "ended": 10,
        "phases": [[2, "starting"], [3, "importing"]],
        "asleep": [],
        "end": "stopped",
        "how": "exited with code 0",
        "cause": None,
        "taken_over": False,
    }


def test_a_death_is_the_end_of_a_life_and_a_restart_begins_another() -> None:
    first, second = lives_of(
        events(
            (1, "starting"),
            (1, "launched", {"launch": 1}),
            (2, "ready", {"seconds": 1.0}),
            (5, "died", {"how": "was killed by SIGKILL", "cause": "CUDA error\nmore"}),
            (6, "starting"),
            (6, "launched", {"launch": 2}),
            (7, "ready", {"seconds": 1.0}),
            (8, "stopping"),
            (9, "stopped", {"how": "exited with code 0", "seconds": 1.0}),
        )
    )
    assert (first["end"], first["how"], first["cause"], first["ended"]) == (
        "died",
        "was killed by SIGKILL",
        "CUDA error",
        5,
    )
    assert (second["launch"], second["end"]) == (2, "stopped")


def test_the_stop_of_a_dead_server_does_not_change_its_end() -> None:
    [life] = lives_of(
        events(
            (1, "launched", {}),
            (2, "died", {"how": "exited with code 3"}),
            (5, "stopping"),
            (6, "stopped", {"how": "exited with code 3", "seconds": 1}),
        )
    )
    assert (life["end"], life["ended"], life["stopping"]) == ("died", 2, None)


def test_a_launch_that_is_repeated_for_its_port_is_a_life_of_its_own() -> None:
    first, second = lives_of(
        events((1, "starting"), (2, "launched", {"launch": 1}), (3, "launched", {"launch": 2}), (4, "ready", {}))
    )
    assert (first["end"], first["how"], first["ended"]) == ("failed", "its port was taken", 3)
    assert (second["ready"], second["end"]) == (4, None)


@pytest.mark.parametrize("launched", [True, False])
def test_a_failed_start(launched: bool) -> None:
    steps: list[tuple[Any, ...]] = [(1, "starting")]
    steps += [(2, "launched", {})] if launched else []
    [life] = lives_of(events(*steps, (3, "failed", {"error": "no binary\nmore"})))
    assert (life["launched"], life["end"], life["how"], life["ended"]) == (1, "failed", "no binary", 3)
    assert life["phases"] == ([[2, "starting"]] if launched else [])


def test_each_life_on_a_cluster_has_its_node() -> None:
    lives = lives_of(
        events(
            (1, "starting"),
            (2, "placed", {"node": "gpu-1 (10.0.0.7)"}),
            (3, "launched", {"launch": 1}),
            (4, "launched", {"launch": 1}),
            (5, "died", {"how": "was lost with its node gpu-1 (10.0.0.7)"}),
            (6, "starting"),
            (7, "placed", {"node": "gpu-2, gpu-3"}),
            (8, "failed", {"error": "no binary"}),
            # There was no place for it any more.
            (9, "starting"),
            (10, "failed", {"error": "the cluster has no GPU now"}),
        )
    )
    assert [(life["node"], life["end"]) for life in lives] == [
        ("gpu-1 (10.0.0.7)", "failed"),
        ("gpu-1 (10.0.0.7)", "died"),
        ("gpu-2, gpu-3", "failed"),
        (None, "failed"),
    ]


def test_a_start_that_goes_on_elsewhere_is_a_life_on_each_node() -> None:
    first, second = lives_of(
        events(
            (1, "starting"),
            (2, "placed", {"node": "gpu-1"}),
            (3, "launched", {"launch": 1}),
            (5, "placed", {"node": "gpu-2"}),
            (6, "launched", {"launch": 2}),
            (7, "ready", {}),
        )
    )
    assert (first["node"], first["end"], first["how"], first["ended"]) == ("gpu-1", "failed", "its node was lost", 5)
    assert (second["node"], second["ready"], second["end"]) == ("gpu-2", 7, None)


def test_a_server_that_was_taken_over_and_is_kept_again() -> None:
    [life] = lives_of(events((1, "taken_over", {"pid": 3}), (5, "kept", {"seconds": 60})))
    assert (life["ready"], life["taken_over"], life["end"], life["launched"]) == (1, True, "kept", None)


def test_events_in_no_order_end_nothing() -> None:
    assert lives_of(events((1, "ready", {}), (2, "stopped", {}), (3, "phase", {"phase": "x"}))) == []


def test_heartbeats_by_the_nearest_rank() -> None:
    record = heartbeat_record([(time, time / 100) for time in range(1, 101)] + [(101, None)])
    assert (record["count"], record["failed"]) == (101, 1)
    assert (record["p50_seconds"], record["p99_seconds"]) == (0.51, 1.0)
    assert record["samples"][-1] == [101, None]


def test_without_a_heartbeat_nothing_is_made_up() -> None:
    assert heartbeat_record([])["p50_seconds"] is None
    assert heartbeat_record([(1.0, None)]) == {
        "count": 1,
        "failed": 1,
        "p50_seconds": None,
        "p99_seconds": None,
        "samples": [[1.0, None]],
    }


def test_many_heartbeats_are_drawn_with_few_points_that_keep_slow_and_failed_ones() -> None:
    samples: list[tuple[float, float | None]] = [(float(time), 0.001) for time in range(10_000)]
    samples[4321], samples[7777] = (4321.0, 9.0), (7777.0, None)
    shown = heartbeat_record(samples)["samples"]
    assert len(shown) <= 600
    assert 9.0 in [seconds for _, seconds in shown]
    assert None in [seconds for _, seconds in shown]


def record(name: str, **values: Any) -> dict[str, Any]:
    heartbeat = heartbeat_record(values.pop("samples", []))
    lists: dict[str, Any] = {"lives": [], "leaks": [], "artifacts": [], "memory": []}
    texts = dict.fromkeys(("url", "command", "log", "folder", "ready_seconds", "stop_seconds"))
    sizes = {"peak_rss_bytes": None, "peak_gpu_bytes": None}
    return {"name": name, "heartbeat": heartbeat, **lists, **texts, **sizes, **values}


def test_servers_of_one_name_become_one() -> None:
    first = record("a", lives=[1], peak_rss_bytes=10, log="old", memory=[[2, 5, None]], samples=[(1.0, 0.1)])
    second = record("a", lives=[2], peak_rss_bytes=7, log="new", memory=[[1, 6, None]], samples=[(2.0, None)])
    [one, other] = merged([first, record("b"), second])
    assert (one["lives"], one["peak_rss_bytes"], one["log"]) == ([1, 2], 10, "new")
    assert one["memory"] == [[1, 6, None], [2, 5, None]]
    assert (one["heartbeat"]["count"], one["heartbeat"]["failed"]) == (2, 1)
    assert other["name"] == "b"


def test_paths_are_relative_to_the_folder(tmp_path: Path) -> None:
    assert relative(tmp_path / "logs" / "a" / "server.log", tmp_path / "logs") == "a/server.log"
    assert relative(tmp_path / "profiles" / "x", tmp_path / "logs") == "../profiles/x"


def test_a_server_that_never_ran(tmp_path: Path) -> None:
    server = CommandServer(
        launch_command=["x", "{port}", "--api-key", "12345678"], model="m", name="n", output_dir=str(tmp_path)
    )
    server.journal = Journal()
    found = server_record(server, "label", tmp_path, [(1.0, (5, None)), (2.0, (9, 3))])
    assert (found["name"], found["peak_rss_bytes"], found["peak_gpu_bytes"]) == ("label", 9, 3)
    assert found["memory"] == [[1.0, 5, None], [2.0, 9, 3]]
    assert found["command"] == "x 8000 --api-key ********"
    assert (found["lives"], found["ready_seconds"], found["restarts"]) == ([], None, 0)
