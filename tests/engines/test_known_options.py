"""What is learned of the real engines' parsers: no good option is refused, a misspelt one is, before any start."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_infserver import ConfigError, SGLangServer, TransformersServer, VLLMServer
from pytest_infserver.launcher.engine.known_options import learned
from pytest_infserver.launcher.engine.known_options.option_table import KnownOption, OptionTable

from .provision import environment
from .test_arguments import documented, parsed

BINARIES = {"vllm": "vllm", "sglang": "python", "transformers": "transformers"}
BACKENDS = {"vllm": VLLMServer, "sglang": SGLangServer, "transformers": TransformersServer}
ENGINES = [pytest.param(name, marks=pytest.mark.engine(name)) for name in BINARIES]
VALUES = {"": "x", "int": "1", "float": "0.5"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's tables are kept: each is read once."""
    return tmp_path_factory.mktemp("tables")


@pytest.fixture
def binary(engine: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine's command; its options are checked."""
    monkeypatch.delenv("INFSERVER_CHECK_OPTIONS")
    monkeypatch.setattr(learned, "cache_dir", lambda: kept)
    command = str(environment(engine) / "bin" / BINARIES[engine])
    monkeypatch.setenv(f"{engine.upper()}_BINARY", command)
    return command


@pytest.fixture
def table(engine: str, binary: str, no_engine_left: None) -> OptionTable:
    """What the engine's parser has, as it was read."""
    entry = BACKENDS[engine]("m", binary_path=binary).options_entry
    assert entry is not None
    parser = learned.find_parser(engine, entry, BACKENDS[engine].packages, dict(os.environ))
    assert parser is not None
    assert learned.is_learned(parser) or learned.learn(parser) is None
    found = learned.learned_table(parser)
    assert found is not None
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_every_documented_option_passes(engine: str, table: OptionTable, binary: str, tmp_path: Path) -> None:
    servers = [one for _, one in documented(engine, tmp_path) if one.settings.entrypoint is None]
    assert len(servers) >= 2
    for one in servers:
        # Whatever environment the example is for, it is compared with the one that is here.
        here = type(one).from_config(dataclasses.replace(one.settings, binary_path=binary))
        assert here.command().argv


@pytest.mark.parametrize("engine", ENGINES)
def test_a_misspelt_option_is_refused_before_the_start(engine: str, table: OptionTable, binary: str) -> None:
    begin = time.monotonic()
    option = {"vllm": "--max-model-len", "sglang": "--context-length", "transformers": "--model-timeout"}[engine]
    misspelt = f"{option[:-2]}{option[-1]}{option[-2]}"
    server = BACKENDS[engine]("m", binary_path=binary, config={"server_args": {misspelt: 8}})
    with pytest.raises(ConfigError, match=f"has no option {misspelt}; did you mean {option}"):
        server.start()
    assert server.launches == 0
    # The engines themselves need 4 to 18 s to say so.
    assert time.monotonic() - begin < 3


def lines_of(option: KnownOption) -> Iterator[list[str]]:
    """Yield command lines with an option that its engine may take, or not."""
    value = option.choices[0] if option.choices else VALUES[option.kind]
    flag = option.flags[0]
    for written in (flag, flag[:-1], f"{flag}x", flag.replace("-", "_").replace("__", "--", 1)):
        yield from ([written], [written, value], [f"{written}={value}"], [written, "-1"], [written, '{"a": "b c"}'])
    yield [f"{flag}.a.b", value]


@pytest.mark.nightly
@pytest.mark.parametrize("engine", [one for one in ENGINES if "transformers" not in one.values])
def test_what_its_parser_takes_is_never_refused(engine: str, table: OptionTable) -> None:
    start = ["model"] if engine == "vllm" else ["--model-path", "model"]
    unwanted = {"--help", "-h", "--config"}
    options = [one for one in table.options if not unwanted & set(one.flags)]
    argvs = [[*start, *line] for option in options[::4] for line in lines_of(option)]
    assert len(argvs) > 1000
    complaints = parsed(engine, tuple(map(tuple, argvs)))["complaints"]
    refused = [table.mistake(argv) for argv in argvs]
    pairs = list(zip(argvs, complaints, refused, strict=True))
    assert [(argv, mine) for argv, theirs, mine in pairs if mine and not theirs] == []
    # And most of what it refuses is refused by us.
    assert sum(1 for _, theirs, mine in pairs if theirs and mine) > 0.5 * sum(1 for one in complaints if one)
    print(json.dumps({"lines": len(argvs), "refused": sum(map(bool, complaints)), "by us": sum(map(bool, refused))}))
