"""What a server can leave on a GPU, each kind found or listed as not seen: all of them in one run in debug mode."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import HIDDEN, ON_GPU
from .machine import MIB, Keeper, Machine, Run, Watcher

KINDS = {
    "allocates": (["/allocate?mib=256"], "nothing"),
    "pins": (["/allocate?mib=64", "/pin?mib=256"], "nothing"),
    "frees": (["/allocate?mib=256", "/free"], "nothing"),
    "child": (["/child?mib=256&how=child"], "process"),
    "daemon": (["/child?mib=256&how=daemon"], "process"),
    "orphan": (["/child?mib=256&how=orphan"], "process"),
    "forks": (["/allocate?mib=256", "/fork"], "process"),
    "stubborn": (["/allocate?mib=256", "/stubborn"], "process"),
    # What outlives a server that has died is ended with it, and the death is the error.
    "dies": (["/child?mib=256&how=daemon", "DIE"], "nothing"),
    # Held by a process that is none of the server's, as by a driver that does not take it back.
    "shares": (["HANDLE"], "as seen"),
    "elsewhere": (["KEEPER"], "as seen"),
}
"""What a server is asked for, and what the check says then."""
TESTS = """
import os, signal, time
import pytest, requests
KEEPER = os.environ["KEEPER"]

def get(url):
    answer = requests.get(url, timeout=120)
    assert answer.ok, answer.text
    return answer.json()

def act(server, step):
    if step == "DIE":
        os.kill(server.pid, signal.SIGKILL)
    elif step == "KEEPER":
        get(KEEPER + "/allocate?mib=256")
    elif step == "HANDLE":
        handle = get(server.url_for("/share?mib=256"))
        print("OPENED", requests.get(KEEPER + "/open", params={"handle": handle}, timeout=120).text)
    else:
        get(server.url_for(step))
    # What a server holds is looked at now and then.
    time.sleep(1)
"""


def run_kinds(machine: Machine, folder: Path, kinds: list[str], *before: str) -> Run:
    """Run pytest in debug mode with a server of each of these kinds."""
    servers = {name: machine.torch_server(debug_mode=True) for name in kinds}
    tests = TESTS
    for name in kinds:
        steps = "".join(f"    act(inference_server, {step!r})\n" for step in KINDS[name][0])
        tests += f"\n@pytest.mark.infserver({name!r})\ndef test_{name}(inference_server):\n{steps}"
    keeper = Keeper(machine)
    try:
        return machine.run(folder, servers, "-rP", before=before, variables={"KEEPER": keeper.url}, test_it=tests)
    finally:
        keeper.close()


@pytest.fixture(scope="module")
def leaks(machine: Machine, watcher: Watcher, make_folder: Callable[[str], Path], module_leaves_nothing: None) -> Run:
    before = watcher.used()
    run = run_kinds(machine, make_folder("leak_kinds"), list(KINDS))
    for name in KINDS:
        machine.note(f"leak check, kind {name!r}", " ".join(leaked(run, name)) or "nothing")
    watcher.wait(lambda used: used <= before + 64 * MIB)
    return run


def leaked(run: Run, name: str) -> list[str]:
    """Return the kinds of what a server has left."""
    return sorted({leak["kind"] for leak in run.server(name)["leaks"] or []})


@pytest.mark.parametrize("name", [name for name, (_, says) in KINDS.items() if says != "as seen"])
def test_each_kind(leaks: Run, name: str) -> None:
    found = leaked(leaks, name)
    says = KINDS[name][1]
    assert found == [] if says == "nothing" else says in found, leaks.output
    assert (f"ERROR at teardown of test_{name}[{name}]" in leaks.output) is (says != "nothing"), leaks.output


def test_memory_that_others_hold_is_the_servers_only_where_pids_are_hidden(leaks: Run, machine: Machine) -> None:
    from pytest_infserver.launcher.leaks.gpu import _pids_are_ours

    found = {name: leaked(leaks, name) for name in ("shares", "elsewhere")}
    if _pids_are_ours():
        assert "gpu" not in found["shares"] + found["elsewhere"], leaks.output
    opened = [line for line in leaks.output.splitlines() if line.startswith("OPENED")]
    machine.note("a handle of another process's memory", opened)


@pytest.mark.parametrize("machine", [ON_GPU, HIDDEN], indirect=True)
def test_where_pids_are_hidden_the_devices_change_counts(machine: Machine, folder: Path, nothing_left: None) -> None:
    """As in a container: the driver's process ids are not those of the run, or it names none."""
    words = [] if machine.kind == "hidden" else ["unshare", "--pid", "--fork", "--mount-proc"]
    if words and subprocess.run([*words, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this user may make no pid namespace here")
    run = run_kinds(machine, folder, ["allocates", "daemon", "elsewhere"], *words)
    found = {name: leaked(run, name) for name in ("allocates", "daemon", "elsewhere")}
    machine.note("leak check where pids are hidden", found)
    assert found["allocates"] == []
    assert "process" in found["daemon"]
    [finding] = [leak for leak in run.server("elsewhere")["leaks"] if leak["kind"] == "gpu"]
    assert "more in use than before the start" in finding["text"]


def test_what_the_driver_calls_our_processes(
    machine: Machine, watcher: Watcher, folder: Path, nothing_left: None
) -> None:
    """Where it is told that process ids are the driver's own, they are."""
    tests = """
    from helpers import ask
    from pytest_infserver.launcher.leaks.gpu import _pids_are_ours
    from pytest_infserver.system.gpus import read_gpus

    def test_it(inference_server):
        ask(inference_server, "/allocate", mib=512)
        pid = ask(inference_server, "/device")["pid"]
        holders = {pid: size for gpu in read_gpus() for pid, size in (gpu.processes or {}).items()}
        print("SEEN", _pids_are_ours(), pid in holders, holders.get(pid, 0) >> 20)
        assert pid in holders or not _pids_are_ours()
    """
    run = machine.run(folder, {"one": machine.torch_server()}, "-s", test_it=tests)
    assert run.returncode == 0, run.output
    [seen] = [line for line in run.output.splitlines() if "SEEN" in line]
    machine.note("pids are said to be ours, the driver lists them, MiB", seen.partition("SEEN ")[2])
