"""The requests of the generator: one at a time, and what each has shown."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from pytest_infserver.load.job import Job
from pytest_infserver.load.samples import Sample

_MAX_LINE = 1 << 22
_MAX_TEXT = 300
_STALE = 3
"""So many connections in a row may turn out to be closed."""
_QUEUE_TIMES = ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds")


class Failed(Exception):
    """A request that has gone wrong: of which kind, and what was said about it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, " ".join(text.split())[:_MAX_TEXT])


class _Answer:
    """What has come of one answer so far."""

    def __init__(self, job: Job, now: Callable[[], float]) -> None:
        self.first: float | None = None
        self.gaps: list[float] = []
        self.usage: dict[str, Any] = {}
        self.begun = False
        self.complete = False
        self._last = 0.0
        self._now = now
        self._most = 2 * job.load.output_tokens + 64

    def take(self, data: dict[str, Any]) -> bool:
        """Take in one event; return whether it has a part of the text."""
        if not isinstance(data, dict):
            raise Failed("garbage", f"an event is no object: {data!r}")
        if data.get("error"):
            error = data["error"]
            raise Failed("error in the stream", str(error.get("message", error) if isinstance(error, dict) else error))
        if isinstance(data.get("usage"), dict):
            self.usage = data["usage"]
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        if choice.get("finish_reason"):
            self.complete = True
        part = choice.get("delta") or choice.get("message") or choice
        if not isinstance(part, dict):
            return False
        return any(part.get(name) for name in ("text", "content", "reasoning_content", "reasoning", "tool_calls"))

    def came(self) -> None:
        """Note that text came; what comes in one piece has come once."""
        now = self._now()
        if self.first is None:
            self.first = now
        else:
            self.gaps.append(now - self._last)
        self._last = now
        if len(self.gaps) > self._most:
            raise Failed(
                "endless", f"{len(self.gaps)} parts came of an answer of at most {self._most // 2 - 32} tokens"
            )

    def tokens(self, name: str) -> int | None:
        value = self.usage.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


class Client:
    """Sends requests to one server."""

    def __init__(self, job: Job, session: aiohttp.ClientSession) -> None:
        """Send nothing yet."""
        self._job = job
        self._session = session
        path = "/v1/chat/completions" if job.load.api == "chat" else "/v1/completions"
        self._url = job.address.url_for(path)
        self._tls: Any = {"ssl": job.address.new_context()} if job.address.scheme == "https" else {}
        self.begun = time.monotonic()

    def now(self) -> float:
        """Return the seconds since the begin of the load."""
        return time.monotonic() - self.begun

    async def send(self, body: bytes, due: float | None = None) -> Sample:
        """Send one request, and return what it has shown.

        Args:
            body: What is asked.
            due: When it was to be sent; None for now.
        """
        sent = self.now()
        answer = _Answer(self._job, self.now)
        failure: tuple[str | None, str | None] = (None, None)
        try:
            for left in range(_STALE, -1, -1):
                try:
                    await self._exchange(body, answer)
                    break
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    # The server has closed a connection that was kept, just when it was to be used again.
                    if not left or answer.begun or isinstance(error, aiohttp.ClientConnectorError):
                        raise
        except Failed as error:
            failure = error.args[0], error.args[1]
        except (asyncio.TimeoutError, TimeoutError):
            failure = "timeout", f"not complete after {self._job.load.timeout:g} s"
        except aiohttp.ClientConnectorError as error:
            failure = "no connection", str(error)
        except (aiohttp.ClientError, ConnectionError, OSError) as error:
            failure = "cut off", f"{type(error).__name__}: {error}"[:_MAX_TEXT]
        except asyncio.CancelledError:
            failure = "interrupted", "the load was stopped"
        return Sample(
            sent if due is None else due,
            sent,
            answer.first,
            self.now(),
            tuple(round(gap, 7) for gap in answer.gaps),
            answer.tokens("prompt_tokens"),
            answer.tokens("completion_tokens"),
            *failure,
        )

    async def _exchange(self, body: bytes, answer: _Answer) -> None:
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers, **self._tls) as response:
            answer.begun = True
            if response.status != 200:
                raise Failed(f"status {response.status}", await _said(response))
            if not self._job.load.stream:
                answer.take(_json(await response.read()))
                return
            rest, is_over = b"", False
            async for data in response.content.iter_any():
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > _MAX_LINE:
                    raise Failed("garbage", "a line of the stream has no end")
                has_text = False
                for line in lines:
                    word = line[5:].strip() if line.startswith(b"data:") else b""
                    if word == b"[DONE]":
                        is_over = True
                    elif word:
                        has_text |= answer.take(_json(word))
                if has_text:
                    answer.came()
            if not (is_over or answer.complete):
                raise Failed("cut off", "the stream has ended without an end of the answer")

    async def count_tokens(self, text: str) -> int | None:
        """Return how many tokens a text has; None where the server does not tell."""
        asked = {"model": self._job.model, "prompt": text, "content": text}
        try:
            async with self._session.post(self._job.address.url_for("/tokenize"), json=asked, **self._tls) as response:
                found = await response.json() if response.status == 200 else None
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError):
            return None
        if not isinstance(found, dict):
            return None
        count = found.get("count", len(found["tokens"]) if isinstance(found.get("tokens"), list) else None)
        return count if isinstance(count, int) and count > 0 else None

    async def queue_times(self) -> tuple[float, float] | None:
        """Return the seconds that requests have waited in the engine so far, and of how many; None if unknown."""
        try:
            async with self._session.get(self._job.address.url_for("/metrics"), **self._tls) as response:
                text = await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError):
            return None
        for name in _QUEUE_TIMES:
            found = re.findall(rf"^{name}_(sum|count)(?:{{.*}})? (\S+)$", text, re.MULTILINE)
            if found:
                return tuple(sum(float(value) for kind, value in found if kind == one) for one in ("sum", "count"))  # type: ignore[return-value]
        return None


async def _said(response: aiohttp.ClientResponse) -> str:
    text = (await response.content.read(1 << 16)).decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise Failed("garbage", f"no JSON: {data[:80]!r}") from None
