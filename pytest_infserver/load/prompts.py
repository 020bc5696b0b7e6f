"""Makes prompts: of a length in the server's own tokens, or from a file of conversations."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_infserver.errors import ConfigError
from pytest_infserver.load.workload import Workload

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city name team minute idea body back parent face level door health art"
)
WORDS = _TEXT.split()
_MAX_FILE = 1 << 28
_ROUNDS = 6

CountTokens = Callable[[str], Awaitable["int | None"]]


async def measured_words(load: Workload, count: CountTokens) -> tuple[float, str]:
    """Return how many words make the prompt as long as asked for, and how its tokens were counted.

    Args:
        load: The workload.
        count: Counts a text's tokens as the server does, or returns None where it has no endpoint for that.
    """
    wanted = load.prompt_tokens
    words = float(wanted)
    for _ in range(_ROUNDS):
        found = await count(_prompt(load, 0, words))
        if found is None:
            return float(wanted), "a word for each token: the server has no tokenizer endpoint"
        if abs(found - wanted) <= max(1, wanted // 100) or words <= 1:
            break
        words = max(1.0, words * wanted / max(1, found))
    return words, "the server's tokenizer"


def prompts(load: Workload, words: float) -> Iterator[str | list[dict[str, Any]]]:
    """Yield prompts without end: texts, or the messages of conversations.

    Args:
        load: The workload.
        words: How many words a prompt has.
    """
    if load.dataset is not None:
        known = read_dataset(Path(load.dataset))
        random.Random(f"dataset {load.seed}").shuffle(known)
        while True:
            yield from known
    number = 0
    while True:
        yield _prompt(load, number, words)
        number += 1


def _prompt(load: Workload, number: int, words: float) -> str:
    source = _source(load)
    length = max(1, round(words))
    common = round(length * load.prefix_share)
    shared = random.Random(f"prefix {load.seed}").choices(source, k=common)
    # The first word that is not shared is no other prompt's, so that no more than the share is found in a cache.
    own = random.Random(f"prompt {load.seed} {number}").choices(source, k=length - common)
    return " ".join(shared + own)


_sources: dict[str, Sequence[str]] = {}


def _source(load: Workload) -> Sequence[str]:
    if load.text is None:
        return WORDS
    if load.text not in _sources:
        found = Path(load.text).read_text("utf-8", "replace")[:_MAX_FILE].split()
        if not found:
            raise ConfigError(f"load: {load.text} has no words")
        _sources[load.text] = found
    return _sources[load.text]


def read_dataset(path: Path) -> list[str | list[dict[str, Any]]]:
    """Return the prompts of a file: JSON lines, or one JSON list as ShareGPT's.

    Raises:
        ConfigError: It has none, or a line is no JSON; the message says which.
    """
    text = path.read_text("utf-8", "replace")[:_MAX_FILE]
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else None
    except ValueError as error:
        raise ConfigError(f"load: {path}: {error}") from None
    if rows is None:
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise ConfigError(f"load: {path}, line {number}: {error}") from None
    found = [one for one in map(_of_row, rows) if one]
    if not found:
        raise ConfigError(f"load: {path} has no prompt: rows have 'conversations', 'messages' or 'prompt'")
    return found


def _of_row(row: Any) -> str | list[dict[str, Any]] | None:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("messages"), list):
        return [one for one in row["messages"] if isinstance(one, dict)]
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        first = turns[0].get("value")
        return first if isinstance(first, str) else None
    prompt = row.get("prompt")
    return prompt if isinstance(prompt, str) else None
