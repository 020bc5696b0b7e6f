"""Which kept servers must go before another one starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver.pool.servers.eviction import in_the_way, on_devices


def kept(name: str, port: int = 8001, folder: str = "", keys: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        name=name, port=port, log_path=Path(folder or f"/other/{name}", "server.log"), device_keys=keys
    )


def server(port: int | None = None, folder: str = "/logs") -> Any:
    return SimpleNamespace(name="a", output_dir=Path(folder), settings=SimpleNamespace(port=port))


def names(found: list[Any]) -> list[str]:
    return [one.name for one in found]


@pytest.mark.parametrize(
    ("places", "gone"), [(3, []), (2, ["first"]), (1, ["first", "second"]), (0, ["first", "second", "third"])]
)
def test_so_many_of_the_oldest_go_as_there_are_too_many(places, gone) -> None:
    # The server's own place is taken already: what is left is for the kept ones.
    old = [kept("first"), kept("gpu", keys=("gpu-0",)), kept("second"), kept("third")]
    assert names(in_the_way(server(), old, places)) == gone
    assert names(in_the_way(server(), old, places - 10)) == ["first", "second", "third"]


def test_who_has_its_port_or_its_log_goes_whatever_room_there_is() -> None:
    mine, foreign = kept("a", folder="/logs/a-2"), kept("log", folder="/logs/a")
    old = [kept("other"), kept("port", 9000), mine, foreign, kept("gpu", 9000, keys=("gpu-0",))]
    assert names(in_the_way(server(9000), old, 9)) == ["port", "a", "gpu"]
    assert names(in_the_way(server(), old, 9)) == ["a"]


def test_those_that_go_anyway_count_for_the_places() -> None:
    old = [kept("other"), kept("port", 9000)]
    assert names(in_the_way(server(9000), old, 1)) == ["port"]
    assert names(in_the_way(server(9000), old, 0)) == ["port", "other"]


def test_nothing_is_in_the_way_where_nothing_is_kept() -> None:
    assert in_the_way(server(9000), [], 0) == []
    assert on_devices(["gpu-0"], []) == []


def test_who_holds_one_of_the_gpus() -> None:
    old = [kept("first", keys=("gpu-0", "gpu-1")), kept("none"), kept("second", keys=("gpu-2",))]
    assert names(on_devices({"gpu-1", "gpu-2"}, old)) == ["first", "second"]
    assert names(on_devices(iter(["gpu-2", "gpu-7"]), old)) == ["second"]
    assert on_devices([], old) == []
