"""A stand-in for an engine that streams tokens without computing anything, in a process of its own.

    python instant_server.py [--gap SECONDS] [--gap-file FILE] [--tokens-per-chunk N] [--fault KIND] [--context N]

It prints its port. Each token has its own write, so that it arrives as it does from an engine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: object) -> bytes:
    return chunked(b"data: " + json.dumps(value).encode() + b"\n\n")


def plain(status: str, value: object, *, close: bool = False) -> bytes:
    body = json.dumps(value).encode()
    end = b"Connection: close\r\n" if close else b""
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s" % (
        status.encode(),
        len(body),
        end,
        body,
    )


class Server:
    """Answers what a load generator asks."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.gap = float(Path(options.gap_file).read_text()) if options.gap_file else options.gap
        self.requests = 0
        self.bodies: list[dict] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, _, rest = head.partition(b"\r\n")
                path = line.split()[1].decode()
                lengths = [one for one in rest.lower().split(b"\r\n") if one.startswith(b"content-length:")]
                body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
                if not await self.answer(path, body, writer):
                    break
        writer.close()

    async def answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if path == "/seen":
            writer.write(plain("200 OK", self.bodies))
        elif path == "/tokenize" and not self.options.no_tokenizer:
            asked = json.loads(body)
            words = (asked.get("prompt") or asked.get("content") or "").split()
            writer.write(plain("200 OK", {"tokens": list(range(len(words))), "count": len(words)}))
        elif path.endswith("/completions"):
            return await self.complete(json.loads(body), writer, chat="chat" in path)
        else:
            writer.write(plain("200 OK" if path in ("/health", "/v1/models") else "404 Not Found", {"data": []}))
        await writer.drain()
        return True

    async def complete(self, asked: dict, writer: asyncio.StreamWriter, *, chat: bool) -> bool:
        self.requests += 1
        self.bodies.append(asked)
        options, number = self.options, self.requests
        fault = options.fault if number > options.healthy else None
        text = asked["messages"][-1]["content"] if chat else asked["prompt"]
        prompt, wanted = len(text.split()), asked.get("max_tokens", 16)
        if options.context and prompt + wanted > options.context:
            writer.write(plain("400 Bad Request", {"error": {"message": f"the context is {options.context} tokens"}}))
            return True
        if fault == "error":
            writer.write(plain("500 Internal Server Error", {"error": {"message": "out of pixie dust"}}))
            return True
        if fault == "garbage":
            writer.write(HEAD + chunked(b"\x00\xff{]nonsense\n\ndata: {not json\n\n") + b"0\r\n\r\n")
            return True
        if fault == "exit":
            os._exit(3)
        if not asked.get("stream"):
            usage = {"prompt_tokens": prompt, "completion_tokens": wanted, "total_tokens": prompt + wanted}
            choice = {"message": {"content": "x " * wanted}} if chat else {"text": "x " * wanted}
            writer.write(plain("200 OK", {"choices": [{"finish_reason": "length", **choice}], "usage": usage}))
            return True
        writer.write(HEAD)
        sent = 0
        while sent < wanted:
            count = min(options.tokens_per_chunk, wanted - sent)
            if self.gap and (sent or not options.first_at_once):
                await asyncio.sleep(self.gap * count)
            sent += count
            choice = {"delta": {"content": "x " * count}} if chat else {"text": "x " * count}
            writer.write(event({"choices": [{"index": 0, "finish_reason": None, **choice}]}))
            if fault == "close" and sent >= 3:
                await writer.drain()
                return False
            if not self.gap and sent % 16 == 0:
                # What is one write is one read at the other end.
                await writer.drain()
        while fault == "endless":
            choice = {"delta": {"content": "x"}} if chat else {"text": "x"}
            writer.write(event({"choices": [{"index": 0, "finish_reason": None, **choice}]}))
            await writer.drain()
            await asyncio.sleep(0.01)
        if fault != "no-usage":
            usage = {"prompt_tokens": prompt, "completion_tokens": sent, "total_tokens": prompt + sent}
            writer.write(event({"choices": [], "usage": usage}))
        writer.write(chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()
        return True


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--gap", type=float, default=0.0)
    parser.add_argument("--first-at-once", action="store_true", help="no gap before the first token")
    parser.add_argument("--gap-file", help="a file that says it")
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    parser.add_argument("--fault", choices=("error", "garbage", "exit", "close", "endless", "no-usage"))
    parser.add_argument("--healthy", type=int, default=0, help="so many requests go well before the fault")
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--no-tokenizer", action="store_true")
    parser.add_argument("--model", help="as an engine's; means nothing")
    server = await asyncio.start_server(
        Server(parser.parse_args()).serve, "127.0.0.1", parser.parse_args().port, backlog=2048
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def end_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.exit(asyncio.run(main()))
