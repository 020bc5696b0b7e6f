from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.config.yaml_source import parse_scalar, read_yaml
from pytest_infserver.errors import ConfigError

VARIABLES = {"PORT": "9001", "EMPTY": "", "FLAG": "yes", "WORD": "a word", "REF": "${PORT}", "OCT": "010"}


def read(folder: Path, content: str | bytes) -> Any:
    path = folder / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_yaml(path, VARIABLES).data


def refused(folder: Path, content: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, content)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}/c.yaml:")
    return message.removeprefix(f"{folder}/c.yaml:")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(8)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", " the file is empty: name at least a backend, or several under 'servers:'"),
        ("# only this\n", " the file is empty: name at least a backend, or several under 'servers:'"),
        ("- a\n", "1:1: expected a mapping such as 'backend: vllm' at the top"),
        ("hello\n", "1:1: expected a mapping such as 'backend: vllm' at the top"),
        ("~\n", "1:1: expected a mapping such as 'backend: vllm' at the top"),
        ("a: 1\nb: 2\na: 3\n", "3:1: 'a' stands here for the second time"),
        ("a:\n  b: 1\n  'b': 2\n", "3:3: 'b' stands here for the second time"),
        ("a: {b: 1, b: 1}\n", "1:11: 'b' stands here for the second time"),
        ("a:\n\tb: 1\n", "2:1: not valid YAML: a tab cannot indent; use spaces"),
        ("a: 1\n---\nb: 1\n", "2:1: not valid YAML: a second document begins here"),
        ("a: b: c\n", "1:5: not valid YAML: a ':' that does not belong here"),
        ("a: {b\n", "2:1: not valid YAML: while parsing a flow mapping: expected ',' or '}'"),
        ("a: 'b\n", "2:1: not valid YAML: while scanning a quoted scalar: found unexpected end of stream"),
        ("a: *nowhere\n", "1:4: not valid YAML: found undefined alias 'nowhere'"),
        ("a: {b: ${PORT}}\n", "1:9: not valid YAML: between { and } write ${...} in quotes"),
        ("a: {{ model }}\n", "1:5: a key must be text; a value that begins with '{' or '[' needs quotes"),
        ("on: 1\n", "1:1: a key must be text: put 'on' in quotes"),
        ("a:\n  1: x\n", "2:3: a key must be text: put '1' in quotes"),
        ("a: !!python/object/apply:os.system [ls]\n", "1:4: the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !Ref b\n", "1:4: cannot read this value: could not determine a constructor for the tag '!Ref'"),
        ("a: !!int b\n", "1:4: cannot read this value:"),
        ("a: &a [*a]\n", "1:4: an alias that contains itself"),
        ("a: &a {b: *a}\n", "1:4: an alias that contains itself"),
        ("a: &a\n  <<: *a\n", ": an alias that contains itself"),
        (LAUGHS, "more than 100000 values, aliases filled in"),
        ("a: " + "[" * 200 + "]" * 200, "1:54: nested too deeply"),
        ("a: " + "[" * 3000, " nested too deeply"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n  <<: *a\n", "4:3: '<<' stands here for the second time; write <<: [*a, *b]"),
        ("a:\n  <<: b\n", "2:7: '<<' takes a mapping or a list of mappings"),
        (b"#" * 2_000_000, " larger than 1000000 bytes: this is no server configuration"),
        (b"a: \xe9\n", " not UTF-8 text (byte 3); save it as UTF-8"),
        ("a: b\n".encode("utf-16"), " not UTF-8 text (byte 0); save it as UTF-8"),
        ("a: b\n".encode("utf-16-le"), " character 1 is U+0000, which a text file cannot hold; save it as UTF-8"),
        ("a: ${UNSET}\n", "1:4: the environment variable UNSET is not set; set it, or write ${UNSET:-default}"),
        ("a:\n  - 'x ${UNSET}'\n", "2:5: the environment variable UNSET is not set"),
        ("a: ${}\n", "1:4: '${}' is not ${NAME} or ${NAME:-default}"),
        ("a: ${PORT\n", "1:4: '${PORT' is not ${NAME} or ${NAME:-default}"),
        ("a: ${PORT-1}\n", "1:4: '${PORT-1}' is not ${NAME} or ${NAME:-default}"),
        ("a: ${1PORT}\n", "1:4: '${1PORT}' is not ${NAME} or ${NAME:-default}"),
        ("a: ${X:-${PORT}}\n", "write $${ for a plain ${"),
    ],
)
def test_a_bad_file_is_one_line_with_the_place(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert message in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.yaml", "No such file or directory"),
        ("", "Is a directory"),
        ("a\0b", "null byte"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot read the configuration: .*{message}"):
        read_yaml(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("off", False),
        ("'on'", "on"),
        ("null", None),
        ("", None),
        ("12", 12),
        ("8_192", 8192),
        ("0x10", 16),
        ("0.9", 0.9),
        (".inf", float("inf")),
        ("1e-5", "1e-5"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31T10:00:00Z", "2024-01-31T10:00:00Z"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("22:30:15.5", "22:30:15.5"),
        ("=", "="),
        ("[a, [1]]", ["a", [1]]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_a_value_has_the_type_that_people_expect(tmp_path: Path, text: str, value: Any) -> None:
    found = read(tmp_path, f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${PORT}", 9001),
        ("'${PORT}'", "9001"),
        ('"${PORT}"', "9001"),
        ("${FLAG}", True),
        ("'${FLAG}'", "yes"),
        ("${OCT}", "010"),
        ("${EMPTY}", None),
        ("'${EMPTY}'", ""),
        ("${EMPTY:-x}", "x"),
        ("${UNSET:-}", None),
        ("${UNSET:-5}", 5),
        ("${UNSET:-a b:c}", "a b:c"),
        ("${UNSET:-/a/b}", "/a/b"),
        ("${PORT:-1}", 9001),
        ("http://h:${PORT}/${WORD}", "http://h:9001/a word"),
        ("${REF}", "${PORT}"),
        ("$${PORT}", "${PORT}"),
        ("'$${PORT} ${PORT}'", "${PORT} 9001"),
        ("$PORT", "$PORT"),
        ("a$", "a$"),
        ("[$${A}]", ["${A}"]),
    ],
)
def test_variables(tmp_path: Path, text: str, value: Any) -> None:
    if text.startswith("["):
        text = text.replace("[", "\n- ").replace("]", "")
    found = read(tmp_path, f"a: {text}\n")["a"]
    assert (found, type(found)) == (value, type(value))


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFSERVER_TEST_VALUE", "v")
    path = tmp_path / "c.yaml"
    path.write_text("a: ${INFSERVER_TEST_VALUE}")
    assert read_yaml(path).data == {"a": "v"}


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa: \xc3\xa9\n", b"a: \xc3\xa9\r\n", b"--- \na: \xc3\xa9\n...\n"])
def test_byte_order_mark_line_ends_and_document_marks_are_no_matter(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == {"a": "é"}


def test_merge_keys(tmp_path: Path) -> None:
    text = """\
one: &one {a: 1, b: 1, c: {x: 1}}
two: &two {b: 2, d: 2}
three: {b: 3, <<: [*one, *two], c: {y: 3}}
"""
    assert read(tmp_path, text)["three"] == {"a": 1, "b": 3, "d": 2, "c": {"y": 3}}


def test_places(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("b: &b {x: 1}\na:\n  list:\n    - p\n    - q\n  <<: *b\n  y: 2\n")
    origins = read_yaml(path).origins
    places = {
        (): "1:1",
        ("b", "x"): "1:8",
        ("a",): "2:1",
        ("a", "list", 1): "5:7",
        ("a", "x"): "1:8",
        ("a", "y"): "7:3",
    }
    assert {key: str(origins.find(key)) for key in places} == {key: f"{path}:{at}" for key, at in places.items()}


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("true", True), ("", ""), ("a b", "a b"), ("[1, x]", [1, "x"]), ("010", "010"), ("${X}", "${X}")],
)
def test_a_value_of_the_command_line_is_read_like_yaml(text: str, value: Any) -> None:
    assert parse_scalar(text, "--infserver-set") == value


@pytest.mark.parametrize("text", ["[a", "{a: 1, a: 2}", "{{ x }}", "!!python/none x", "a: b: c"])
def test_a_value_of_the_command_line_that_is_no_yaml(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scalar(text, "--infserver-set")
    assert str(caught.value) == f"--infserver-set: cannot read {text!r} as a YAML value; put it in quotes"
