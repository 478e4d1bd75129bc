"""A raw HTTP upstream whose every byte a test writes.

`upstream.on("/path", script)` says what happens to requests below a path; a script gets the request and the wire. It
records what was asked. It is no server that behaves: it sends what the script sends.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    head: bytes
    body: bytes
    connection: int
    """Number of the connection that brought it, from 0."""

    @property
    def path(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """The connection, for a script to write on."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.open = True

    def send(self, *parts: bytes) -> None:
        """Each part in a write of its own; a gateway that hung up is no error."""
        with contextlib.suppress(OSError):
            for part in parts:
                self.socket.sendall(part)
            return
        self.open = False

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def left(self, within_s: float) -> bool:
        """Whether the gateway closes the connection within so many seconds."""
        self.socket.settimeout(within_s)
        try:
            return self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True
        finally:
            self.socket.settimeout(None)

    def close(self) -> None:
        """An orderly end."""
        self.open = False
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """An RST."""
        self.open = False
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Script = Callable[[Asked, Wire], None]


@dataclass
class Upstream:
    """`with Upstream() as upstream:` listens on a free loopback port."""

    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    _scripts: dict[str, Script] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on(self, path: str, script: Script | bytes) -> None:
        """What happens to requests below `path` from now on; bytes are sent as they are."""
        if isinstance(script, bytes):
            content = script
            self._scripts[path] = lambda _asked, wire: wire.send(content)
        else:
            self._scripts[path] = script

    def forget(self) -> None:
        """Nothing has been asked yet."""
        with self._lock:
            self.asked.clear()

    def below(self, path: str) -> list[Asked]:
        """What was asked below `path`."""
        with self._lock:
            return [one for one in self.asked if one.path.startswith(path)]

    def __enter__(self) -> Upstream:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number, self.connections = self.connections, self.connections + 1
            threading.Thread(target=self._carry, args=(connection, number), daemon=True).start()

    def _carry(self, connection: socket.socket, number: int) -> None:
        wire = Wire(connection)
        kept = b""
        with contextlib.suppress(OSError), connection:
            while wire.open:
                while HEAD_END not in kept:
                    part = connection.recv(65_536)
                    if not part:
                        return
                    kept += part
                head, _, kept = kept.partition(HEAD_END)
                length = int(Asked(head, b"", number).headers["content-length"])
                while len(kept) < length:
                    part = connection.recv(1_048_576)
                    if not part:
                        return
                    kept += part
                one = Asked(head, kept[:length], number)
                kept = kept[length:]
                # Before anybody can see that it was asked, and change what happens from then on.
                matching = [path for path in self._scripts if one.path.startswith(path)]
                script = self._scripts[max(matching, key=len)]
                with self._lock:
                    self.asked.append(one)
                script(one, wire)


# What a provider would say.


def http(
    body: bytes,
    *,
    status: str = "200 OK",
    content_type: str = "application/json",
    headers: str = "",
    framing: str = "length",
) -> bytes:
    """A whole answer. framing: `length`, `chunked`, or `close` (the body ends with the connection)."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\n{headers}"
    if framing == "length":
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    if framing == "chunked":
        return f"{head}transfer-encoding: chunked\r\n\r\n".encode() + chunk(body) + b"0\r\n\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def completion(text: str = "Hello.", usage: Any = USAGE, **more: Any) -> bytes:
    """A `chat.completion`; usage: `...` leaves it out."""
    message = {"role": "assistant", "content": text, "refusal": None}
    body = {
        "id": "chatcmpl-raw",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "raw-model",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        **({} if usage is ... else {"usage": usage}),
        **more,
    }
    return json.dumps(body).encode()


def event(value: Mapping[str, Any] | bytes, name: str = "") -> bytes:
    """One server-sent event."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


def delta(**values: Any) -> dict[str, Any]:
    """A `chat.completion.chunk` with one choice."""
    finish = values.pop("finish", None)
    return {
        "id": "chatcmpl-raw",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "raw-model",
        "choices": [{"index": 0, "delta": values, "logprobs": None, "finish_reason": finish}],
    }


def stream_events(*words: str, usage: Any = USAGE) -> list[bytes]:
    """The events of a whole OpenAI stream; usage: `...` leaves its event out."""
    events = [event(delta(role="assistant", content=""))]
    events += [event(delta(content=word)) for word in words or ("Hel", "lo.")]
    events.append(event(delta(finish="stop")))
    if usage is not ...:
        events.append(event({**delta(), "choices": [], "usage": usage}))
    return [*events, event(b"[DONE]")]


def stream(events: list[bytes]) -> bytes:
    """A whole chunked answer of these events."""
    return STREAM_HEAD + b"".join(chunk(one) for one in events) + STREAM_END


ANTHROPIC_USAGE = {
    "input_tokens": 11,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 7,
}


def anthropic_message(text: str = "Hello.", usage: Any = ANTHROPIC_USAGE, **more: Any) -> bytes:
    """A message of the Anthropic dialect."""
    body = {
        "id": "msg_raw",
        "type": "message",
        "role": "assistant",
        "model": "claude-raw",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
        **more,
    }
    return json.dumps(body).encode()


def anthropic_events(*words: str, usage: Any = ANTHROPIC_USAGE, output_tokens: int = 7) -> list[bytes]:
    """The events of a whole Anthropic stream."""
    message = {"id": "msg_raw", "type": "message", "role": "assistant", "model": "claude-raw", "content": []}
    started = {**message, "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1}}
    texts = [{"type": "text_delta", "text": word} for word in words or ("Hel", "lo.")]
    said: list[dict[str, Any]] = [
        {"type": "message_start", "message": started},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": text} for text in texts),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": output_tokens},
        },
        {"type": "message_stop"},
    ]
    return [event(one, one["type"]) for one in said]
