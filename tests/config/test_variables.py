"""No error shows what a ``${VAR}`` of a configuration holds; it names the variable."""

from __future__ import annotations

import dataclasses
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_infserver.cli.main import main
from pytest_infserver.config.loading import choose, load_file
from pytest_infserver.config.model import ProfileConfig, ServerConfig, keys
from pytest_infserver.config.variables import hide
from pytest_infserver.errors import ConfigError
from pytest_infserver.launcher.checks.mistakes import find_mistakes
from pytest_infserver.launcher.factory import load_server_configs

NAME = "${HF_TOKEN}"
WINDOW = 10
"""Characters in a row of a secret that no error may have."""

TEMPLATES = [
    "backend: vllm\nmodel: m\n{key}: {value}\n",
    "backend: vllm\nmodel: m\n{key}: [{value}]\n",
    "backend: vllm\nmodel: m\n{key}: {{a: {value}}}\n",
    "backend: vllm\nmodel: m\n{key}: {{{value}: a}}\n",
    "backend: vllm\nmodel: m\n{key}: {{a: [{{b: {value}}}]}}\n",
    "backend: vllm\nmodel: m\nprofile: {{{key}: {value}}}\n",
    "backend: vllm\nmodel: m\nprofile: {{{key}: [{value}]}}\n",
    "backend: vllm\nmodel: m\nconfig: {{server_args: {{{value}: [true], a_b: {{c: {value}}}}}}}\n",
    "backend: vllm\nmodel: m\nconfig: {{server_args: [{value}, null, [{value}]]}}\n",
    "servers: {{{value}: {{backend: vllm, model: m, {key}: {value}}}}}\n",
    "servers: {{a: {{backend: vllm, model: m, name: {value}, {key}: 1}}}}\n",
    "defaults: {{{key}: {value}}}\nservers: {{a: {{backend: vllm, model: m}}}}\n",
    "defaults: {value}\nservers: {value}\n",
    "{value}: 1\n",
    "{value}\n",
    "backend: vllm\nmodel: m\n{value}: 1\n{value}: 2\n",
    "backend: vllm\nmodel: m\nport: !!int {value}\nstartup_timeout: !!float {value}\n",
    "backend: {value}\nmodel: m\n{key}: x\n",
]
VALUES = ['"${HF_TOKEN}"', '"a-${HF_TOKEN}-b"', '"${HF_TOKEN:-x}"', '"$${x} ${HF_TOKEN}${HF_TOKEN}"']
SECRETS = st.one_of(
    st.text(string.ascii_letters + string.digits + "-_", min_size=WINDOW + 6, max_size=200),
    st.text(string.printable[:94] + "äß€\n", min_size=WINDOW + 6, max_size=200),
    st.builds("{}:{}".format, st.text(string.ascii_lowercase, min_size=16), st.text(string.ascii_letters, min_size=16)),
    st.builds("-{}".format, st.integers(10**20, 10**30)),
)


def pieces(secret: str) -> set[str]:
    return {secret[at : at + WINDOW] for at in range(len(secret) - WINDOW + 1)}


def errors_of(file: Path) -> list[str]:
    return [str(error) for error in find_mistakes([str(file)])[1]]


@example(template=TEMPLATES[3], key="ports", value=VALUES[0], quoted=True, secret="0000000\n0\n00000000")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    template=st.sampled_from(TEMPLATES),
    key=st.sampled_from([*keys(ServerConfig), *keys(ProfileConfig), "unknown_key"]),
    value=st.sampled_from(VALUES),
    quoted=st.booleans(),
    secret=SECRETS,
)
def test_no_error_shows_a_secret(
    tmp_path_factory: pytest.TempPathFactory, template: str, key: str, value: str, quoted: bool, secret: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", secret)
        file = tmp_path_factory.mktemp("c", numbered=True) / "c.yaml"
        # Unquoted only where the file has a line for it: in a flow mapping { and } would be its own.
        plain = value.strip('"') if not quoted and "{{" not in template and "[" not in template else value
        file.write_text(template.format(key=key, value=plain))
        for text in errors_of(file):
            shown = [piece for piece in pieces(secret) if piece in text]
            assert not shown, text


@pytest.mark.parametrize("secret", ["package.module:Class", "00000000,0000000;0:"])
def test_a_part_of_a_secret_that_is_imported_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", secret)
    (tmp_path / "c.yaml").write_text("name: a\nmodel: m\nbackend: ${HF_TOKEN}\n")
    [text] = errors_of(tmp_path / "c.yaml")
    assert "raised an error that is not shown" in text
    assert not [piece for piece in ("package", "module", "0000000;0") if piece in text]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("startup_timeout: ${HF_TOKEN}", "expected a positive number of seconds, not \"${HF_TOKEN}\""),
        ("port: ${PORT}", "expected a port from 1 to 65535, not \"${PORT}\""),
        ("port: '${QUOTED}'", "not \"${QUOTED}\"; write it without quotes"),
        ("debug_mode: ${ONE}", "expected true or false, not \"${ONE}\""),
        ("url: http//${HF_TOKEN}/v1", "not \"http//${HF_TOKEN}/v1\""),
        ("profile: {tool: '${HF_TOKEN}'}", "expected one of nsys, pytorch, amd, py-spy; not \"${HF_TOKEN}\""),
        ("allow_leaks: ['${PAIR}']", "unknown kind '${PAIR}'"),
        ("${HF_TOKEN}: 1", "unknown key '${HF_TOKEN}'"),
        ("resources: {'${HF_TOKEN}': -1}", "'resources.${HF_TOKEN}': expected 0"),
    ],
)  # fmt: skip
def test_the_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str) -> None:
    for name, value in {"HF_TOKEN": "hf_0123456789", "PORT": "70000", "QUOTED": "8000", "ONE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PAIR", "pairs:x")
    file = tmp_path / "c.yaml"
    file.write_text(f"backend: vllm\nmodel: m\n{line}\n")
    [text] = errors_of(file)
    assert message in text
    assert "hf_0123456789" not in text


@pytest.mark.parametrize("value", ["hf_0123456789", "hf_0123456789:Class", "hf_0123456789.module:Class", "hf"])
def test_a_backend_is_named_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_TOKEN", value)
    file = tmp_path / "c.yaml"
    file.write_text("backend: ${HF_TOKEN}\nmodel: m\n")
    with pytest.raises(ConfigError) as caught:
        load_server_configs(file)
    assert NAME in str(caught.value)
    assert f"'{value}'" not in str(caught.value)
    assert "hf_0123456789" not in str(caught.value)


def test_names_of_other_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    file = tmp_path / "c.yaml"
    file.write_text("servers: {'${HF_TOKEN}': {backend: vllm, model: m}, b: {backend: vllm, model: m}}\n")
    configs = load_file(file)
    for name in ("c", None):
        with pytest.raises(ConfigError) as caught:
            choose(configs, name, "c.yaml")
        assert "hf_0123456789" not in str(caught.value)
        assert NAME in str(caught.value)


def test_what_the_file_itself_says_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "1")
    monkeypatch.delenv("UNSET", raising=False)
    file = tmp_path / "c.yaml"
    file.write_text("backend: vllm\nmodel: ${UNSET:-default}\ngpus: ${ONE}\nport: 70000\nstop_timeout: -1\n")
    text = "\n".join(errors_of(file))
    assert "a port from 1 to 65535, not 70000" in text
    assert "not -1" in text


def test_a_configuration_does_not_show_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    file = tmp_path / "c.yaml"
    file.write_text("backend: vllm\nmodel: m\nhost: ${HF_TOKEN}\n")
    [config] = load_file(file)
    assert "hf_0123456789" not in repr(config.origins)
    assert "hf_0123456789" not in repr(dataclasses.replace(config, host="x"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("not 0123456789abcdef...", "not ${V}..."),
        ("see 0123456789 here", "see 0123456789 here"),
        ('"\x1b[31m0123456789abc\x1b[0mdefghij"', '"${V}"'),
        ("'0123456789abcdefghij'", "'${V}'"),
        ("nothing", "nothing"),
    ],
)
def test_parts_and_colours(message: str, expected: str) -> None:
    assert hide(message, {"0123456789abcdefghij": "${V}"}) == expected


@pytest.mark.parametrize("command", ["check", "run"])
def test_no_escape_sequence_of_a_file_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    evil = "\\e]0;title\\a\\e[31m\\x9b2J"
    for text in (
        f'backend: command\nlaunch_command: ["/no/such/{evil}"]\nenv_vars: {{A: "{evil}"}}\nhealth_endpoint: /h\n',
        f'backend: "{evil}"\n',
        f'"{evil}": 1\n',
        f'backend: vllm\nmodel: m\nport: "{evil}"\n',
        f'backend: vllm\nmodel: m\nconfig: {{server_args: {{"{evil}": [true]}}}}\n',
    ):
        file = tmp_path / "c.yaml"
        file.write_text(text)
        main([command, str(file)])
        shown = "".join(capsys.readouterr())
        assert shown
        assert not any(char in shown for char in "\x1b\x07\x9b"), shown
