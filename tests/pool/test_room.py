"""How much room there is, and who has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pool_fakes import places

from pytest_infserver import load_server_configs
from pytest_infserver.launcher.devices import Demand, Device, Visible
from pytest_infserver.launcher.devices.visible import Machine
from pytest_infserver.pool import room as room_module
from pytest_infserver.pool.room import MachineRoom, default_max_servers, machine_room
from pytest_infserver.system import machine


@pytest.mark.parametrize(
    ("cores", "gigabytes", "expected"),
    [(1, 4, 2), (2, 64, 2), (8, 64, 4), (64, 32, 4), (5.5, 64, 2), (64, 256, 32)],
)
def test_the_default_goes_by_cores_and_memory(monkeypatch, cores, gigabytes, expected) -> None:
    monkeypatch.setattr(machine, "cores", lambda: float(cores))
    monkeypatch.setattr(machine, "memory", lambda: gigabytes << 30)
    assert default_max_servers() == expected
    assert places(None, "a").max_servers == expected
    assert places(7, "a").max_servers == 7


def test_places() -> None:
    room = places(2, "abc")
    assert room.claim("a")
    assert room.places_left() == 1
    assert room.claim("b")
    assert not room.claim("c")
    assert room.devices("a") is None
    assert not room.fits("c", ())
    assert room.fits("c", ["a"])
    assert room.claim("c", beyond=True)
    # Now there are too many: one that goes is not enough.
    assert not room.fits("a", ["b"])
    room.release("a")
    room.release("b")
    assert room.fits("a", ())
    room.release("a")
    assert room.places_left() == 1


def gpus(count: int) -> Visible:
    devices = tuple(Device(str(number), f"gpu-{number}", number) for number in range(count))
    known = Machine(tuple(device.key for device in devices))
    return Visible("CUDA_VISIBLE_DEVICES", devices, "nvidia-ml-py", known)


def gpu_room(count: int, limit: int | None = 2, **demands: int | Demand) -> MachineRoom:
    needs = {name: one if isinstance(one, Demand) else Demand(one, f"gpus: {one}") for name, one in demands.items()}
    return MachineRoom(limit, ["far"], needs, gpus(count))


def labels(room: MachineRoom, name: str) -> list[str]:
    claim = room.devices(name)
    return [] if claim is None else [device.label for device in claim.devices]


def test_gpus() -> None:
    room = gpu_room(3, a=2, b=1, c=2, d=0)
    assert room.claim("a")
    assert room.claim("b")
    assert sorted(labels(room, "a") + labels(room, "b")) == ["0", "1", "2"]
    assert not room.claim("c")
    # Against a shortage of GPUs nothing helps.
    assert not room.claim("c", beyond=True)
    assert room.claim("d")
    assert room.devices("d") is None
    assert not room.fits("c", ["b"])
    assert room.fits("c", ["a"])
    room.release("a")
    assert room.claim("c")
    for name in "abcd":
        room.release(name)
    assert labels(room, "c") == []


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFSERVER_DEVICE_LOCKS", "1")
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path))


def test_a_server_gets_only_the_gpus_that_it_names(locks) -> None:
    fixed = Demand(1, "its CUDA_VISIBLE_DEVICES", ("1",), "CUDA_VISIBLE_DEVICES")
    room = gpu_room(2, a=fixed, b=fixed, c=1)
    assert room.candidates("a") == {"gpu-1"}
    assert room.candidates("c") == {"gpu-0", "gpu-1"}
    assert room.claim("a")
    assert labels(room, "a") == ["1"]
    assert not room.claim("b")
    assert not room.fits("b", ())
    assert room.claim("c")
    assert labels(room, "c") == ["0"]
    room.release("a")
    room.release("c")


def test_gpus_that_another_run_has_are_not_counted_as_this_runs(locks) -> None:
    other, room = gpu_room(1, a=1), gpu_room(1, a=1)
    assert other.claim("a")
    assert not room.claim("a")
    assert room.fits("a", ())
    other.release("a")
    assert room.claim("a")
    room.release("a")


def test_servers_elsewhere_take_no_room() -> None:
    room = gpu_room(0, 1, a=0)
    assert room.claim("a")
    assert room.claim("far")
    assert room.fits("far", ())
    assert room.shortage(["far", "a"]) is None
    assert room.places_left() == 0
    room.release("far")
    assert room.devices("far") is None


def test_a_server_that_ran_already_has_its_room_until_it_ends() -> None:
    room = gpu_room(2, a=1, b=2, c=0)
    room.adopt("a", ["gpu-1"])
    room.adopt("c", [])
    assert labels(room, "a") == ["1"]
    assert room.places_left() == 1
    assert not room.fits("b", ())
    assert room.fits("b", ["a"])
    # Its supervisor had the locks: to start again it needs its own.
    assert room.renew("a")
    assert len(labels(room, "a")) == 1
    assert room.renew("a")
    assert room.renew("c")
    room.release("a")
    assert room.fits("b", ())


def test_the_gpus_of_a_server_that_ran_already_are_taken_also_without_locks() -> None:
    room = gpu_room(2, a=1, b=1, c=1)
    room.adopt("a", ["gpu-0"])
    assert room.claim("b")
    assert labels(room, "b") == ["1"]
    assert not room.claim("c")
    assert room.renew("a")
    assert labels(room, "a") == ["0"]
    room.release("a")
    room.release("b")


def test_a_server_that_ran_already_may_find_its_gpus_taken_when_it_has_ended(monkeypatch) -> None:
    room = gpu_room(1, a=1)
    room.adopt("a", ["gpu-0"])
    monkeypatch.setattr("pytest_infserver.launcher.devices.claim", lambda *_: None)
    assert not room.renew("a")


def test_the_port_of_a_server_that_ran_already_is_not_another_runs_turn(locks) -> None:
    def room() -> MachineRoom:
        return MachineRoom(2, [], {"a": Demand(0, "")}, gpus(0), {"a": 29_123})

    here, other = room(), room()
    here.adopt("a", [])
    assert not other.claim("a")
    assert other.fits("a", ())
    assert "port 29123, which another run" in other.taken("a")
    assert here.renew("a")
    assert not other.claim("a")
    here.release("a")
    assert other.claim("a")
    other.release("a")


def test_of_two_runs_that_begin_together_none_holds_a_port_that_the_other_waits_for(locks) -> None:
    def room() -> MachineRoom:
        return MachineRoom(2, [], {name: Demand(0, "") for name in "abc"}, gpus(0), {"a": 29_124, "b": 29_125})

    here, other = room(), room()
    assert here.claim("a", ahead=True)
    assert not other.claim("a", ahead=True)
    assert not other.claim("b", ahead=True)
    # What has no port of its own has nothing to do with it.
    assert other.claim("c", ahead=True)
    assert here.claim("b", ahead=True)
    here.release("a")
    here.release("b")
    other.release("c")
    assert other.claim("a", ahead=True)
    assert other.claim("b", ahead=True)
    other.release("a")
    other.release("b")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("ab", None),
        ("abc", "needs 3 servers at the same time (a, b, c), and --infserver-max-servers allows 2"),
        ("x", None),
        ("abx", None),
        ("xy", "3"),
        ("z", "4"),
    ],
)
def test_what_can_never_run_together_is_told_with_the_numbers(names, words) -> None:
    room = gpu_room(2, 2, a=0, b=0, c=0, x=1, y=2, z=4)
    text = room.shortage(names)
    assert (text is None) == (words is None)
    assert words is None or words in str(text)


def test_a_limit_that_is_only_an_estimate_gives_way(monkeypatch) -> None:
    monkeypatch.setattr(room_module, "default_max_servers", lambda: 2)
    room = places(None, "abc")
    assert room.shortage("abc") is None
    assert room.max_servers == 3
    assert room.shortage("a") is None
    assert room.max_servers == 3


def test_the_room_of_real_configurations(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = tmp_path / "servers.yaml"
    path.write_text(
        "servers:\n"
        "  a: {backend: command, launch_command: [run, '{port}'], gpus: 0}\n"
        "  far: {backend: remote, url: 'http://127.0.0.1:9'}\n"
    )
    room = machine_room({str(one.name): one for one in load_server_configs(str(path))}, 1)
    assert room.claim("a")
    assert room.claim("far")
    assert room.places_left() == 0


def test_servers_with_the_same_port_take_turns(locks) -> None:
    needs = {name: Demand(0, "none") for name in "abc"}
    room = MachineRoom(4, (), needs, gpus(0), {"a": 8123, "b": 8123, "c": None})
    assert room.claim("a")
    assert not room.claim("b", beyond=True)
    assert not room.fits("b", ())
    assert room.fits("b", ["a"])
    assert "a" in room.holders("b")
    assert room.claim("c")
    assert room.shortage(["a", "b"]) == (
        "needs a and b at the same time, and both have the port 8123: leave out 'port' of one of them"
    )
    assert room.shortage(["a", "c"]) is None
    room.release("a")
    assert room.claim("b")
    # Else this process has the port's turn as long as it lives.
    room.release("b")


def test_who_sleeps_lends_its_gpus_and_gets_the_same_ones_back() -> None:
    room = gpu_room(2, a=1, b=2, c=1, d=1)
    assert room.claim("a")
    assert room.claim("c")
    room.lend("a")
    assert room.holders("a") == set()
    assert room.claim("d")
    # Nothing else was free. Who sleeps waits for who has its GPU, and for nobody else.
    assert labels(room, "d") == labels(room, "a")
    assert not room.claim("a")
    assert room.holders("a") == {"d"}
    assert not room.fits("a", ["c"])
    assert room.fits("a", ["d"])
    room.lend("d")
    assert room.claim("a")
    assert not room.claim("d")
    room.lend("a")
    room.lend("c")
    assert room.claim("b")
    for name in "acdb":
        room.release(name)
    assert room.claim("b")
    room.release("b")


def test_who_sleeps_is_disturbed_last() -> None:
    room = gpu_room(2, a=1, b=1)
    assert room.claim("a")
    room.lend("a")
    assert room.claim("b")
    assert labels(room, "b") != labels(room, "a")
    room.release("a")
    room.release("b")


def test_runs_take_turns_with_a_port_that_both_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path))
    one, other = (
        MachineRoom(1, (), {name: Demand(0, "") for name in "abc"}, gpus(0), {"a": 9000, "b": 9000, "c": 9001})
        for _ in range(2)
    )
    assert one.claim("a")
    assert not other.claim("a")
    assert other.fits("a", ())
    assert other.taken("a") == "waits for port 9000, which another run on this machine uses"
    assert other.candidates("a") == set()
    # Another port is another matter, and what finds no place holds none.
    assert not one.claim("c")
    assert other.claim("c")
    other.release("c")
    one.release("a")
    assert other.claim("b")
    assert not one.claim("a")
    # Between two of a run that have the same one others may come in.
    other.release("b")
    assert one.claim("a")


def test_nobody_waits_for_a_turn_where_there_is_no_place_for_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(tmp_path / "file"))
    room = MachineRoom(1, (), {"a": Demand(0, "")}, gpus(0), {"a": 9000})
    assert room.claim("a")
    room.release("a")
    assert room.claim("a")
