"""The requests every target gets, and the check that its answer is the upstream's.

A Shape is the same for all targets but for the model's name. Called by `run.py`, `soak.py` and `startup.py`.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

STREAM_EVENTS = 53
"""Events of one upstream stream: 50 content deltas, finish, usage, `[DONE]` (see `upstream.c`)."""

_SENTENCE = "Summarise the customer's message and say which team should answer it, in two sentences. "


class WrongAnswer(Exception):
    """The target answered, but not with what the upstream said."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One kind of request."""

    name: str
    """As in `--shapes`."""
    told: str
    """What it is, for the reader of a table."""
    request_bytes: int
    """Size of the request's body."""
    stream: bool = False
    """Whether the answer is a stream of `STREAM_EVENTS` events."""
    messages: int = 2
    """Messages the body is divided into."""

    @property
    def events(self) -> int:
        """What the CPU of one request is divided by in the table."""
        return STREAM_EVENTS if self.stream else 1

    def body(self, model: str) -> bytes:
        """The request's JSON, exactly `request_bytes` long."""
        request: dict[str, object] = {"model": model, "temperature": 0.2, "max_tokens": 256}
        if self.stream:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        roles = ["system", *("user" if turn % 2 else "assistant" for turn in range(1, self.messages))]
        bare = len(json.dumps(request | {"messages": [{"role": role, "content": ""} for role in roles]}))
        text = self.request_bytes - bare
        assert text >= self.messages, f"{self.name}: {self.request_bytes} B is too little for its own frame"
        sizes = [text // self.messages + (place < text % self.messages) for place in range(self.messages)]
        contents = [(_SENTENCE * (size // len(_SENTENCE) + 1))[:size] for size in sizes]
        request["messages"] = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        return json.dumps(request).encode()


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="plain", told="0.6 KB request, 1.2 KB answer", request_bytes=600),
        Shape(name="stream", told=f"0.6 KB request, stream of {STREAM_EVENTS} events", request_bytes=640, stream=True),
        Shape(name="large", told="24 KB request (12 messages), 1.2 KB answer", request_bytes=24_000, messages=12),
    )
}


def ask(url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float = 30) -> bytes:
    """The body of one answer.

    Raises: WrongAnswer for any status but 200; OSError and http.client.HTTPException when there is no answer.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("POST", parts.path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise WrongAnswer(f"{url} answered {answer.status}: {content[:300].decode(errors='replace')}")
    return content


def said(shape: Shape, answer: bytes) -> str:
    """The text a model's answer carries, put together again when it is a stream.

    Raises: WrongAnswer when the bytes are no such answer.
    """
    try:
        if not shape.stream:
            return str(json.loads(answer)["choices"][0]["message"]["content"])
        events = [line[6:] for line in answer.decode().splitlines() if line.startswith("data: ")]
        if not events or events[-1].strip() != "[DONE]":
            raise WrongAnswer(f"the stream did not end in [DONE] but in {events[-1:]}")
        deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)
    except (ValueError, LookupError, TypeError) as error:
        raise WrongAnswer(f"not a {shape.name} answer ({error!r}): {answer[:300].decode(errors='replace')}") from error


def checked(shape: Shape, url: str, headers: Mapping[str, str], body: bytes, *, expected: str) -> int:
    """Asks once and compares with what the upstream says; the size of the answer's body.

    Raises: WrongAnswer.
    """
    answer = ask(url, headers, body)
    if (got := said(shape, answer)) != expected:
        raise WrongAnswer(
            f"{shape.name}: expected {len(expected)} characters of the upstream, got {len(got)}: {got[:80]!r}"
        )
    return len(answer)
