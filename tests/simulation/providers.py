"""What providers do: a script per attempt, drawn by the dice, with the truth about what it bills.

Both dialects, whole answers and streams; failures before, in and after an answer; stalls, garbage, refusals with and
without a pause; reports of usage that are missing, late, doubled, wrong or beyond the limit that was sent.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec

from drivetrain.ports.transport import UpstreamRequest

from .kernel import MS

JSON_HEAD = {b"content-type": b"application/json"}
STREAM_HEAD = {b"content-type": b"text/event-stream; charset=utf-8"}
ENDS = (b"[DONE]", b'"finish_reason": "stop"', b'"message_stop"')
"""What a stream that came to its own end holds."""
PAUSES = ("0", "0.05", "0.3", "1", "4", "30", "soon")
GARBAGE = (b"", b"{", b"null", b"[]", b'{"choices":[]}', b"\xff\xfe", b"<html>busy</html>" * 60, b'{"content": 5}')


class Step(msgspec.Struct, frozen=True):
    """One thing that a provider does. what: `head`, `chunk`, `end` or `fail`."""

    delay_ns: int
    what: str
    data: bytes = b""
    status: int = 0
    headers: dict[bytes, bytes] = {}
    kind: str = ""
    sent: bool = True


class Script(msgspec.Struct, frozen=True):
    """What a provider does with one attempt."""

    name: str
    steps: tuple[Step, ...]
    billed: tuple[int, int] | None = None
    """Tokens of input and output that it bills; None where nobody can know."""
    is_told: bool = False
    """Whether its answer reports exactly what it bills."""
    overruns: bool = False
    """Whether it bills more output than was allowed."""


class Asked(msgspec.Struct, frozen=True):
    """What a provider reads of a request."""

    number: int
    anthropic: bool
    stream: bool
    tokens_max: int
    bytes: int
    typed: bool


def asked(number: int, request: UpstreamRequest) -> Asked:
    """The request as its provider sees it."""
    body = json.loads(request.body)
    limit = body.get("max_completion_tokens") or body["max_tokens"]
    return Asked(
        number,
        request.endpoint.name == "other",
        bool(body.get("stream")),
        limit * (body.get("n") or 1),
        len(request.body),
        b"JSON schema" in request.body,
    )


def script(dice: random.Random, to: Asked, failing: float) -> Script:
    """What happens to one attempt. failing: how likely something goes wrong."""
    if dice.random() >= failing:
        return _stream(dice, to, "exact") if to.stream and dice.random() < 0.9 else _whole(dice, to, "exact")
    return dice.choice(WRONG)(dice, to)


# Answers.


def _whole(dice: random.Random, to: Asked, report: str, *, parts: int = 0) -> Script:
    billed = _billed(dice, to, report)
    body = _whole_body(dice, to, _reported(dice, billed, report))
    steps = [_first(dice, 200, JSON_HEAD)]
    steps += [Step(_pace(dice), "chunk", one) for one in _pieces(body, parts or dice.choice((1, 1, 3)))]
    steps.append(Step(_pace(dice), "end"))
    return _script(f"whole, usage {report}", steps, billed, report)


def _stream(dice: random.Random, to: Asked, report: str, *, mess: str = "") -> Script:
    billed = _billed(dice, to, report)
    events = _events(dice, to, _reported(dice, billed, report), billed[1])
    if mess == "doubled":
        place = dice.randrange(len(events))
        events.insert(place, events[place])
    elif mess == "reordered":
        place = dice.randrange(len(events) - 1)
        events[place], events[place + 1] = events[place + 1], events[place]
    elif mess == "pings":
        events.insert(dice.randrange(len(events) + 1), b": ping\n\n")
    steps = [_first(dice, 200, STREAM_HEAD)]
    steps += [Step(_pace(dice), "chunk", one) for one in _pieces(b"".join(events), dice.choice((1, 4, 9)))]
    steps.append(Step(_pace(dice), "end"))
    made = _script(f"stream {mess}, usage {report}", steps, billed, report)
    return msgspec.structs.replace(made, is_told=made.is_told and mess != "reordered")


def _script(name: str, steps: list[Step], billed: tuple[int, int], report: str) -> Script:
    known = report in ("exact", "overrun", "whole bound")
    return Script(name, tuple(steps), billed if known else None, known, report == "overrun")


def _billed(dice: random.Random, to: Asked, report: str) -> tuple[int, int]:
    if report == "whole bound":  # one token per byte, and every token that was allowed
        return to.bytes, to.tokens_max
    output = dice.randint(1, to.tokens_max)
    return dice.randint(1, to.bytes), output * 10 + 100 if report == "overrun" else output


def _reported(dice: random.Random, billed: tuple[int, int], report: str) -> tuple[Any, Any] | None:
    if report == "none":
        return None
    if report == "zero":
        return 0, 0
    if report == "nonsense":
        return dice.choice(((-5, billed[1]), ("many", billed[1]), (billed[0], None), (10**13, billed[1])))
    return billed


def _whole_body(dice: random.Random, to: Asked, usage: tuple[Any, Any] | None) -> bytes:
    text = _text(dice, to, usage[1] if usage is not None and isinstance(usage[1], int) else 3)
    if to.anthropic:
        body: dict[str, Any] = {
            "id": f"msg_{to.number}", "type": "message", "role": "assistant", "model": "m",
            "content": [{"type": "text", "text": text}], "stop_reason": "end_turn",
        }  # fmt: skip
        if usage is not None:
            body["usage"] = {"input_tokens": usage[0], "output_tokens": usage[1]}
        return json.dumps(body).encode()
    message = {"role": "assistant", "content": text}
    body = {
        "id": f"chatcmpl-{to.number}", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }  # fmt: skip
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return json.dumps(body).encode()


def _events(dice: random.Random, to: Asked, usage: tuple[Any, Any] | None, tokens: int) -> list[bytes]:
    words = _text(dice, to, tokens).split(" ")
    words = [word if place == 0 else f" {word}" for place, word in enumerate(words)]
    return _anthropic_events(to, words, usage) if to.anthropic else _openai_events(to, words, usage)


def _openai_events(to: Asked, words: list[str], usage: tuple[Any, Any] | None) -> list[bytes]:
    def one(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        head = {"id": f"chatcmpl-{to.number}", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    made = [one({"role": "assistant", "content": ""}), *(one({"content": word}) for word in words), one({}, "stop")]
    if usage is not None:
        made.append({**one({}), "choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}})
    return [*(b"data: " + json.dumps(each).encode() + b"\n\n" for each in made), b"data: [DONE]\n\n"]


def _anthropic_events(to: Asked, words: list[str], usage: tuple[Any, Any] | None) -> list[bytes]:
    start: dict[str, Any] = {"id": f"msg_{to.number}", "model": "m", "role": "assistant"}
    end: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    if usage is not None:
        start["usage"], end["usage"] = {"input_tokens": usage[0], "output_tokens": 1}, {"output_tokens": usage[1]}
    made: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ]
    for word in words:
        made.append({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}})
    made += [{"type": "content_block_stop", "index": 0}, end, {"type": "message_stop"}]
    return [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in made]


def _text(dice: random.Random, to: Asked, tokens: int) -> str:
    """A text of at most so many tokens, with a word that no other answer holds."""
    mark = f"x{to.number}x"
    if to.typed:
        sure = dice.choice((0.95, 0.95, 0.6, 0.1))
        said = json.dumps({"intent": mark, "confidence": sure})
        return f"```json\n{said}\n```" if dice.random() < 0.1 else said
    words = [mark]
    while len(words) < min(tokens, 12) and dice.random() < 0.8:
        words.append(dice.choice(("of", "course", "internationalisation", "größer", "reject", "🙂")))
    return " ".join(words)


# What goes wrong.


def _broken_stream(dice: random.Random, to: Asked) -> Script:
    """A stream that has no end: cut, stalled, in error or malformed somewhere."""
    if not to.stream:
        return _cut(dice, to)
    billed = _billed(dice, to, "exact")
    events = _events(dice, to, billed, billed[1])
    last = dice.randrange(len(events) - 2)  # before the event that finishes it
    said = b"".join(events[:last])
    steps = [_first(dice, 200, STREAM_HEAD)]
    steps += [Step(_pace(dice), "chunk", one) for one in _pieces(said, dice.choice((1, 4))) if one]
    how = dice.choice(("end", "cut", "stall", "error", "malformed", "no utf-8", "half an event"))
    if how == "cut":
        steps.append(Step(_pace(dice), "fail", kind="cut"))
    elif how != "stall":
        broken = {
            "error": b'event: error\ndata: {"type": "error", "error": {"type": "overloaded", "message": "x"}}\n\n',
            "malformed": b'data: {"choices": 5, \n\n',
            "no utf-8": b'data: {"choices": [], "x": "\xff\xfe"}\n\n',
            "half an event": events[last][: dice.randrange(1, len(events[last]) - 2)],
        }
        if how in broken:
            steps.append(Step(_pace(dice), "chunk", broken[how]))
        steps.append(Step(_pace(dice), "end"))
    return Script(f"stream broken by {how}", tuple(steps))


def _cut(dice: random.Random, to: Asked) -> Script:
    body = _whole_body(dice, to, _billed(dice, to, "exact"))
    body = body[: dice.randrange(1, len(body))]
    steps = [_first(dice, 200, JSON_HEAD), Step(_pace(dice), "chunk", body)]
    if dice.random() < 0.7:
        steps.append(Step(_pace(dice), "fail", kind=dice.choice(("cut", "protocol", "oversized"))))
    return Script("whole, cut or stalled", tuple(steps))


def _refused(dice: random.Random, to: Asked) -> Script:
    status = dice.choice((429, 429, 429, 500, 502, 503, 529, 408, 301, 400, 401, 404, 413, 422))
    headers = dict(JSON_HEAD)
    if status in (429, 503, 529) and dice.random() < 0.6:
        headers[b"retry-after"] = dice.choice(PAUSES).encode()
    code = "context_length_exceeded" if status == 400 and dice.random() < 0.3 else "some_code"
    body = json.dumps({"error": {"message": f"no: {status}", "type": "x", "code": code}}).encode()
    steps = (_first(dice, status, headers), Step(_pace(dice), "chunk", body), Step(_pace(dice), "end"))
    return Script(f"status {status}", steps, (0, 0))


def _unreachable(dice: random.Random, to: Asked) -> Script:
    kind = dice.choice(("connect", "connect_timeout", "tls", "pool_full"))
    return Script(kind, (Step(_pace(dice), "fail", kind=kind, sent=False),), (0, 0))


def _silent(dice: random.Random, to: Asked) -> Script:
    how = dice.randrange(3)
    if how == 0:
        return Script("silence", ())
    if how == 1:
        return Script("a head, then silence", (_first(dice, 200, STREAM_HEAD if to.stream else JSON_HEAD),))
    return Script("closed", (Step(_pace(dice), "fail", kind="closed"),))


def _garbage(dice: random.Random, to: Asked) -> Script:
    body = dice.choice(GARBAGE)
    head = dice.choice((JSON_HEAD, STREAM_HEAD, {}))
    steps = [_first(dice, 200, head), *([Step(_pace(dice), "chunk", body)] if body else []), Step(_pace(dice), "end")]
    return Script("garbage", tuple(steps))


def _usage(report: str) -> Callable[[random.Random, Asked], Script]:
    return lambda dice, to: (_stream if to.stream else _whole)(dice, to, report)


def _mess(mess: str) -> Callable[[random.Random, Asked], Script]:
    return lambda dice, to: (
        _stream(dice, to, "exact", mess=mess) if to.stream else _whole(dice, to, "whole bound", parts=7)
    )


WRONG: tuple[Callable[[random.Random, Asked], Script], ...] = (
    _broken_stream, _broken_stream, _cut, _refused, _refused, _unreachable, _silent, _garbage,
    _usage("none"), _usage("zero"), _usage("nonsense"), _usage("overrun"), _usage("whole bound"),
    _mess("doubled"), _mess("reordered"), _mess("pings"),
)  # fmt: skip
DOWN: tuple[Callable[[random.Random, Asked], Script], ...] = (_refused, _unreachable, _silent)
"""What an endpoint does during an outage."""


def _first(dice: random.Random, status: int, headers: dict[bytes, bytes]) -> Step:
    slow = dice.random() < 0.05
    return Step(dice.randrange(100, 300) * MS if slow else dice.randrange(20 * MS), "head", b"", status, headers)


def _pace(dice: random.Random) -> int:
    return dice.randrange(80 * MS) if dice.random() < 0.1 else dice.randrange(3 * MS)


def _pieces(data: bytes, parts: int) -> list[bytes]:
    size = max(1, -(-len(data) // parts))
    return [data[start : start + size] for start in range(0, len(data), size)]
