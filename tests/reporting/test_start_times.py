"""What is remembered of the servers' starts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver.pool.wait_report import start_key
from pytest_infserver.reporting.terminal.start_times import KEY, StartTimes


class Server(SimpleNamespace):
    def __init__(self, name: str = "a", model: str | None = "m", seconds: float | None = 52.34, **more: Any) -> None:
        super().__init__(**{"attached": False, "launches": 1, **more}, name=name, model=model, start_seconds=seconds)
        self.backend_name = "vllm"


@pytest.fixture
def config(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Config:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester.parseconfigure()


def stored(config: pytest.Config) -> Any:
    assert config.cache is not None
    return config.cache.get(KEY, None)


def last(config: pytest.Config, server: Any) -> float | None:
    return StartTimes(config).last(start_key(server))


def remember(config: pytest.Config, *servers: Any) -> None:
    StartTimes(config).remember(servers)


def test_the_last_start_is_known_in_the_next_run_for_the_same_model_only(config: pytest.Config) -> None:
    assert last(config, Server()) is None
    remember(config, Server(), Server("b", None, 3.0))
    assert last(config, Server(seconds=None)) == 52.3
    assert last(config, Server("b", None)) == 3.0
    assert last(config, Server(model="another")) is None
    remember(config, Server(seconds=20.0))
    assert (last(config, Server()), last(config, Server("b", None))) == (20.0, 3.0)


def test_only_real_starts_count(config: pytest.Config) -> None:
    remember(config, Server(seconds=None), Server("b", launches=0), Server("c", attached=True))
    assert stored(config) is None


def test_nothing_is_written_that_is_written_already(config: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(config, Server())
    monkeypatch.setattr(config.cache, "set", lambda *_: pytest.fail("it was written again"))
    remember(config, Server())


def test_what_another_run_has_written_meanwhile_stays(config: pytest.Config) -> None:
    times = StartTimes(config)
    assert times.last(start_key(Server())) is None  # type: ignore[arg-type]
    remember(config, Server("b"))
    times.remember([Server()])  # type: ignore[list-item]
    assert set(stored(config)) == {"a vllm m", "b vllm m"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"7",
        b'"text"',
        b"\xff\xfe\x00",
        b"[" * 200_000,
        b'{"a vllm m": "x"}',
        b'{"a vllm m": null}',
        b'{"a vllm m": [1]}',
        b'{"a vllm m": true}',
        b'{"a vllm m": -1}',
        b'{"a vllm m": NaN}',
        b'{"a vllm m": 1e999}',
        b'{"a vllm m": 1' + b"0" * 400 + b"}",
    ],
)
def test_garbage_in_the_cache_is_no_time_and_is_replaced(config: pytest.Config, garbage: bytes) -> None:
    remember(config, Server("b"))
    assert config.cache is not None
    config.cache._getvaluepath(KEY).write_bytes(garbage)
    assert last(config, Server()) is None
    remember(config, Server())
    assert last(config, Server()) == 52.3


def test_a_cache_that_cannot_be_written_does_no_harm(config: pytest.Config) -> None:
    assert config.cache is not None
    path = Path(config.cache._getvaluepath(KEY))
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    # Root may write where others may not: a file in the place of the folder stops everybody.
    path.parent.write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        remember(config, Server())
    assert last(config, Server()) is None


def test_without_the_cache_nothing_is_known_and_nothing_fails(pytester: pytest.Pytester) -> None:
    config = pytester.parseconfigure("-p", "no:cacheprovider")
    remember(config, Server())
    assert last(config, Server()) is None


def test_it_does_not_grow_without_end(config: pytest.Config) -> None:
    remember(config, *(Server(f"s{number}") for number in range(2000)))
    remember(config, Server("newest"))
    assert len(json.dumps(stored(config))) < 20_000
    assert last(config, Server("newest")) == 52.3
    assert last(config, Server("s1999")) == 52.3
