"""`upstream.c` in Python, for machines without a C compiler: the same answers for more CPU.

Started by `upstream.py` as `upstream_fallback.py PORT [EVENT_GAP_US]`. Needs httptools; uses uvloop when it is there.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import cast

import httptools

EVENTS = 50
CONTENT = 940

_SENTENCE = "The quick brown fox jumps over the lazy dog while the model writes on. "
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_USAGE = {"prompt_tokens": 120, "completion_tokens": 200, "total_tokens": 320}


def _json(kind: str, choices: list[object], **more: object) -> bytes:
    head = {"id": "chatcmpl-bench", "object": kind, "created": 1760000000, "model": "bench-model"}
    return json.dumps(head | {"choices": choices} | more, separators=(",", ":")).encode()


def _plain() -> bytes:
    text = (_SENTENCE * (CONTENT // len(_SENTENCE) + 1))[:CONTENT]
    message = {"role": "assistant", "content": text}
    body = _json("chat.completion", [{"index": 0, "message": message, "finish_reason": "stop"}], usage=_USAGE)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _events() -> list[bytes]:
    kind = "chat.completion.chunk"
    deltas = [{"index": 0, "delta": {"content": f" word{n:02d}"}, "finish_reason": None} for n in range(EVENTS)]
    payloads = [_json(kind, [delta], system_fingerprint="fp_bench") for delta in deltas]
    payloads.append(_json(kind, [{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    payloads += [_json(kind, [], usage=_USAGE), b"[DONE]"]
    texts = [b"data: " + payload + b"\n\n" for payload in payloads]
    chunks = [b"%x\r\n%s\r\n" % (len(text), text) for text in texts]
    chunks[-1] += b"0\r\n\r\n"
    return chunks


_PLAIN = _plain()
_CHUNKS = _events()
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Answering(asyncio.Protocol):
    """One connection; httptools frames its requests."""

    def __init__(self, gap_s: float) -> None:
        self.gap_s = gap_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.parser = httptools.HttpRequestParser(self)
        self.body = bytearray()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body.clear()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if _STREAM.search(self.body):
            self.transport.write(_STREAM_HEAD)
            self.deal(0)
        else:
            self.transport.write(_PLAIN)

    def deal(self, event: int) -> None:
        """Writes one event and leaves the next to a later turn of the loop."""
        if event < len(_CHUNKS) and not self.transport.is_closing():
            self.transport.write(_CHUNKS[event])
            asyncio.get_running_loop().call_later(self.gap_s, self.deal, event + 1)


async def serve(port: int, gap_us: int) -> None:
    """Listens on the loopback port until the process is ended."""
    server = await asyncio.get_running_loop().create_server(lambda: Answering(gap_us / 1e6), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Serves on uvloop where it is installed."""
    serving = serve(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


if __name__ == "__main__":
    main()
