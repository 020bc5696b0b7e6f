"""The kernel's counters and limits, on made-up trees of cgroups and on this machine's own."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_infserver.system.cgroup_memory import folder_of, levels, place, reread, tightest_limit

Tree = Callable[..., Path]
V2 = "{id} 25 0:26 {root} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "{id} 25 0:30 {root} {point} rw,relatime - cgroup cgroup rw,memory"
CPU = "{id} 25 0:31 {root} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Make a /proc and mounted cgroups: ``tree("0::/a", [(V2, "/", "fs")], {"fs/a/memory.events": "oom_kill 1"})``."""

    def make(cgroup: str, mounts: list[tuple[str, str, str]], files: dict[str, str]) -> Path:
        own = tmp_path / "proc" / "self"
        own.mkdir(parents=True)
        (own / "cgroup").write_text(cgroup + "\n")
        lines = ["22 1 8:1 / / rw - ext4 /dev/sda1 rw"]
        for number, (line, root, point) in enumerate(mounts):
            shown = str(tmp_path / point).replace(" ", "\\040")
            lines.append(line.format(id=30 + number, root=root, point=shown))
        (own / "mountinfo").write_text("\n".join(lines) + "\n")
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / "proc"

    return make


def events(kills: int) -> str:
    return f"low 0\nhigh 0\nmax 12\noom 3\noom_kill {kills}\noom_group_kill 0\n"


def counts(proc: Path) -> list[tuple[str, int | None, int]]:
    return [(level.folder.name, level.kills, level.kills_below) for level in levels(proc=proc)]


def test_v2_counts_its_own_kills_and_those_below_up_to_the_top(tree: Tree) -> None:
    proc = tree(
        "0::/user.slice/a b/app.scope",
        [(V2, "/", "fs")],
        {
            "fs/user.slice/a b/app.scope/memory.events": events(5),
            "fs/user.slice/a b/app.scope/memory.events.local": events(2),
            "fs/user.slice/a b/memory.events": events(7),
            "fs/user.slice/memory.events": events(9),
        },
    )
    # The top has no such file on a real machine.
    assert counts(proc) == [("app.scope", 2, 5), ("a b", None, 7), ("user.slice", None, 9)]


def test_v1_counts_what_happens_to_its_own_processes(tree: Tree) -> None:
    text = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
    proc = tree(
        "9:name=systemd:/x\n4:memory:/docker/abc\n1:cpu,cpuacct:/other\n0::/unified",
        [(CPU, "/", "cpu"), (V1, "/", "memory")],
        {
            "memory/docker/abc/memory.oom_control": text.format(3),
            "memory/docker/memory.oom_control": text.format(0),
            "cpu/docker/abc/memory.oom_control": text.format(99),
        },
    )
    assert counts(proc) == [("abc", 3, 3), ("docker", 0, 0)]


def test_where_both_are_mounted_memory_belongs_to_v1(tree: Tree) -> None:
    proc = tree(
        "4:memory:/one\n0::/two",
        [(V2, "/", "unified"), (V1, "/", "memory")],
        {"memory/one/memory.oom_control": "oom_kill 1\n", "unified/two/memory.events": events(2)},
    )
    assert counts(proc) == [("one", 1, 1)]


def test_v1_without_a_mount_of_memory_goes_by_v2(tree: Tree) -> None:
    proc = tree("4:memory:/one\n0::/two", [(V2, "/", "fs")], {"fs/two/memory.events": events(2)})
    assert counts(proc) == [("two", None, 2)]


def test_a_container_that_has_only_its_own_part_mounted(tree: Tree) -> None:
    proc = tree(
        "0::/kubepods/pod1/c1/inner",
        [(V2, "/kubepods/pod1/c1", "fs")],
        {"fs/memory.events": events(4), "fs/inner/memory.events": events(1)},
    )
    assert counts(proc) == [("inner", None, 1), ("fs", None, 4)]


@pytest.mark.parametrize("path", ["/elsewhere", "/kubepods/pod10", "/../x", "/kubepods/pod1/../../.."])
def test_a_cgroup_that_is_not_below_the_mount_is_not_looked_for_elsewhere(tree: Tree, path: str) -> None:
    proc = tree(f"0::{path}", [(V2, "/kubepods/pod1", "fs")], {"fs/memory.events": events(4)})
    assert counts(proc) == []


def test_the_mount_that_shows_more_of_the_tree_is_taken(tree: Tree) -> None:
    proc = tree(
        "0::/a/b",
        [(V2, "/a", "part"), (V2, "/", "whole")],
        {"part/b/memory.events": events(1), "whole/a/b/memory.events": events(1), "whole/a/memory.events": events(2)},
    )
    assert counts(proc) == [("b", None, 1), ("a", None, 2)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0" * 5000,
        "oom_kill",
        "oom_kill -1\n",
        "oom_kill x\n",
        "oom_kills 3\n",
        "oom_kill 1e3\n",
        f"oom_kill {'9' * 5000}\n",
    ],
)
def test_garbage_in_a_counter_is_no_counter(tree: Tree, text: str) -> None:
    proc = tree("0::/a", [(V2, "/", "fs")], {"fs/a/memory.events": text, "fs/memory.events": events(1)})
    assert counts(proc) == [("fs", None, 1)]


@pytest.mark.parametrize(
    "text", ["", "\n\n", "0::", "::::", "no colon", "x:memory", "0:memory:/a\0b", "0::/" + "a/" * 2100]
)
def test_garbage_in_the_list_of_cgroups_is_no_cgroup(tree: Tree, text: str) -> None:
    assert counts(tree(text, [(V2, "/", "fs"), (V1, "/", "v1")], {})) == []


@pytest.mark.parametrize(
    "text", ["", "\0", "a - b", "1 2 3 4 5 6 - cgroup2", " - cgroup2 x y", "\\999 " * 7 + "- cgroup2 a b"]
)
def test_garbage_in_the_list_of_mounts_is_no_mount(tree: Tree, tmp_path: Path, text: str) -> None:
    proc = tree("0::/a", [], {})
    (proc / "self" / "mountinfo").write_text(text)
    assert counts(proc) == []


def test_bytes_that_are_not_utf8(tree: Tree, tmp_path: Path) -> None:
    proc = tree("0::/a", [(V2, "/", "fs")], {})
    folder = os.fsencode(tmp_path) + b"/fs/\xff\xfe"
    os.makedirs(folder)
    with open(folder + b"/memory.events", "w") as file:
        file.write(events(6))
    (proc / "self" / "cgroup").write_bytes(b"0::/\xff\xfe\n")
    assert [level.kills_below for level in levels(proc=proc)] == [6]


def test_nothing_at_all(tmp_path: Path) -> None:
    assert levels(proc=tmp_path / "no-proc") == ()
    assert levels(1, proc=tmp_path / "no-proc") == ()
    assert place(proc=tmp_path / "no-proc") == b""
    assert tightest_limit((tmp_path / "nowhere",)) is None


def test_a_cgroup_that_is_removed_meanwhile(tree: Tree, tmp_path: Path) -> None:
    proc = tree("0::/a/b", [(V2, "/", "fs")], {"fs/a/b/memory.events": events(0), "fs/a/memory.events": events(0)})
    own, above = levels(proc=proc)
    shutil.rmtree(tmp_path / "fs/a/b")
    (tmp_path / "fs/a/memory.events").write_text(events(1))
    assert reread(own) is None
    after = reread(above)
    assert after is not None
    assert after.kills_below == 1


def test_what_may_not_be_read_is_not_there(tree: Tree, ordinary_user: Callable) -> None:  # type: ignore[type-arg]
    proc = tree("0::/a", [(V2, "/", "fs")], {"fs/a/memory.events": events(1)})
    file = proc.parent / "fs/a/memory.events"
    file.chmod(0)
    with ordinary_user():
        assert levels(proc=proc) == ()


def test_the_smallest_limit_counts(tmp_path: Path) -> None:
    sizes = {"a": ("max", "77"), "b": ("4000", "3999"), "c": ("5000", "10")}
    for name, (limit, peak) in sizes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.max").write_text(f"{limit}\n")
        (tmp_path / name / "memory.peak").write_text(f"{peak}\n")
    limit = tightest_limit(tuple(tmp_path / name for name in sizes))
    assert limit is not None
    assert (limit.file, limit.size, limit.peak, limit.reached) == (tmp_path / "b/memory.max", 4000, 3999, True)
    loose = tightest_limit((tmp_path / "c",))
    assert loose is not None
    assert loose.reached is False
    assert tightest_limit((tmp_path / "a",)) is None


def test_v1_has_a_limit_too_and_a_number_for_none(tmp_path: Path) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert tightest_limit((tmp_path,)) is None
    (tmp_path / "memory.limit_in_bytes").write_text("67108864\n")
    limit = tightest_limit((tmp_path,))
    assert limit is not None
    assert (limit.size, limit.peak, limit.reached) == (67108864, None, None)


def test_the_folder_of_a_cgroup_that_the_kernel_names(tree: Tree, tmp_path: Path) -> None:
    proc = tree("0::/a", [(V2, "/", "fs")], {"fs/x/memory.max": "1000", "fs/y/cgroup.procs": ""})
    assert folder_of("/x", proc) == tmp_path / "fs/x"
    assert folder_of("/y", proc) is None
    assert folder_of("/../../etc", proc) is None


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="Linux tells of cgroups")
def test_reading_the_own_counters_is_cheap() -> None:
    levels()
    begin = time.process_time()
    for _ in range(100):
        levels()
        place()
    # Usually 0.1 ms, of this process's own time.
    assert time.process_time() - begin < 100 * 0.001
