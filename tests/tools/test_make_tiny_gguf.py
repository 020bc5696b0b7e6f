"""The tiny model's file: repeatable, small, and with a vocabulary that fits every text."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.models.builtin import builtin_path

gguf: Any = pytest.importorskip("gguf")
pytest.importorskip("numpy")

TOOL = Path(__file__).parents[2] / "tools" / "make_tiny_gguf.py"
TINY = builtin_path("builtin:tiny")


def loaded(path: Path) -> Any:
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_tiny_gguf = loaded(TOOL)


@pytest.fixture(scope="module")
def reader() -> Any:
    return gguf.GGUFReader(TINY)


@pytest.mark.usefixtures("nothing_left")
def test_that_the_script_writes_the_same_bytes_again(tmp_path: Path) -> None:
    out = tmp_path / "again.gguf"
    done = subprocess.run(
        [sys.executable, str(TOOL), str(out)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_bytes() == TINY.read_bytes()


def test_that_the_file_is_small() -> None:
    assert TINY.stat().st_size < 400_000


@pytest.mark.parametrize("arguments", [[], ["one", "two"], ["--help"]])
def test_that_wrong_arguments_write_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_tiny_gguf.main(arguments) == 2
    assert "usage:" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_that_no_half_file_hides_an_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        make_tiny_gguf.main([str(tmp_path / "none" / "out.gguf")])


def test_the_metadata(reader: Any) -> None:
    values = {name: part.contents() for name, part in reader.fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.name"] == "pytest-infserver tiny"
    assert values["llama.context_length"] >= 2048
    assert values["llama.block_count"] == 1
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.eos_token_id"] == 2
    # ChatML, which llama.cpp knows without --jinja; its marks are no control tokens here, for which
    # grammar-constrained chats would fail.
    assert "<|im_start|>" in values["tokenizer.chat_template"]
    assert not any("<|im_" in token for token in values["tokenizer.ggml.tokens"])
    marks = [values["tokenizer.ggml.tokens"][values[f"tokenizer.ggml.fim_{name}_token_id"]] for name in ("pre", "mid")]
    assert marks == ["<|fim_prefix|>", "<|fim_middle|>"]


def test_that_every_byte_and_every_letter_has_a_token(reader: Any) -> None:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    assert len(set(tokens)) == len(tokens) == len(types)
    by_type = [token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.BYTE]
    assert by_type == [f"<0x{byte:02X}>" for byte in range(256)]
    assert {chr(code) for code in range(0x21, 0x7F)} <= set(tokens)


def test_that_each_word_can_be_built_by_joining_pairs() -> None:
    tokens, _, follows = make_tiny_gguf.vocabulary()
    for word in follows:
        assert {word[:end] for end in range(1, len(word) + 1)} <= set(tokens)


def test_that_the_planted_words_always_lead_to_a_quote_soon() -> None:
    _, _, follows = make_tiny_gguf.vocabulary()
    for word in follows:
        steps = 0
        while word != '"':
            word = follows[word]
            steps += 1
            assert steps < 24


def test_that_bytes_and_control_tokens_are_never_likely(reader: Any) -> None:
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    output = next(tensor for tensor in reader.tensors if tensor.name == "output.weight").data
    for row, kind in zip(output, types, strict=True):
        assert (row[0] == make_tiny_gguf.NEVER_LOGIT) == (kind != gguf.TokenType.NORMAL)
