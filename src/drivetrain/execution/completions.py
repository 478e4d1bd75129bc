"""Answers in OpenAI's chat shape that no provider wrote: rules' answers, repaired ones, and whole ones as streams."""

from __future__ import annotations

from typing import Any

import msgspec

from drivetrain.core.codec import JSON, parse_json
from drivetrain.core.times import NS_PER_S
from drivetrain.providers.answers import Unusable
from drivetrain.providers.openai_chat import DONE

NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def completion(call_id: str, model: str, text: str, opened_ns: int) -> bytes:
    """A `chat.completion` with `text`, without tokens."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return JSON.encode(
        {
            "id": call_id,
            "object": "chat.completion",
            "created": opened_ns // NS_PER_S,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": NO_TOKENS,
        }
    )


def output_text(output: Any) -> str:
    """An output as a message's content: a text as it is, anything else as JSON."""
    return output if isinstance(output, str) else JSON.encode(output).decode()


def with_content(body: bytes, text: str) -> bytes:
    """The completion with its first choice's content replaced by the repaired `text`."""
    parsed = parse_json(body)
    parsed["choices"][0]["message"]["content"] = text
    return JSON.encode(parsed)


class _Choice(msgspec.Struct):
    message: dict[str, Any]
    index: Any = 0
    finish_reason: Any = None


class _Whole(msgspec.Struct):
    choices: list[_Choice]
    id: Any = ""
    created: Any = 0
    model: Any = ""
    usage: Any = None


_WHOLE: msgspec.json.Decoder[_Whole] = msgspec.json.Decoder(_Whole)


def as_stream(body: bytes, *, include_usage: bool) -> bytes:
    """A whole completion as the events of a stream, `[DONE]` included. Raises: Unusable."""
    try:
        whole = _WHOLE.decode(body)
    except msgspec.MsgspecError as error:
        raise Unusable(f"the answer is no chat completion: {error}") from error
    events: list[dict[str, Any]] = []
    for choice in whole.choices:
        delta = {name: value for name, value in choice.message.items() if value is not None}
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            numbered = enumerate(call for call in calls if isinstance(call, dict))
            delta["tool_calls"] = [{"index": number, **call} for number, call in numbered]
        delta.setdefault("role", "assistant")
        events.append({"choices": [{"index": choice.index, "delta": delta, "finish_reason": None}]})
        events.append({"choices": [{"index": choice.index, "delta": {}, "finish_reason": choice.finish_reason}]})
    if include_usage:
        events.append({"choices": [], "usage": whole.usage or NO_TOKENS})
    head = {"id": whole.id, "object": "chat.completion.chunk", "created": whole.created, "model": whole.model}
    return b"".join(b"data: " + JSON.encode({**head, **event}) + b"\n\n" for event in events) + DONE
