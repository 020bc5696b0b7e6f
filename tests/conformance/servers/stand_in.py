"""A server in this process that does all that the conformance suite states, except for what a test says."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from http.server import ThreadingHTTPServer
from typing import Any

from .http import Http
from .model import CONTEXT, MODEL, Model, Wrong, instance, pieces

LONG_ANSWER = 100
"""Tokens of an answer that takes its time."""
LONG_SECONDS = 2.0


class StandIn(ThreadingHTTPServer):
    """The server.

    Attributes:
        wrong: Names of what it does wrong.
        missing: Beginnings of paths that it does not have.
        key: The key that it wants.
        refusals: With which status and words each chat is refused.
        slots: How many chats are answered at the same time, if it keeps slots of those that are closed.
        over: Ends all that takes its time.
    """

    daemon_threads = True

    def __init__(self, *wrong: str, missing: tuple[str, ...] = (), key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wrong = frozenset(wrong)
        self.missing = missing
        self.key = key
        self.count = itertools.count()
        self.looks = itertools.count()
        self.schema: Any = None
        self.refusals: list[tuple[int, str]] = []
        self.slots = threading.Semaphore(4)
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def server_close(self) -> None:
        self.over.set()
        super().server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that are gone."""


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[Any]:
    """Let a server serve, in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(Model, Http):
    """The endpoints."""

    server: StandIn

    def get(self) -> None:
        path = self.path
        model = {"id": MODEL, "object": "model", "created": 1, "owned_by": "us", "max_model_len": CONTEXT}
        if self.has("model fields"):
            del model["owned_by"]
        if path == "/v1/models":
            self.json({"object": "models" if self.has("no list") else "list", "data": [model]})
        elif path == f"/v1/models/{MODEL}":
            self.json({**model, "id": "another"} if self.has("another model") else model)
        elif path.startswith("/v1/models/"):
            self.error(200 if self.has("any model") else 404, "no such model")
        elif path == "/version" and self.has("version"):
            self.json({"version": "1.2.3"})
        elif path in ("/health", "/metrics"):
            if self.has(path) and next(self.server.looks):
                raise Wrong(500, "busy")
            self.json({})
        elif path.startswith("/v1/chat"):
            self.error(400 if self.has("method") else 405, "Method Not Allowed")
        else:
            self.error(200 if self.has("any path") else 404, "Not Found")

    def post(self, data: bytes) -> None:
        try:
            body = json.loads(data)
        except ValueError:
            raise Wrong(500 if self.has("bad json") else 400, "no JSON") from None
        path = self.path
        if body.get("model", MODEL) != MODEL and not self.has("any model"):
            raise Wrong(404, "no such model")
        if path == "/v1/chat/completions":
            self.chat(body)
        elif path == "/v1/completions":
            self.completion(body)
        elif path == "/v1/responses":
            self.response(body)
        elif path == "/v1/messages":
            self.message(body)
        elif path == "/v1/messages/count_tokens":
            count = self.count(self.prompt_of(body)) + self.has("other count")
            self.json({"input_tokens": count})
        elif path == "/v1/embeddings":
            self.embeddings(body)
        elif path == "/v1/rerank":
            self.rerank(body)
        elif path == "/tokenize":
            self.json({"tokens": [ord(letter) for letter in body["prompt"]]})
        elif path == "/detokenize":
            text = "".join(map(chr, body["tokens"]))
            self.json({"prompt": text.encode("ascii", "ignore").decode() if self.has("lossy") else text})
        else:
            raise Wrong(404, "Not Found")

    # Its endpoints.

    def chat(self, body: Mapping[str, Any]) -> None:
        for status, text in self.server.refusals:
            raise Wrong(status, text)
        if self.has("refuses"):
            raise Wrong(400, "no")
        if self.has("error event"):
            self.events([("", {"error": {"message": "streams are not supported"}})])
            return
        if "no_such_field" in body and self.has("unknown field"):
            raise Wrong(500, "a field that nobody knows")
        prompt = self.prompt_of(body)
        count = self.counted(prompt, body)
        if body.get("tools") and self.call(body, prompt, count):
            return
        if body.get("top_logprobs", 0) > 20 and not self.has("any top_logprobs"):
            raise Wrong(400, "top_logprobs is out of range")
        number = body.get("n", 1)
        if number < 1 and not self.has("any n"):
            raise Wrong(400, "n is out of range")
        number = max(1, number)
        if self.has("one choice"):
            number = 1
        answers = [self.tokens(prompt, body, index) for index in range(number)]
        if body.get("stream"):
            with self.slot():
                self.chat_stream(body, count, *answers[0])
                if self.has("keeps slots") or self.has("loses slots"):
                    # Though nobody wants it any more.
                    self.take_time(answers[0][0], LONG_SECONDS * (10 if self.has("loses slots") else 1))
            return
        with self.slot():
            self.take_time(answers[0][0], LONG_SECONDS)
        choices = []
        for index, (found, reason, _) in enumerate(answers):
            said = {"role": "assistant", "content": ("<think>" if self.has("think") else "") + "".join(found)}
            if not self.has("no thought"):
                said["reasoning_content"] = "hm"
            if self.has("no role"):
                del said["role"]
            one: dict[str, Any] = {"index": index, "message": said, "finish_reason": reason.partition(":")[0]}
            if body.get("logprobs"):
                one["logprobs"] = {"content": [self.logprob(token) for token in found]}
            choices.append(one)
        made = {"id": self.new_id(), "object": "chat.completion", "created": 1, "model": MODEL}
        self.json({**made, "choices": choices, "usage": self.usage(count, answers[0][2])})

    def slot(self) -> contextlib.AbstractContextManager[object]:
        limited = self.has("keeps slots") or self.has("loses slots")
        return self.server.slots if limited else contextlib.nullcontext()

    def take_time(self, found: list[str], seconds: float) -> None:
        if self.has("same time"):
            self.server.over.wait(0.2)
        elif len(found) >= LONG_ANSWER:
            self.server.over.wait(seconds)

    def logprob(self, token: str) -> dict[str, Any]:
        one = {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
        return {**one, "top_logprobs": [one] * (1 if self.has("top_logprobs") else 2)}

    def chat_stream(self, body: Mapping[str, Any], count: int, found: list[str], reason: str, answered: int) -> None:
        made = {"id": self.new_id(), "object": "chat.completion.chunk", "created": 1, "model": MODEL}

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            if self.has("ids"):
                made["id"] = self.new_id()
            return {**made, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        events = [chunk({"role": "assistant", "content": ""})]
        thought = chunk({"reasoning_content": "hm"})
        texts = found[1:] if self.has("lost") else found
        texts = [text if not self.has("halves") else f"{text}\ufffd" for text in texts]
        roles = {"role": "assistant"} if self.has("roles") else {}
        answer = [chunk({**roles, "content": text}) for text in texts]
        events += [*answer, thought] if self.has("late thought") else [thought, *answer]
        finish = [chunk({}, reason.partition(":")[0])]
        events += finish * (2 if self.has("two ends") else 1)
        asked = (body.get("stream_options") or {}).get("include_usage")
        if asked or self.has("always usage"):
            used = {**self.usage(count + self.has("other usage"), answered)}
            events.append({**made, "choices": finish[0]["choices"] if self.has("usage choices") else [], "usage": used})
        self.events([("", event) for event in events])

    def call(self, body: Mapping[str, Any], prompt: str, count: int) -> bool:
        """Answer with a call, if there is to be one."""
        wanted = body.get("tool_choice", "auto")
        known = [tool["function"]["name"] for tool in body["tools"]]
        if isinstance(wanted, dict) and wanted["function"]["name"] not in known and not self.has("any tool"):
            raise Wrong(400, "no such tool")
        if (wanted == "none" and not self.has("always calls")) or self.has("no call"):
            return False
        tool = body["tools"][0]["function"]
        arguments = "{}" if self.has("no arguments") else json.dumps(instance(tool["parameters"]))
        function = {"name": "another" if self.has("another tool") else tool["name"], "arguments": arguments}
        call = {"id": "call-1", "type": "function", "function": function}
        calls = [call] * (2 if self.has("two calls") else 1)
        if "both" in prompt:
            calls = [{**call, "id": "call-1" if self.has("one call id") else f"call-{index}"} for index in range(2)]
        made = {"id": self.new_id(), "created": 1, "model": MODEL}
        reason = "stop" if self.has("call reason") else "tool_calls"
        if not body.get("stream"):
            said = {"role": "assistant", "content": None, "tool_calls": calls}
            choices = [{"index": 0, "message": said, "finish_reason": reason}]
            self.json({**made, "object": "chat.completion", "choices": choices, "usage": self.usage(count, 4)})
            return True
        first = {"index": 0, **call, "function": {**function, "arguments": ""}}
        deltas = [{"role": "assistant", "tool_calls": [first]}]
        for piece in pieces(arguments):
            again = {"name": tool["name"]} if self.has("name again") else {}
            deltas.append({"tool_calls": [{"index": 0, "function": {**again, "arguments": piece}}]})
        chunks = [{**made, "choices": [{"index": 0, "delta": one, "finish_reason": None}]} for one in deltas]
        chunks.append({**made, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        self.events([("", chunk) for chunk in chunks])
        return True

    def completion(self, body: Mapping[str, Any]) -> None:
        prompt = body["prompt"]
        prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        texts = [one if isinstance(one, str) else " ".join(map(str, one)) for one in prompts]
        answers = [self.tokens(text, body) for text in texts]
        made = {"id": self.new_id(), "object": "text_completion", "created": 1, "model": MODEL}
        if self.has("completion object"):
            made["object"] = "chat.completion"
        choices: list[dict[str, Any]] = []
        for index, (text, (found, reason, _)) in enumerate(zip(texts, answers, strict=True)):
            said = (text if body.get("echo") and not self.has("no echo") else "") + "".join(found)
            one: dict[str, Any] = {"index": index, "text": said, "finish_reason": reason.partition(":")[0]}
            if body.get("logprobs"):
                many = len(found)
                one["logprobs"] = {"tokens": found, "token_logprobs": [-1] * many, "top_logprobs": [{}] * many}
                one["logprobs"]["text_offset"] = [0] * (many - self.has("offsets"))
            choices.append(one)
        if self.has("order"):
            choices = [{**one, "index": len(choices) - 1 - one["index"]} for one in choices]
        if body.get("stream"):
            found, reason, _ = answers[0]
            said = found[:-1] if self.has("lost") else found
            chunks = [{**made, "choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in said]
            self.events([("", chunk) for chunk in chunks])
            return
        first = prompts[0]
        count = len(first) if isinstance(first, list) else self.count(texts[0])
        count += 5 if self.has("text of tokens") else 0
        self.json({**made, "choices": choices, "usage": self.usage(count, answers[0][2])})

    def response(self, body: Mapping[str, Any]) -> None:
        if self.has("refuses"):
            raise Wrong(400, "no")
        if body.get("previous_response_id") and not self.has("any previous"):
            raise Wrong(404, "no such response")
        said = body["input"]
        prompt = said if isinstance(said, str) else said[0]["content"][0]["text"]
        found, reason, count = self.tokens(prompt, body)
        part = {"type": "text" if self.has("parts of text") else "output_text", "text": "".join(found)}
        item = {"type": "message", "role": "assistant", "content": [part]}
        cut = reason == "length" and not self.has("complete")
        answer = {
            "id": self.new_id(),
            "object": "response",
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [] if self.has("no output") else [item],
            "usage": {"input_tokens": 3, "output_tokens": count, "total_tokens": 3 + count + self.has("total")},
        }
        if not body.get("stream"):
            self.json(answer)
            return
        kinds = [] if self.has("no created") else [{"type": "response.created", "response": answer}]
        texts = found[1:] if self.has("lost") else found
        kinds += [{"type": "response.output_text.delta", "delta": text} for text in texts]
        kinds.append({"type": f"response.{answer['status']}", "response": answer})
        step = 2 if self.has("gaps") else 1
        events = [{**one, "sequence_number": number * step} for number, one in enumerate(kinds)]
        self.events([(event["type"], event) for event in events], done=False)

    def message(self, body: Mapping[str, Any]) -> None:
        prompt = self.prompt_of(body)
        found, reason, count = self.tokens(prompt, body)
        stopped = reason.partition(":")[2]
        why = {"length": "max_tokens", "stop": "end_turn"}.get(reason, "stop_sequence")
        if self.has("openai reason"):
            why = reason.partition(":")[0]
        used = {"input_tokens": self.count(prompt), "output_tokens": count}
        if self.has("no input tokens"):
            used["input_tokens"] = 0
        answer = {
            "id": self.new_id(),
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "".join(found)}],
            "stop_reason": why,
            "stop_sequence": stopped or None,
            "usage": used,
        }
        if not body.get("stream"):
            self.json(answer)
            return
        events: list[dict[str, Any]] = [{"type": "message_start", "message": answer}]
        events += [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}} for text in found]
        events.append({"type": "message_delta", "delta": {"stop_reason": why}})
        if not self.has("no stop event"):
            events.append({"type": "message_stop"})
        self.events([(event["type"], event) for event in events], done=False)

    def embeddings(self, body: Mapping[str, Any]) -> None:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        size = 8 if self.has("any dimensions") else body.get("dimensions", 8)
        data = []
        for index, text in enumerate(texts):
            digest = hashlib.sha256(text.encode()).digest()
            numbers: Any = [byte / 256 for byte in digest[:size]]
            if body.get("encoding_format") == "base64":
                order = ">" if self.has("big-endian") else "<"
                numbers = base64.b64encode(struct.pack(f"{order}{size}f", *numbers)).decode()
            data.append({"object": "embedding", "index": index, "embedding": numbers})
        if self.has("reversed"):
            for one, other in zip(list(data), [dict(item) for item in reversed(data)], strict=True):
                one["embedding"] = other["embedding"]
        if self.has("no index"):
            for one in data:
                del one["index"]
        used = {"prompt_tokens": 1, "total_tokens": 1 + self.has("total")}
        self.json({"object": "list", "data": data, "usage": used})

    def rerank(self, body: Mapping[str, Any]) -> None:
        scores = [len(set(body["query"].split()) & set(text.split())) / 10 for text in body["documents"]]
        results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
        results.sort(key=lambda one: one["relevance_score"], reverse=not self.has("worst first"))
        if self.has("no score"):
            for one in results:
                one["relevance_score"] = None
        self.json({"results": results if self.has("all results") else results[: body.get("top_n", 9)]})
