"""What the attacks share: a provider that writes its own invoice, and an address that nobody may ever reach."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from support import wire
from support.busy import LIMITS, Patience
from support.served import Served
from support.upstream import (
    STREAM_END,
    STREAM_HEAD,
    Asked,
    Script,
    Wire,
    chunk,
    completion,
    delta,
    event,
    http,
    stream_events,
)

PROVIDER_KEY = "sk-provider-0123456789-very-secret"
KEY = "client-key-abcdefghij-very-secret"
OTHER_KEY = "client-key-klmnopqrst-very-secret"
ENVIRON = {"PROVIDER_KEY": PROVIDER_KEY, "CLIENT_KEY": KEY, "OTHER_KEY": OTHER_KEY}
WITH_KEY = 'key = "env:PROVIDER_KEY"\n'
PRIVATE = ("http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:1/", "http://[::1]:1/", "http://10.0.0.1/")
INPUT_NANO, OUTPUT_NANO = 1_000, 2_000
"""Per token, at the price of `support.projects.PRICES`."""

PATIENCE: WeakKeyDictionary[Served, Patience] = WeakKeyDictionary()
"""Of who asks each gateway."""


def body(text: Any = "hello", name: Any = "chat", **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": name, "messages": [{"role": "user", "content": text}], **more}


def ask(
    gateway: Served, said: Any = None, *, key: str | None = KEY, wait_s: float = wire.WAIT_S, **more: Any
) -> wire.Answered:
    """The answer to one request on a connection of its own; sent again where the store of limits had no time, though
    not often."""
    raw = wire.request(body() if said is None else said, key=key, **more)
    patience = PATIENCE.setdefault(gateway, Patience(LIMITS))
    return patience.answer(lambda: wire.one(gateway.port, raw, wait_s=wait_s))


def text_of(answer: wire.Answered) -> str:
    """The content of a whole answer."""
    assert answer.status == 200, answer
    return str(answer.json["choices"][0]["message"]["content"])


def without_body(raw: bytes) -> bytes:
    """The head of a request, its blank line included."""
    return raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def chunked(said: Any, *, key: str | None = KEY, trailers: bytes = b"", headers: str = "") -> bytes:
    """A chunked chat request."""
    head = wire.request(said, key=key, length=False, headers=headers + "transfer-encoding: chunked\r\n")
    return without_body(head) + chunk(json.dumps(said).encode()) + b"0\r\n" + trailers + b"\r\n"


def echo(asked: Asked, to: Wire) -> None:
    """A provider that answers with what it was asked."""
    to.send(http(completion("you said " + asked.json["messages"][-1]["content"])))


def then_end(said: bytes, *, reset: bool = False) -> Script:
    """A provider that says this and ends the connection."""

    def script(_asked: Asked, to: Wire) -> None:
        to.send(said)
        if reset:
            to.reset()
        else:
            to.close()

    return script


@dataclass
class Trap:
    """An address inside; `with Trap() as trap:` notes every connection that is made to it."""

    port: int = 0
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Trap:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                connection.close()


@dataclass
class Till:
    """A provider that counts what it charges: 11 tokens a prompt, and as many a choice as asked for, at most 7."""

    cost_nano_usd: int = 0
    answered: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        self.cost_nano_usd = self.answered = 0

    def __call__(self, asked: Asked, to: Wire) -> None:
        said = asked.json
        choices = said.get("n") or 1
        output = choices * min(7, said.get("max_tokens", said.get("max_completion_tokens", 7)))
        with self._lock:
            self.cost_nano_usd += 11 * INPUT_NANO + output * OUTPUT_NANO
            self.answered += 1
        usage = {"prompt_tokens": 11, "completion_tokens": output, "total_tokens": 11 + output}
        if said.get("stream"):
            to.send(STREAM_HEAD + b"".join(chunk(one) for one in stream_events(usage=usage)) + STREAM_END)
        else:
            to.send(http(completion("Hello.", usage=usage)))


def tool_call(finish: str = "tool_calls") -> bytes:
    """An answer that calls a tool."""
    call = {"id": "c1", "type": "function", "function": {"name": "pay", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return completion(choices=[{"index": 0, "message": message, "finish_reason": finish}])


def endless(events: int = 400) -> Script:
    """A stream that goes on until the gateway hangs up."""

    def script(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD)
        for _ in range(events):
            to.send(chunk(event(delta(content="word "))))
            if not to.open or to.left(0.01):
                return

    return script
