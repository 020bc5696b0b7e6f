"""Answers in the form in which they are stored, and how two of them differ."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_infserver.launcher.clients.joined_stream import join_chunks

_OF_EACH_REQUEST = frozenset({"id", "created", "system_fingerprint", "timings", "service_tier", "__verbose"})
"""Keys at the top of an answer whose values are other ones each time."""
_LOGPROBS = frozenset({"logprob", "logprobs", "token_logprobs", "top_logprobs", "prompt_logprobs", "avg_logprobs"})
_TOKENS = frozenset({"token_ids", "prompt_token_ids", "tokens"})
_MAX_SHOWN = 200


def plain_answer(answer: Any) -> Any:
    """Return an answer as plain data, a stream put together, without what is another one for each request.

    Args:
        answer: What a client of ``openai``, ``requests`` or ``httpx`` returns, a mapping, or the events of a stream.

    Raises:
        TypeError: It is none of these.
    """
    data = _as_data(answer)
    if isinstance(data, list) and data and all(isinstance(one, Mapping) and "choices" in one for one in data):
        data = join_chunks(data)
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key not in _OF_EACH_REQUEST}
    return _without_empty(data)


def _as_data(answer: Any) -> Any:
    if hasattr(answer, "model_dump"):
        return answer.model_dump(mode="json")
    if hasattr(answer, "json") and hasattr(answer, "headers"):
        if "text/event-stream" in answer.headers.get("content-type", ""):
            return _events(answer.text)
        return answer.json()
    if answer is None or isinstance(answer, (str, int, float)):
        return answer
    if isinstance(answer, Mapping):
        return {key: _as_data(value) for key, value in answer.items()}
    if isinstance(answer, Iterable) and not isinstance(answer, bytes):
        return [_as_data(one) for one in answer]
    kind = type(answer).__name__
    raise TypeError(f"response_snapshot takes an answer or the events of a stream, not a {kind}; await it before")


def _events(text: str) -> list[Any]:
    data = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(one) for one in data if one != "[DONE]"]


def _without_empty(data: Any) -> Any:
    """Leave out what has no value, so that a field that a newer engine adds without one is no difference."""
    if isinstance(data, Mapping):
        kept = {key: _without_empty(value) for key, value in data.items() if key != "id" or "function" not in data}
        return {key: value for key, value in kept.items() if value not in (None, [], {})}
    return [_without_empty(one) for one in data] if isinstance(data, (list, tuple)) else data


@dataclass(frozen=True)
class Comparison:
    """How an answer is compared with the stored one.

    Attributes:
        rtol: Share by which log probabilities may differ; near 0, where a share is nothing, a tenth of it counts.
        ignore: Keys that are not compared, wherever they are.
    """

    rtol: float = 0.2
    ignore: Collection[str] = ("usage",)

    def differences(self, now: Any, stored: Any) -> list[str]:
        """Return what is different, a line each, with the path of where that is."""
        return list(self._compare(now, stored, "", ""))

    def _compare(self, now: Any, stored: Any, path: str, key: str) -> Iterator[str]:
        if isinstance(now, Mapping) and isinstance(stored, Mapping):
            yield from self._compare_mappings(now, stored, path, key)
        elif isinstance(now, list) and isinstance(stored, list):
            yield from self._compare_lists(now, stored, path, key)
        elif not self._is_same(now, stored, key):
            yield f"{path or 'the answer'}: {_shown(now)}, stored {_shown(stored)}"

    def _compare_mappings(
        self, now: Mapping[str, Any], stored: Mapping[str, Any], path: str, key: str
    ) -> Iterator[str]:
        names = dict.fromkeys([*stored, *now])
        if key == "top_logprobs":
            # The last ones of them change places; the likeliest ones are among both.
            names = dict.fromkeys(name for name in stored if name in now)
            if not names and stored:
                yield f"{path}: {_shown(list(now))}, stored {_shown(list(stored))}"
        for name in names:
            if name in self.ignore:
                continue
            place = f"{path}.{name}" if path else name
            if name not in now or name not in stored:
                what = f"{_shown(now[name])}, not stored" if name in now else f"missing, stored {_shown(stored[name])}"
                yield f"{place}: {what}"
            else:
                yield from self._compare(now[name], stored[name], place, key if key == "top_logprobs" else name)

    def _compare_lists(self, now: list[Any], stored: list[Any], path: str, key: str) -> Iterator[str]:
        if key == "top_logprobs" and all(isinstance(one, Mapping) and "token" in one for one in [*now, *stored]):
            yield from self._compare(_by_token(now), _by_token(stored), path, key)
            return
        length = len(stored)
        if key in _TOKENS and all(isinstance(one, int) for one in [*now, *stored]):
            # As far as both go.
            length = min(len(now), length)
        elif len(now) != length:
            yield f"{path}: {len(now)} of them, stored {length}"
        for index, (one, other) in enumerate(zip(now[:length], stored[:length], strict=False)):
            yield from self._compare(one, other, f"{path}[{index}]", key)

    def _is_same(self, now: Any, stored: Any, key: str) -> bool:
        numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (now, stored))
        if key in _LOGPROBS and numbers:
            return math.isclose(now, stored, rel_tol=self.rtol, abs_tol=self.rtol / 10)
        return type(now) is type(stored) and bool(now == stored)


def _by_token(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {str(one["token"]): one.get("logprob") for one in entries}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
