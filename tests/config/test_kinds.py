from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.config import kinds
from pytest_infserver.config.kinds import Kind, KindError

TOOLS = kinds.choice("nsys", "amd")
LONG = "x" * 5000


@pytest.mark.parametrize(
    ("kind", "value", "converted"),
    [
        (kinds.STRING, "yes", "yes"),
        (kinds.PATH, Path("a/b"), "a/b"),
        (kinds.NAME, "llama-3.1_tp2", "llama-3.1_tp2"),
        (kinds.NAME, "a" * 100, "a" * 100),
        (kinds.URL, "http://gpu-box:8000/", "http://gpu-box:8000"),
        (kinds.URL, "https://host/v1", "https://host/v1"),
        (kinds.FLAG, False, False),
        (kinds.PORT, 1, 1),
        (kinds.PORT, 65535, 65535),
        (kinds.COUNT, 0, 0),
        (kinds.SECONDS, 0.5, 0.5),
        (kinds.SIZE, 0, 0),
        (kinds.SIZE, 10**18, 10**18),
        (kinds.SIZE, "10 GB", 10_000_000_000),
        (kinds.SIZE, "1.5mb", 1_500_000),
        (kinds.SIZE, " 1 TB ", 10**12),
        (kinds.SECONDS, 1_000_000_000, 1_000_000_000),
        (kinds.STRINGS, ["a", 1, 0.5], ("a", "1", "0.5")),
        (kinds.STRINGS, [], ()),
        (kinds.COMMAND, ("run", 1), ("run", "1")),
        (kinds.ENGINE, {"server_args": []}, {"server_args": []}),
        (kinds.ENVIRONMENT, {"A": 1, "B": None, "C": ""}, {"A": "1", "B": None, "C": ""}),
        (kinds.ENDPOINT, "/health", "/health"),
        (kinds.ENDPOINTS, {"api": "/api"}, {"api": "/api"}),
        (TOOLS, "amd", "amd"),
    ],
)
def test_what_fits_is_converted(kind: Kind, value: Any, converted: Any) -> None:
    assert kind.convert(value) == converted


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (kinds.STRING, "", 'expected a text, not ""'),
        (kinds.STRING, None, "expected a text, not null"),
        (kinds.STRING, 7, "expected a text, not 7; put it in quotes"),
        (kinds.STRING, True, "expected a text, not true; put it in quotes"),
        (kinds.STRING, {"a": 1}, "expected a text, not a mapping"),
        (kinds.STRING, [], "expected a text, not an empty list"),
        (kinds.STRING, "a\0b", "a null byte cannot be part of this text"),
        (kinds.URL, "localhost:8000", 'starts with http:// or https://, not "localhost:8000"'),
        (kinds.URL, "http:///path", "starts with http:// or https://"),
        (kinds.FLAG, 1, "expected true or false, not 1"),
        (kinds.FLAG, "true", 'expected true or false, not "true"; write it without quotes'),
        (kinds.PORT, 0, "expected a port from 1 to 65535, not 0"),
        (kinds.PORT, 65536, "expected a port from 1 to 65535, not 65536"),
        (kinds.PORT, True, "expected a port from 1 to 65535, not true"),
        (kinds.PORT, 80.0, "expected a port from 1 to 65535, not 80.0"),
        (kinds.PORT, "8000", 'expected a port from 1 to 65535, not "8000"; write it without quotes'),
        (kinds.COUNT, -1, "expected a whole number from 0 to 4096, not -1"),
        (kinds.COUNT, 4097, "expected a whole number from 0 to 4096, not 4097"),
        (
            kinds.SIZE,
            "10",
            'expected a size such as 10 GB or 500 MB, or 0 for no limit, not "10"; write it without quotes',
        ),
        (kinds.SIZE, "10 GiB", 'not "10 GiB"'),
        (kinds.SIZE, "9999999 TB", 'not "9999999 TB"'),
        (kinds.SIZE, -1, "not -1"),
        (kinds.SIZE, 0.5, "not 0.5"),
        (kinds.SIZE, True, "not true"),
        (kinds.SECONDS, 0, "expected a positive number of seconds, not 0"),
        (kinds.SECONDS, -0.1, "expected a positive number of seconds, not -0.1"),
        (kinds.SECONDS, float("inf"), "expected a positive number of seconds up to 1000000000, not Infinity"),
        (kinds.SECONDS, 10**400, "expected a positive number of seconds up to 1000000000, not 1000"),
        (kinds.SECONDS, float("nan"), "expected a positive number of seconds, not NaN"),
        (kinds.SECONDS, True, "expected a positive number of seconds, not true"),
        (kinds.SECONDS, "5m", 'expected a positive number of seconds, not "5m"'),
        (kinds.SECONDS, "600", 'not "600"; write it without quotes'),
        (kinds.STRINGS, "a b", "expected a list such as [a, b], not one text: nothing is passed to a shell"),
        (kinds.STRINGS, {"a": 1}, "expected a list, not a mapping"),
        (kinds.COMMAND, [], "expected a list whose first word is the binary"),
        (kinds.COMMAND, [""], "expected a list whose first word is the binary"),
        (kinds.ENGINE, ["--x"], "expected a mapping of names to values, not a list"),
        (kinds.ENGINE, {1: 2}, "expected a text as key, not 1"),
        (kinds.ENVIRONMENT, {"A=B": "x"}, '"A=B" cannot be the name of an environment variable'),
        (kinds.ENVIRONMENT, {"": "x"}, '"" cannot be the name of an environment variable'),
        (kinds.ENDPOINT, "http://x/health", "expected a path that starts with '/', not \"http://x/health\""),
        (TOOLS, "nsis", 'expected one of nsys, amd; not "nsis"'),
        (TOOLS, ["nsys"], "expected one of nsys, amd; not a list"),
    ],
)
def test_what_does_not_fit_is_told(kind: Kind, value: Any, message: str) -> None:
    with pytest.raises(KindError) as caught:
        kind.convert(value)
    assert message in str(caught.value)
    assert caught.value.path == ()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".a", "a b", "a\n", "ü", "a" * 101, 7, None])
def test_a_name_must_be_fit_for_a_folder(name: Any) -> None:
    with pytest.raises(KindError, match="expected a name that can be a folder's"):
        kinds.NAME.convert(name)


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        (kinds.STRINGS, ["a", True], (1,)),
        (kinds.STRINGS, ["a", "b", None], (2,)),
        (kinds.COMMAND, ["run", "a\0"], (1,)),
        (kinds.ENVIRONMENT, {"A": "1", "B": True}, ("B",)),
        (kinds.ENVIRONMENT, {"A": ["x"]}, ("A",)),
        (kinds.ENVIRONMENT, {"A": "x\0"}, ("A",)),
        (kinds.ENDPOINTS, {"api": "api"}, ("api",)),
    ],
)
def test_an_error_inside_names_the_way_to_it(kind: Kind, value: Any, path: tuple[Any, ...]) -> None:
    with pytest.raises(KindError) as caught:
        kind.convert(value)
    assert caught.value.path == path


def test_the_value_of_an_environment_variable_is_not_shown() -> None:
    with pytest.raises(KindError) as caught:
        kinds.ENVIRONMENT.convert({"HF_TOKEN": ["hf_secret_secret"]})
    assert "hf_secret" not in str(caught.value)


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(KindError) as caught:
        kinds.PORT.convert(LONG)
    assert len(str(caught.value)) < 200
