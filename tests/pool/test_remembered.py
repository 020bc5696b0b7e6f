"""What a run notes for the next one of the same invocation, and when that is not believed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.config.model import ServerConfig
from pytest_infserver.pool.collection.choice import Choice
from pytest_infserver.pool.collection.remembered import Memory, as_input, memory_of
from pytest_infserver.pool.collection.selection import Candidate

COMMAND = ("engine", "{port}")


def choice(**changes: Any) -> Choice:
    settings: dict[str, Any] = {"launch_command": COMMAND, "backend": "command"}
    configs = {name: ServerConfig(name=name, **settings) for name in "ab"}
    configs["c"] = ServerConfig(name="c", needs=("b",), **settings)
    configs["elsewhere"] = ServerConfig(name="elsewhere", backend="remote", url="http://127.0.0.1:1")
    configs.update(changes)

    def make(values: Mapping[str, Any], place: str) -> ServerConfig:
        given = {**values, "launch_command": tuple(values.get("launch_command", ()))}
        return ServerConfig(**{"name": f"own+{len(str(values))}", **given})

    return Choice(configs, [Candidate(name, one.backend) for name, one in configs.items()], False, make=make)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    (tmp_path / "test_1.py").write_text("")
    return Memory(str(tmp_path / "plans.json"), "key")


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    return tmp_path / "test_1.py"


def test_what_was_wanted_is_known_again_in_its_order(memory: Memory, test_file: Path) -> None:
    first = choice()
    variant = first.variant("a", {"env_vars": {"X": "1"}}, "test_1.py:1")
    own = first.own_server({"launch_command": ["engine"], "port": 9000}, "test_1.py:2")
    memory.leave(first, ["c", variant, "b", own, "elsewhere"], [test_file])
    found = memory.servers(choice())
    assert list(found) == ["c", variant, "b", own]
    assert found == {name: first.all_configs[name] for name in found}
    # It is the configuration of now that is started.
    now = ServerConfig(name="b", backend="command", launch_command=("other",))
    assert memory.servers(choice(b=now))["b"] == now
    assert Path(memory.path).stat().st_mode & 0o777 == 0o600


def test_nothing_is_known_of_another_invocation_or_after_a_change(memory: Memory, test_file: Path) -> None:
    memory.leave(choice(), ["a"], [test_file])
    assert memory.servers(choice())
    assert replace(memory, key="other").servers(choice()) == {}
    test_file.write_text("changed")
    assert memory.servers(choice()) == {}
    test_file.unlink()
    assert memory.servers(choice()) == {}


def test_what_is_not_configured_any_more_is_left_out(memory: Memory, test_file: Path) -> None:
    first = choice()
    variant = first.variant("a", {"env_vars": {"X": "1"}}, "here")
    memory.leave(first, ["a", variant, "b", "c"], [test_file])
    later = choice()
    later.configs = {name: one for name, one in later.configs.items() if name not in ("a", "b")}
    # What the last one needs is not there either.
    assert memory.servers(later) == {}


def test_a_variant_that_is_called_otherwise_now_is_left_out(memory: Memory, test_file: Path) -> None:
    first = choice()
    memory.leave(first, [first.variant("a", {"env_vars": {"X": "1"}}, "here")], [test_file])
    same = ServerConfig(name="a", backend="command", launch_command=COMMAND, env_vars={"X": "1"})
    assert memory.servers(choice(a=same)) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"env_vars": {"HF_TOKEN": "hunter2hunter2"}},
        {"api_key": "hunter2hunter2"},
        {"config": {"server_args": {"api-key": "hunter2hunter2"}}},
        {"config": {"server_args": ["--api-key", "hunter2hunter2"]}},
        {"config": {"server_args": {"extra": ["--api-key=hunter2hunter2"]}}},
        {"env_vars": {"DATABASE": "http://me:hunter2hunter2@db"}},
        {"model": Path("somewhere")},
    ],
    ids=str,
)
def test_secrets_and_what_is_no_plain_value_are_not_written(memory: Memory, test_file: Path, settings: Any) -> None:
    first = choice()
    memory.leave(first, ["a", first.variant("b", settings, "here")], [test_file])
    assert list(memory.servers(choice())) == ["a"]
    assert "hunter2" not in Path(memory.path).read_text()


def test_a_name_that_says_nothing_of_the_settings_is_not_believed(memory: Memory, test_file: Path) -> None:
    first = choice()
    memory.leave(first, [first.variant("a", {"name": "mine", "env_vars": {"X": "1"}}, "here")], [test_file])
    assert memory.servers(choice()) == {}


BAD = [
    "",
    "{",
    "[]",
    "null",
    '"key"',
    "[" * 100_000,
    '{"key": null}',
    '{"key": []}',
    '{"key": {}}',
    '{"key": {"files": 3, "servers": {"a": {}}}}',
    '{"key": {"files": {"\\u0000": "x"}, "servers": {"a": {}}}}',
    '{"key": {"files": {"x": 3}, "servers": {"a": {}}}}',
    '{"key": {"files": {}, "servers": 3}}',
    '{"key": {"files": {}, "servers": ["a"]}}',
    '{"key": {"files": {}, "servers": {"a": 3}}}',
    '{"key": {"files": {}, "servers": {"a": null}}}',
    '{"key": {"files": {}, "servers": {"v": {"settings": {"port": 9}}}}}',
    '{"key": {"files": {}, "servers": {"v": {"base": "zz", "settings": {"port": 9}}}}}',
    '{"key": {"files": {}, "servers": {"v": {"base": ["a"], "settings": {"port": 9}}}}}',
    '{"key": {"files": {}, "servers": {"v": {"base": "a", "settings": [1]}}}}',
    '{"key": {"files": {}, "servers": {"v": {"base": "a", "settings": {"port": "no port"}}}}}',
    '{"key": {"files": {}, "servers": {"v": {"base": "a", "settings": {"nonsense": 1}}}}}',
    '{"key": {"files": {}, "servers": {"v": {"base": null, "settings": {"backend": "os:system"}}}}}',
    '{"key": {"files": {}, "servers": {"v": {"base": null, "settings": {"backend": 3, "nonsense": 4}}}}}',
]


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:70])
def test_a_file_that_is_not_ours_means_nothing_and_is_replaced(memory: Memory, test_file: Path, text: str) -> None:
    path = Path(memory.path)
    path.write_text(text)
    path.chmod(0o600)
    assert memory.servers(choice()) == {}
    memory.leave(choice(), ["a"], [test_file])
    assert list(memory.servers(choice())) == ["a"]


@pytest.mark.parametrize("kind", ["others may write", "folder", "pipe", "link", "gone"])
def test_a_file_that_somebody_else_may_have_put_there_means_nothing(
    memory: Memory, test_file: Path, tmp_path: Path, kind: str
) -> None:
    path = Path(memory.path)
    memory.leave(choice(), ["a"], [test_file])
    if kind == "others may write":
        path.chmod(0o620)
        assert memory.servers(choice()) == {}
        return
    path.rename(tmp_path / "elsewhere")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    assert memory.servers(choice()) == {}
    # It does not fail either where it cannot be written.
    memory.leave(choice(), ["b"], [test_file])
    assert list(memory.servers(choice())) == ([] if kind == "folder" else ["b"])


def test_it_keeps_the_last_twenty_and_writes_only_what_is_new(memory: Memory, test_file: Path) -> None:
    for number in range(25):
        replace(memory, key=str(number)).leave(choice(), ["a"], [test_file])
    assert list(json.loads(Path(memory.path).read_text())) == [str(number) for number in range(5, 25)]
    os.utime(memory.path, (1, 1))
    replace(memory, key="7").leave(choice(), ["a"], [test_file])
    # A run that never wanted anything has nothing to say.
    replace(memory, key="new").leave(choice(), [], [test_file])
    replace(memory, writes=False).leave(choice(), ["a"], [test_file])
    assert Path(memory.path).stat().st_mtime == 1
    replace(memory, key="7").leave(choice(), [], [test_file])
    assert replace(memory, key="7").servers(choice()) == {}


def test_of_the_workers_the_first_writes(pytester: pytest.Pytester, memory: Memory) -> None:
    config = pytester.parseconfig("-p", "no:cacheprovider")
    assert memory_of(config) is None
    for name, writes in (("gw0", True), ("gw1", False)):
        given = {"infserver_remembered": as_input(memory), "workerid": name}
        config.workerinput = given  # type: ignore[attr-defined]
        assert memory_of(config) == replace(memory, writes=writes)
    config.workerinput = {"workerid": "gw0"}  # type: ignore[attr-defined]
    assert memory_of(config) is None


def test_the_key_tells_invocations_apart(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(*words: str) -> str:
        found = memory_of(
            pytester.parseconfigure("-pno:asyncio", "-pno:randomly", f"--basetemp={pytester.path}/temp", *words)
        )
        assert found is not None
        return found.key

    keys = {key(), key("-k", "x"), key("-m", "x"), key("test_1.py")}
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    keys.add(key())
    monkeypatch.setenv("INFSERVER_SERVER", "a")
    keys.add(key())
    assert len(keys) == 6
    assert key() == key()
    monkeypatch.setenv("INFSERVER_ENV", "HF_TOKEN=hunter2hunter2")
    assert "hunter2" not in key("--infserver-env", "API_KEY=hunter2hunter2")


def test_nothing_is_known_where_the_order_is_another_one_each_time(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_randomly")
    for words, is_known in (([], False), (["-p", "no:randomly"], True), (["--randomly-dont-reorganize"], True)):
        config = pytester.parseconfigure("-pno:asyncio", *words)
        assert (memory_of(config) is not None) == is_known
