"""Text that fits a terminal."""

from __future__ import annotations

import pytest
from _pytest._io.wcwidth import wcswidth
from hypothesis import given
from hypothesis import strategies as st

from pytest_infserver.reporting.terminal.wait_table import Row, cut, pad, table

ROWS = [
    Row("llama-tp1 (vllm)", "loading weights 43 %", "31 s", " (last time 52 s)"),
    Row("llama-tp2 (vllm)", "importing", "4 s", ""),
    Row("模型 (sglang)", "waits for room (llama-tp1 runs)", "104 s", ""),
]


def test_columns_are_aligned_also_under_wide_characters() -> None:
    assert table(ROWS, 100, 10) == [
        "llama-tp1 (vllm)  loading weights 43 %              31 s (last time 52 s)",
        "llama-tp2 (vllm)  importing                          4 s",
        "模型 (sglang)     waits for room (llama-tp1 runs)  104 s",
    ]


def test_what_tells_least_goes_first() -> None:
    assert table(ROWS[:2], 50, 10) == [
        "llama-tp1 (vllm)  loading weights 43 %  31 s",
        "llama-tp2 (vllm)  importing              4 s",
    ]
    assert table(ROWS, 44, 10) == [
        "llama-tp1 (vllm)  loading weights...   31 s",
        "llama-tp2 (vllm)  importing             4 s",
        "模型 (sglang)     waits for room ...  104 s",
    ]
    assert table(ROWS, 30, 10) == [
        "llama-tp1...  loadi...   31 s",
        "llama-tp2...  impor...    4 s",
        "模型 (sgl...  waits...  104 s",
    ]
    assert table(ROWS, 20, 10) == ["31 s loading wei...", "4 s importing", "104 s waits for ..."]
    assert table(ROWS, 5, 10) == ["31 s", "4 s ", "104 "]


def test_what_is_left_out_is_counted() -> None:
    assert table(ROWS, 100, 2)[1] == "... and 2 more"
    assert table(ROWS, 100, 1) == ["... and 3 more"]
    assert table(ROWS, 100, 0) == []
    assert table([], 100, 3) == []


texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp", "Co", "Cn"]), max_size=50)


@given(st.lists(st.builds(Row, texts, texts, texts, texts), max_size=12), st.integers(1, 200), st.integers(0, 12))
def test_nothing_is_ever_wider_or_longer_than_the_terminal(rows: list[Row], columns: int, lines: int) -> None:
    shown = table(rows, columns, lines)
    assert len(shown) == min(lines, len(rows))
    assert all(wcswidth(line) < columns for line in shown)


@given(texts, st.integers(0, 60))
def test_cut_keeps_the_beginning(text: str, width: int) -> None:
    short = cut(text, width)
    assert wcswidth(short) <= width
    assert short == text or text.startswith(short.removesuffix("..."))


@pytest.mark.parametrize("text", ["", "a", "模型", "e\u0301"])
def test_pad_counts_columns(text: str) -> None:
    assert wcswidth(pad(text, 10)) == 10
