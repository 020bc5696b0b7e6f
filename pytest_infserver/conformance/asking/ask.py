"""What the tests ask with: how one server is asked in one test, and what it has been asked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from pytest_infserver.conformance.asking.events import Event, events_of
from pytest_infserver.conformance.asking.exchange import Answer, NoAnswer, Request, Stream, opened, send
from pytest_infserver.conformance.asking.shapes import user
from pytest_infserver.conformance.asking.target import CHAT, NotAsked, NotOffered, Target

COMPLETIONS = "/v1/completions"
GREETING = "Say hello."
_SHOWN_EVENT = 400
_NO_ENDPOINT = (404, 405, 501)
_REFUSAL = re.compile(
    r"not (?:yet |currently |been )?(?:support|implement|enabl|available|allowed)|unsupported|doesn't support"
    r"|is disabled|unexpected (?:key|keyword|field)|unrecogni[sz]ed|extra (?:inputs|fields)|requires? --"
    r"|please add `?--|has no support|only supports?|must be (?:enabled|started)|cannot be used with this",
    re.IGNORECASE,
)
"""Words by which servers say that they do not offer something, rather than that a request is wrong."""


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
