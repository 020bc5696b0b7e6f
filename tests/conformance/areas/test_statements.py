"""Each statement passes on a server that keeps it, and fails on one that does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import pytest_infserver.conformance as suite
from pytest_infserver.conformance.asking.target import NotOffered, Unclear
from pytest_infserver.conformance.report.grid import AREAS
from pytest_infserver.conformance.verdicts.verdict import statement_of

from ..conftest import ask_all, ask_of, statements
from ..servers.stand_in import StandIn

Start = Callable[..., StandIn]
STATEMENTS = statements()

VIOLATIONS = {
    "models.list": [
        ("no list", "'object' is not 'list'"),
    ],
    "models.fields": [("model fields", "'owned_by' is no text")],
    "models.retrieve": [("another model", "'id' is not 'stand-in'")],
    "models.retrieve_unknown": [("any model", "expected 404, not 200")],
    "completions.answer": [("completion object", "'object' is not 'text_completion'")],
    "completions.usage": [("total", "the total is not the sum"), ("no limit", "not 1 to 4 tokens")],
    "completions.several_prompts": [("order", "not the texts")],
    "completions.tokens_as_prompt": [("text of tokens", "three tokens were counted as 8")],
    "completions.echo": [("no echo", "the prompt is not in the text")],
    "chat.answer": [("no role", "the role is not 'assistant'")],
    "chat.usage": [("total", "the total is not the sum"), ("no limit", "not 1 to 4 tokens")],
    "chat.system": [("no system", "with and without the system message")],
    "chat.several_turns": [("last only", "three messages are no longer than one")],
    "chat.several_parts": [("first part", "three are one of 5")],
    "chat.part_means_the_text": [("no parts", "the same text as a part 3")],
    "streaming.framing": [("stream type", "a stream has the content type 'text/plain'")],
    "streaming.done": [("no done", "the last event is")],
    "streaming.one_role": [("roles", "the role is said 9 times")],
    "streaming.finish_reason": [("two ends", "the finish reasons are")],
    "streaming.same_text": [("lost", "streamed '")],
    "streaming.completion": [("lost", "streamed '"), ("no done", "the last event is")],
    "streaming.usage_chunk": [("usage choices", "is no empty list"), ("total", "the total is not the sum")],
    "streaming.same_usage": [("other usage", "prompt_tokens: streamed")],
    "streaming.no_usage_unless_asked": [("always usage", "a chunk has a 'usage'")],
    "streaming.one_id": [("ids", "'id' has the values")],
    "streaming.letters_are_whole": [("halves", "streamed '")],
    "determinism.alone": [("random", "first '.*', then '")],
    "determinism.in_a_batch": [("random", "beside others '")],
    "determinism.seed": [("no seed", "first '.*', then '")],
    "determinism.other_seeds": [("one seed", "6 seeds have one answer")],
    "sampling.negative_temperature": [("any temperature", "not 200")],
    "sampling.too_large_top_p": [("any top_p", "not 200")],
    "sampling.no_choices": [("any n", "not 200")],
    "sampling.too_large_penalty": [("any frequency_penalty", "not 200")],
    "sampling.too_many_top_logprobs": [("any top_logprobs", "not 200")],
    "sampling.n": [("one choice", r"the choices are numbered \[0\]")],
    "sampling.logprobs": [("top_logprobs", "not 2 'top_logprobs'")],
    "sampling.logprobs_of_a_completion": [("offsets", "not as many of each")],
    "sampling.logit_bias": [("no bias", "both make '")],
    "limits.max_tokens": [("no limit", "50 tokens for max_tokens 5")],
    "limits.max_completion_tokens": [("max_completion_tokens", "tokens for max_completion_tokens 5")],
    "limits.one_token": [("no limit", "20 tokens for max_tokens 1")],
    "limits.stop": [("stop stays", "stop '"), ("no stop", "stop '")],
    "limits.stop_across_tokens": [("stop stays", "stop '")],
    "limits.stop_as_text": [("no stop", "stop '")],
    "limits.stop_in_a_stream": [("stop stays", "streams '")],
    "limits.no_stop": [("random", "with a stop of null")],
    "structured.json_object": [("no schema", "the answer is not JSON")],
    "structured.enum": [("no schema", "the answer is not JSON"), ("empty object", "the value has no answer")],
    "structured.nested": [("empty object", "the value has no person")],
    "structured.numbers": [("empty object", "the value has no count")],
    "structured.array": [("empty object", "the value has no colours")],
    "structured.unicode": [("empty object", "the value has no größe")],
    "structured.streamed": [("empty object", "the value has no answer")],
    "structured.wrong_schema": [("no schema", "not 200")],
    "tools.forced": [("another tool", "a call of another function"), ("no call", "0 calls")],
    "tools.required": [("another tool", "a call of another function")],
    "tools.auto": [("call reason", "1 calls have the finish reason 'stop'")],
    "tools.none": [("always calls", "a tool was called")],
    "tools.not_parallel": [("two calls", "2 calls")],
    "tools.parallel": [("one call id", "the ids of 2 calls are"), ("no arguments", "'arguments' has no city")],
    "tools.streamed": [("name again", "the name is said as"), ("no arguments", "'arguments' has no city")],
    "tools.unknown": [("any tool", "not 200")],
    "reasoning.apart_from_the_answer": [("think", "a thought is in the content")],
    "reasoning.streamed": [("late thought", "after the beginning of the answer")],
    "embeddings.floats": [("no index", "'index' is not 0")],
    "embeddings.base64": [("big-endian", "are not")],
    "embeddings.order": [("reversed", "the embedding of text 0 is another one alone")],
    "embeddings.dimensions": [("any dimensions", "an embedding of 4 dimensions has 8")],
    "embeddings.usage": [("total", "the total is another number")],
    "rerank.all": [("no score", "no score")],
    "rerank.best_first": [("worst first", "the scores are")],
    "rerank.top_n": [("all results", "3 results for top_n 1")],
    "tokenize.round_trip": [("lossy", "became")],
    "responses.answer": [("no output", "no message in 'output'"), ("parts of text", "unknown parts")],
    "responses.cut_off": [("complete", "has the status 'completed'")],
    "responses.usage": [("total", "the total is not the sum")],
    "responses.streamed": [("no created", "the first event is 'response.output_text.delta'")],
    "responses.streamed_text": [("lost", "the deltas make")],
    "responses.order_of_events": [("gaps", "the events are numbered")],
    "responses.unknown_previous": [("any previous", "not 200")],
    "messages.answer": [("openai reason", "'stop_reason' is 'length'")],
    "messages.usage": [("no input tokens", "no 'input_tokens'"), ("no limit", "not 1 to 8")],
    "messages.system": [("no system", "with and without 'system'")],
    "messages.stop_sequence": [("stop stays", " has '"), ("openai reason", "'stop_reason' is 'stop'")],
    "messages.streamed": [("no stop event", "the last events are")],
    "messages.count_tokens": [("other count", "and a message counts")],
    "messages.error": [("anthropic error", "'type' is not 'error'")],
    "errors.unknown_model": [("any model", "expected 404, not 200")],
    "errors.bad_json": [("bad json", "expected 400, not 500"), ("detail", "no object 'error'")],
    "errors.wrong_type": [("any type", "expected 400 or 422, not 200"), ("detail", "no object 'error'")],
    "errors.missing_messages": [("any type", "expected 400 or 422, not 200")],
    "errors.no_messages": [("any type", "expected 400 or 422, not 200")],
    "errors.unknown_role": [("any role", "expected 400 or 422, not 200")],
    "errors.shape": [("error shape", "'error' has no param")],
    "errors.too_long": [("no context", "expected 400, not 200")],
    "errors.wrong_method": [("method", "expected 405, not 400")],
    "errors.unknown_path": [("any path", "expected 404, not 200")],
    "errors.huge_body": [("huge", "not 500")],
    "http.content_type": [("content type", "the content type is 'text/html'")],
    "http.keep_alive": [("closes", "the server closes the connection")],
    "http.preflight": [("origin", "another origin is allowed")],
    "http.origin": [("origin", "another origin is allowed")],
    "http.chunked_upload": [("chunked", "a right request was answered with 411")],
    "concurrency.no_mixing": [("mixed", "tokens of the prompts alone"), ("one id", "have 1 ids")],
    "concurrency.streams": [("one id", "6 streams have 1 ids"), ("ids", "one stream has the ids")],
    "concurrency.cancelling_under_load": [("mixed", "tokens of the prompts alone")],
    "concurrency.canaries": [("first schema", "the answer to the request for canary-1 has canary-0")],
    "concurrency.health_while_busy": [("/health", "while it generates: 500")],
    "concurrency.metrics_while_busy": [("/metrics", "while it generates: 500")],
    "http.wrong_content_type": [("text/plain", "expected 200 or 4xx, not 500")],
    "http.unknown_field": [("unknown field", "expected 200 or 4xx, not 500")],
}
"""What a server does wrong, by statement, and what the statement says to that."""
TAKEN = (
    *("chat.system_only", "chat.developer", "chat.name", "chat.parts", "chat.empty_message", "chat.unicode"),
    *("sampling.temperature", "sampling.penalties", "tools.result", "tools.several_results"),
    *("responses.messages_as_input", "http.continue", "http.charset", "chat.long_message"),
)
"""Those that ask that something is taken."""
SHOWN_BELOW = ("errors.missing_key", "streaming.cancelling_frees_the_slot", "http.head")
WRONG = [
    pytest.param(key, wrong, said, id=f"{key}-{wrong}") for key, cases in VIOLATIONS.items() for wrong, said in cases
]
WRONG += [pytest.param(key, "refuses", "a right request was answered with 400", id=f"{key}-refuses") for key in TAKEN]


@pytest.mark.parametrize("key", [key for key in STATEMENTS if key != "errors.missing_key"])
def test_passes_on_a_server_that_keeps_it(stand_in: Start, key: str) -> None:
    ask_all(STATEMENTS[key], ask_of(stand_in().url))


@pytest.mark.parametrize(("key", "wrong", "said"), WRONG)
def test_fails_on_a_server_that_breaks_it(stand_in: Start, key: str, wrong: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        ask_all(STATEMENTS[key], ask_of(stand_in(wrong).url))


def test_every_area_has_statements_that_were_seen_to_fail() -> None:
    assert {key.partition(".")[0] for key in STATEMENTS} == set(AREAS)
    assert {param.values[0].partition(".")[0] for param in WRONG} == set(AREAS)
    assert set(STATEMENTS) == {param.values[0] for param in WRONG} | set(SHOWN_BELOW)


@pytest.mark.parametrize("key", list(STATEMENTS))
def test_has_a_statement_and_its_source(key: str) -> None:
    statement, source = statement_of(STATEMENTS[key])
    assert statement.endswith(".")
    assert len(source) > 10


@pytest.mark.parametrize("area", ["embeddings", "rerank", "tokenize", "responses", "messages"])
def test_what_a_server_has_not_is_not_offered(stand_in: Start, area: str) -> None:
    url = stand_in(missing=("/v1/embeddings", "/v1/rerank", "/tokenize", "/v1/responses", "/v1/messages")).url
    for key in (key for key in STATEMENTS if key.startswith(f"{area}.")):
        with pytest.raises(NotOffered, match="was answered with 404"):
            ask_all(STATEMENTS[key], ask_of(url))


def test_a_chat_that_is_not_there_is_no_error_of_a_wrong_request(stand_in: Start) -> None:
    for key in ("errors.unknown_model", "errors.bad_json", "sampling.no_choices"):
        with pytest.raises(NotOffered, match="POST /v1/chat/completions was answered with 404"):
            ask_all(STATEMENTS[key], ask_of(stand_in(missing=("/v1/chat",)).url))


def test_a_key_that_is_missing(stand_in: Start) -> None:
    right, wrong = (stand_in(*how, key="secret-of-a-test").url for how in ((), ("no key",)))
    for url, fails in ((right, False), (wrong, True)):
        ask = ask_of(url)
        ask.target.address = dataclasses.replace(ask.target.address, api_key="secret-of-a-test")
        if not fails:
            STATEMENTS["errors.missing_key"](ask)
            assert "secret-of-a-test" not in ask.asked[0].curl(ask.target.address)
            continue
        with pytest.raises(AssertionError, match="expected 401, not 200"):
            STATEMENTS["errors.missing_key"](ask)
    with pytest.raises(NotOffered, match="the server has no key"):
        STATEMENTS["errors.missing_key"](ask_of(stand_in().url))


def test_slots_that_are_freed_late(stand_in: Start) -> None:
    """Each request is answered well within its limit, and yet the streams have kept their slots to their end."""
    with pytest.raises(AssertionError, match=r"or the answer after them, had to wait for \d"):
        STATEMENTS["streaming.cancelling_frees_the_slot"](ask_of(stand_in("keeps slots").url))


def test_slots_that_are_not_freed(stand_in: Start) -> None:
    with pytest.raises(AssertionError, match=r"after streams that were closed: .* within 4 s"):
        STATEMENTS["streaming.cancelling_frees_the_slot"](ask_of(stand_in("loses slots").url, seconds=4))


@pytest.mark.parametrize(("wrong", "said"), [("short story", "came to its end"), ("same time", "too little to tell")])
def test_slots_of_which_nothing_can_be_told(stand_in: Start, wrong: str, said: str) -> None:
    with pytest.raises(Unclear, match=said):
        STATEMENTS["streaming.cancelling_frees_the_slot"](ask_of(stand_in(wrong).url))


def test_the_suite_is_small() -> None:
    folder = Path(suite.__file__).parent
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) < 155_000


def test_json_that_was_cut_off_tells_nothing(stand_in: Start) -> None:
    """What does not even begin as JSON does: see the violations above."""
    with pytest.raises(Unclear, match="the model did not come to an end in 128 tokens"):
        STATEMENTS["structured.enum"](ask_of(stand_in("cut off").url))


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (501, "nothing here"),
        (405, "Method Not Allowed"),
        (400, "This server does not support embeddings. Start it with --embeddings"),
        (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        (400, "Please add `--is-embedding` when launching the server or try another model."),
        (422, "Unexpected keys in the request: {'n'}"),
        (500, "this is not implemented"),
    ],
)
def test_words_by_which_servers_say_that_they_do_not_offer_something(stand_in: Start, status: int, text: str) -> None:
    server = stand_in()
    server.refusals.append((status, text))
    with pytest.raises(NotOffered, match=str(status)):
        STATEMENTS["chat.answer"](ask_of(server.url))


@pytest.mark.parametrize("text", ["temperature must be at most 1", "no", "'messages' is required"])
def test_other_words_are_a_refusal_of_what_was_right(stand_in: Start, text: str) -> None:
    server = stand_in()
    server.refusals.append((400, text))
    with pytest.raises(AssertionError, match="a right request was answered with 400"):
        STATEMENTS["chat.answer"](ask_of(server.url))


def test_a_stream_may_begin_with_the_words_that_it_is_not_offered(stand_in: Start) -> None:
    with pytest.raises(NotOffered, match="streams are not supported"):
        STATEMENTS["streaming.one_role"](ask_of(stand_in("error event").url))
