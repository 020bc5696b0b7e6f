"""What the tests ask with: a server, what it offers, and what it has been asked in a test."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from pytest_infserver.conformance.exchange import Answer, NoAnswer, Request, Stream, opened, send
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.fetch import Limits

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GREETING = "Say hello."
_SHOWN_EVENT = 400
_NO_ENDPOINT = (404, 405, 501)
_LOOK_SHARE = 0.25
"""Part of a request's time that a server has to show that it answers again."""
_GIVE_UP_AFTER = 3
"""Tests in a row without an answer after which nothing more is asked."""
_REFUSAL = re.compile(
    r"not (?:yet |currently |been )?(?:support|implement|enabl|available|allowed)|unsupported|doesn't support"
    r"|is disabled|unexpected (?:key|keyword|field)|unrecogni[sz]ed|extra (?:inputs|fields)|requires? --"
    r"|please add `?--|has no support|only supports?|must be (?:enabled|started)|cannot be used with this",
    re.IGNORECASE,
)
"""Words by which servers say that they do not offer something, rather than that a request is wrong."""


class NotOffered(Exception):
    """The server says that it does not offer what was asked for."""


class NotAsked(Exception):
    """It could not be found out; the text says why."""


class Unclear(NotAsked):
    """It could not be found out, and that is nobody's fault: the model did not say enough to tell."""


@dataclass
class Target:
    """A server under test, with what is known of it.

    Attributes:
        name: Its name in the grid.
        address: Where it is.
        model: The model that requests name; "" for one that is asked for.
        limits: What each request may cost.
        version: The engine and its version, as far as it is known.
        silent: How many tests in a row had no answer.
        offers: Paths that were asked for, with the reason why they are not offered, or None.
        look_with: What shows whether a server that had no answer is well again.
    """

    name: str
    address: Address
    model: str
    limits: Limits
    version: str = ""
    silent: int = 0
    offers: dict[str, str | None] = field(default_factory=dict)
    look_with: Request = field(default_factory=lambda: Request("GET", "/v1/models"))

    def note_silence(self, request: Request) -> None:
        """Remember that a request had no answer, and what shows whether the server is well again."""
        self.silent += 1
        if request.method == "POST":
            # A server that is stuck in a long answer may well say which models it has.
            small = {"model": self.model, "messages": [user("Hi")], "max_tokens": 1}
            self.look_with = Request("POST", CHAT, small)

    def look(self) -> None:
        """Ask whether the server still answers, where the last test had no answer.

        Raises:
            NotAsked: It does not.
        """
        if not self.silent:
            return
        if self.silent >= _GIVE_UP_AFTER:
            raise NotAsked(f"the server did not answer {self.silent} tests in a row: nothing more was asked")
        limits = Limits(self.limits.seconds * _LOOK_SHARE, self.limits.max_bytes)
        try:
            send(self.address, self.look_with, limits)
        except NoAnswer as error:
            self.silent += 1
            what = f"{self.look_with.method} {self.look_with.path}"
            raise NotAsked(f"the server does not answer any more: {what} {error}") from None
        self.silent = 0


class Ask:
    """Asks one server in one test, and keeps what was asked.

    Attributes:
        target: The server.
        asked: The requests of this test, in order.
    """

    def __init__(self, target: Target) -> None:
        """Ask nothing yet."""
        self.target = target
        self.asked: list[Request] = []

    # Requests of any kind: whatever the answer is.

    def send(self, method: str, path: str, body: Any = None, **how: Any) -> Answer:
        """Send a request and return its answer, whatever its status.

        Args:
            method: Such as POST.
            path: Below the server's base path.
            body: JSON, or bytes.
            **how: Further fields of `Request`.

        Raises:
            NotAsked: The server wants a key, sends elsewhere, is not ready, or does not answer.
        """
        request = Request(method, path, body, **how)
        self.asked.append(request)
        try:
            answer = send(self.target.address, request, self.target.limits)
        except NoAnswer as error:
            self.target.note_silence(request)
            raise NotAsked(f"{method} {path} {error}") from None
        self.target.silent = 0
        self._check_access(answer)
        return answer

    def _check_access(self, answer: Answer) -> None:
        what = f"{answer.request.method} {answer.request.path}"
        if answer.status in (401, 403) and answer.request.with_key:
            has = "refuses the key" if self.target.address.headers else "wants a key"
            raise NotAsked(
                f"{what}: the server {has} ({answer.status}): --infserver-set api_key_env=VARIABLE names the variable "
                "that has it"
            )
        if answer.status in (301, 302, 303, 307, 308):
            raise NotAsked(
                f"{what}: sent on ({answer.status}) to {answer.headers.get('location', 'nowhere')}: ask there"
            )
        if answer.status in (429, 503):
            raise NotAsked(f"{what}: the server is busy, or not ready: {answer.short}")

    # Requests that a server answers if it offers what is asked for.

    def get(self, path: str) -> Answer:
        """GET something that may not be offered; see `checked`."""
        return self.checked(self.send("GET", path))

    def post(self, path: str, body: Mapping[str, Any], **how: Any) -> Answer:
        """POST a right request, with the model's name, to something that may not be offered; see `checked`."""
        return self.checked(self.send("POST", path, {"model": self.model, **body}, **how))

    def checked(self, answer: Answer) -> Answer:
        """Return an answer that is there.

        Raises:
            NotOffered: The server says that it has no such thing.
            AssertionError: Another status than 200.
        """
        what = f"{answer.request.method} {answer.request.path}"
        if answer.status in _NO_ENDPOINT:
            raise NotOffered(f"{what} was answered with {answer.short}")
        if answer.status >= 400 and _REFUSAL.search(answer.text):
            raise NotOffered(f"{what}: {answer.short}")
        assert answer.status == 200, f"a right request was answered with {answer.short}"
        return answer

    @property
    def model(self) -> str:
        """The name that requests give the model."""
        if not self.target.model:
            answer = self.send("GET", "/v1/models")
            with contextlib.suppress(AssertionError, LookupError, TypeError):
                self.target.model = str(answer.json()["data"][0]["id"])
            if not self.target.model:
                raise NotAsked(
                    f"GET /v1/models names no model ({answer.short}): --infserver-model says what it is called"
                )
        return self.target.model

    def require(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Make sure that an endpoint is offered, before something is asked of it that shall fail.

        Args:
            path: The endpoint.
            body: A right request to it; a short chat or completion if None.

        Raises:
            NotOffered: It is not.
        """
        if path not in self.target.offers:
            small: dict[str, Any] = {"messages": [user("Hi")]} if path == CHAT else {"prompt": "Hi"}
            try:
                self.post(path, {**small, "max_tokens": 1} if body is None else body)
                self.target.offers[path] = None
            except NotOffered as error:
                self.target.offers[path] = str(error)
            self.asked.pop()
        reason = self.target.offers[path]
        if reason is not None:
            raise NotOffered(reason)

    def chat(self, what: str | Sequence[Any] = GREETING, **extra: Any) -> dict[str, Any]:
        """Return the answer to a chat: of at most 8 tokens, the most likely ones, unless something else is said.

        Args:
            what: What the user says, or all messages.
            **extra: Further fields of the request; one of None is left out.
        """
        return self.object(self.post(CHAT, self.chat_body(what, **extra)))

    def chat_body(self, what: str | Sequence[Any] = GREETING, **extra: Any) -> dict[str, Any]:
        """Return the body of such a request, without the model."""
        messages = [user(what)] if isinstance(what, str) else list(what)
        body = {"messages": messages, "max_tokens": 8, "temperature": 0, **extra}
        return {name: value for name, value in body.items() if value is not None}

    def complete(self, prompt: Any = "Once upon a time", **extra: Any) -> dict[str, Any]:
        """Return the answer to a completion, as `chat`."""
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, **extra}
        return self.object(self.post(COMPLETIONS, {name: one for name, one in body.items() if one is not None}))

    def object(self, answer: Answer) -> dict[str, Any]:
        """Return the JSON object of an answer."""
        value = answer.json()
        assert isinstance(value, dict), f"the answer is no JSON object: {answer.short}"
        return value

    # Streams.

    def events(self, path: str, body: Mapping[str, Any]) -> list[Event]:
        """Return the events of a streamed answer; it must be one of text/event-stream."""
        answer = self.post(path, {**body, "stream": True})
        kind = answer.headers.get("content-type", "")
        assert kind.startswith("text/event-stream"), f"a stream has the content type {kind!r}: {answer.short}"
        events = events_of(answer.body)
        # The status was sent before the server knew.
        if '"error"' in events[0].data and _REFUSAL.search(events[0].data):
            raise NotOffered(f"POST {path}, streamed: {events[0].data[:_SHOWN_EVENT]}")
        return events

    def chunks(self, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the JSON objects of a streamed answer, without ``[DONE]``."""
        return [event.json() for event in self.events(path, body) if event.data != "[DONE]"]

    def chat_chunks(self, what: str | Sequence[Any] = GREETING, **extra: Any) -> list[dict[str, Any]]:
        """Return those of a chat."""
        return self.chunks(CHAT, self.chat_body(what, **extra))

    @contextlib.contextmanager
    def cut_off(self, path: str, body: Mapping[str, Any]) -> Iterator[Stream]:
        """Open a stream that is closed at the end of the block, whatever of it has been read."""
        request = Request("POST", path, {"model": self.model, **body, "stream": True})
        self.asked.append(request)
        try:
            with opened(self.target.address, request, self.target.limits) as stream:
                yield stream
        except NoAnswer as error:
            raise NotAsked(f"POST {path} {error}") from None

    def at_once(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Send several requests at the same time; return their answers in the same order."""
        self.require(path, bodies[0])
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.post(path, body), bodies))

    def model_path(self, name: str) -> str:
        """Return the path of one model."""
        return f"/v1/models/{quote(name, safe='')}"


@dataclass(frozen=True)
class Event:
    """One event of a stream.

    Attributes:
        data: What it says.
        name: Its kind; "" without one.
    """

    data: str
    name: str = ""

    def json(self) -> dict[str, Any]:
        """Return the JSON object that it has.

        Raises:
            AssertionError: It has none.
        """
        try:
            value = json.loads(self.data)
        except (ValueError, RecursionError):
            raise AssertionError(f"an event is not JSON: {self.data[:200]}") from None
        assert isinstance(value, dict), f"an event is no JSON object: {self.data[:200]}"
        return value


def events_of(body: bytes) -> list[Event]:
    """Return the events of a whole stream, as the standard has it: lines of fields, an empty line after each.

    Raises:
        AssertionError: It is not such a stream.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AssertionError(f"a stream is not UTF-8: {error.reason} at byte {error.start}") from None
    events: list[Event] = []
    data: list[str] = []
    name = ""
    for line in re.split(r"\r\n|\n|\r", text):
        if not line:
            if data:
                events.append(Event("\n".join(data), name))
            data, name = [], ""
            continue
        key, _, value = line.partition(":")
        assert key in ("", "data", "event", "id", "retry"), f"a line of a stream is no field of an event: {line[:200]}"
        value = value.removeprefix(" ")
        if key == "data":
            data.append(value)
        elif key == "event":
            name = value
    assert not data, f"the last event has no empty line after it: {' '.join(data)[:200]}"
    assert events, "a stream has no event"
    return events


def user(content: Any) -> dict[str, Any]:
    """Return a message of the user's."""
    return {"role": "user", "content": content}


def choice(answer: Mapping[str, Any], index: int = 0) -> dict[str, Any]:
    """Return a choice of an answer."""
    choices = answer.get("choices")
    assert isinstance(choices, list) and len(choices) > index, f"no choice {index} in {shown(answer)}"  # noqa: PT018
    one = choices[index]
    assert isinstance(one, dict), f"a choice is no object: {shown(answer)}"
    return one


def message(answer: Mapping[str, Any], index: int = 0) -> dict[str, Any]:
    """Return the message of a chat's choice."""
    found = choice(answer, index).get("message")
    assert isinstance(found, dict), f"a choice has no message: {shown(answer)}"
    return found


def content(answer: Mapping[str, Any], index: int = 0) -> str:
    """Return the text of a chat's choice."""
    found = message(answer, index).get("content")
    assert isinstance(found, str), f"a message has no text in 'content': {shown(answer)}"
    return found


def text(answer: Mapping[str, Any], index: int = 0) -> str:
    """Return the text of a completion's choice."""
    found = choice(answer, index).get("text")
    assert isinstance(found, str), f"a choice has no 'text': {shown(answer)}"
    return found


def usage(answer: Mapping[str, Any]) -> dict[str, int]:
    """Return how many tokens an answer has counted."""
    found = answer.get("usage")
    assert isinstance(found, dict), f"no 'usage' in {shown(answer)}"
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert isinstance(found.get(name), int), f"'usage' has no number {name!r}: {shown(found)}"
    return found


def deltas(chunks: Sequence[Mapping[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """Return the deltas of one choice of a streamed chat, in order."""
    found = []
    for chunk in chunks:
        for one in chunk.get("choices") or ():
            if one.get("index", 0) == index and isinstance(one.get("delta"), dict):
                found.append(one["delta"])
    return found


def streamed_text(chunks: Sequence[Mapping[str, Any]]) -> str:
    """Return the text that the deltas of a chat make together."""
    return "".join(delta.get("content") or "" for delta in deltas(chunks))


def finish_reasons(chunks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the finish reasons of all chunks."""
    return [one["finish_reason"] for chunk in chunks for one in chunk.get("choices") or () if one.get("finish_reason")]


def shown(value: Any) -> str:
    """Return the beginning of a value as JSON, for messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}..."
