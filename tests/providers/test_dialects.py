"""Dialects as pure functions: what is asked, what is read, and streams that mean the same however they are split."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drivetrain.core.declarations import Workflow
from drivetrain.core.endpoints import Endpoint
from drivetrain.core.errors import RequestError
from drivetrain.core.money import Usage
from drivetrain.execution.admission import ChatAdmission, parse_body
from drivetrain.providers.answers import Relay, Target, Unusable
from drivetrain.providers.anthropic_messages import AnthropicMessages
from drivetrain.providers.openai_chat import OpenAIChat
from support.upstream import anthropic_events, anthropic_message, completion, delta, event, stream_events

pytestmark = pytest.mark.slow

ENDPOINT = Endpoint(name="p", scheme="http", host="127.0.0.1", port=1)
EVERYTHING = frozenset({"tools", "json_schema", "images", "streaming", "reasoning"})
PROPERTY = settings(max_examples=150, deadline=None, database=None, print_blob=True)
OPENAI, ANTHROPIC = OpenAIChat(), AnthropicMessages()


def target(*missing: str, field: str = "max_tokens") -> Target:
    return Target(
        reference="p/m",
        upstream_name="m",
        endpoint=ENDPOINT,
        capabilities=EVERYTHING - frozenset(missing),
        max_tokens_field=field,
    )


def said(dialect: Any, *missing: str, stream: bool = False, limit: int = 9, **chat: Any) -> dict[str, Any]:
    chat.setdefault("messages", [{"role": "user", "content": "hello"}])
    body: dict[str, Any] = json.loads(dialect.encode(chat, target(*missing), stream=stream, max_output_tokens=limit))
    return body


# Streams, however they are split.


class Relayed:
    """What became of a stream: the bytes passed on, the tail, and what was read on the way."""

    def __init__(self, relay: Relay, parts: list[bytes]) -> None:
        passed = b""
        for part in parts:
            passed += relay.feed(part)
            if relay.done or relay.error is not None or relay.fault:
                break
        self.whole = relay.ended()
        self.fault = relay.fault
        self.passed = re.sub(rb"\n{3,}", b"\n\n", passed).lstrip(b"\n")  # blank lines between events mean nothing
        self.facts = (self.whole, relay.done, relay.usage, relay.finish_reason, relay.error, relay.tail)


def split(data: bytes, places: list[int]) -> list[bytes]:
    cuts = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


TEXTS = st.text(
    st.characters(codec="utf-8") | st.sampled_from('"\\\n\r[DONE] _tokens" finish_reason error data: \u2028'),
    max_size=12,
)
OPENAI_EVENTS = st.one_of(
    TEXTS.map(lambda text: event(delta(content=text))),
    TEXTS.map(lambda text: event(json.dumps(delta(content=text), ensure_ascii=False).encode())),
    TEXTS.map(lambda text: event(json.dumps(delta(content=text), separators=(",", ":")).encode())),
    st.sampled_from(
        [
            b": ping\n\n",
            b"\n\n",
            b"event: x\n" + event(delta(content="named")),
            event(delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a'}}])),
            event(delta(finish="stop")),
            event({**delta(), "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
            event({**delta(content="x"), "usage": None}),
            event({**delta(content="x"), "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
        ]
    ),
)
ANTHROPIC_EVENTS = st.one_of(
    TEXTS.map(
        lambda text: event(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}, "x"
        )
    ),
    TEXTS.map(
        lambda text: event(
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": text}}
        )
    ),
    st.sampled_from(
        [
            b": ping\n\n",
            event({"type": "ping"}, "ping"),
            event(
                {
                    "type": "content_block_start",
                    "index": 1,
                    "content_block": {"type": "tool_use", "id": "t", "name": "f"},
                }
            ),
            event({"type": "content_block_stop", "index": 0}),
            event({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}}),
            event({"type": "unheard-of", "x": 1}),
        ]
    ),
)


def _check_splits(dialect: Any, data: bytes, places: list[int], include_usage: bool, crlf: bool) -> None:
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    together = Relayed(dialect.relay(include_usage=include_usage), [data])
    apart = Relayed(dialect.relay(include_usage=include_usage), split(data, places))
    assert apart.fault == together.fault
    assert apart.passed == together.passed
    assert apart.facts == together.facts


@PROPERTY
@given(
    events=st.lists(OPENAI_EVENTS, max_size=8),
    places=st.lists(st.integers(0, 5_000), max_size=12),
    done=st.booleans(),
    include_usage=st.booleans(),
    crlf=st.booleans(),
)
@example(events=stream_events()[:-1], places=list(range(5_000)), done=True, include_usage=False, crlf=True)
def test_a_stream_of_openai_means_the_same_however_it_is_split(
    events: list[bytes], places: list[int], done: bool, include_usage: bool, crlf: bool
) -> None:
    data = b"".join(events) + (event(b"[DONE]") if done else b"")
    _check_splits(OPENAI, data, places, include_usage, crlf)


@PROPERTY
@given(
    events=st.lists(ANTHROPIC_EVENTS, max_size=8),
    places=st.lists(st.integers(0, 5_000), max_size=12),
    include_usage=st.booleans(),
    crlf=st.booleans(),
)
@example(events=[], places=list(range(5_000)), include_usage=True, crlf=True)
def test_a_stream_of_anthropic_means_the_same_however_it_is_split(
    events: list[bytes], places: list[int], include_usage: bool, crlf: bool
) -> None:
    whole = anthropic_events()
    data = b"".join([*whole[:3], *events, *whole[3:]])
    _check_splits(ANTHROPIC, data, places, include_usage, crlf)


BROKEN = [
    event(b"{not json"),
    event(b"[]"),
    event(b'{"choices": 5}'),
    event(b'{"choices": [5]}'),
    event(b'{"choices": [{"delta": {"content": "\xff"}}]}'),
    event({"error": {"message": "over"}}),
]


@PROPERTY
@given(
    broken=st.sampled_from(BROKEN),
    place=st.integers(0, 5),
    places=st.lists(st.integers(0, 5_000), max_size=12),
)
def test_a_broken_stream_breaks_at_the_same_event_however_it_is_split(
    broken: bytes, place: int, places: list[int]
) -> None:
    """What came before it was passed on, and nothing behind it ever is."""
    events = stream_events()
    data = b"".join([*events[:place], broken, *events[place:]])
    apart = Relayed(OPENAI.relay(include_usage=True), split(data, places))
    before = b"".join(events[:place])
    assert apart.passed == before
    assert not apart.whole


def test_half_a_stream_is_not_whole() -> None:
    data = b"".join(stream_events())
    finished = data.index(b'"finish_reason": "stop"')
    for place in range(finished):
        assert not Relayed(OPENAI.relay(include_usage=True), [data[:place]]).whole, place
    data = b"".join(anthropic_events())
    for place in range(data.rindex(b"message_stop")):
        assert not Relayed(ANTHROPIC.relay(include_usage=True), [data[:place]]).whole, place


def test_a_part_of_an_event_is_bounded() -> None:
    for dialect in (OPENAI, ANTHROPIC):
        relay = dialect.relay(include_usage=False)
        relay.feed(b"data: ")
        for _ in range(20):
            relay.feed(b"x" * 50_000)
        assert relay.fault == ""
        assert relay.feed(b"x" * 50_000) == b""
        assert "longer than" in relay.fault
        assert not relay.ended()


def test_usage_nobody_asked_for_is_read_but_not_passed_on() -> None:
    data = b"".join(stream_events())
    asked = Relayed(OPENAI.relay(include_usage=True), [data])
    unasked = Relayed(OPENAI.relay(include_usage=False), [data])
    assert b'"usage"' in asked.passed
    assert b'"usage"' not in unasked.passed
    assert asked.facts[2] == unasked.facts[2] == Usage(11, 0, 0, 0, 7, 0, "reported")


# Usage, whatever a provider claims.

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OPENAI_USAGE = JSON_VALUES | st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": JSON_VALUES,
        "completion_tokens": JSON_VALUES,
        "prompt_tokens_details": JSON_VALUES | st.fixed_dictionaries({"cached_tokens": JSON_VALUES}),
        "completion_tokens_details": JSON_VALUES | st.fixed_dictionaries({"reasoning_tokens": JSON_VALUES}),
    },
)
ANTHROPIC_USAGE = JSON_VALUES | st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": JSON_VALUES,
        "output_tokens": JSON_VALUES,
        "cache_read_input_tokens": JSON_VALUES,
        "cache_creation_input_tokens": JSON_VALUES,
        "cache_creation": JSON_VALUES | st.fixed_dictionaries({"ephemeral_1h_input_tokens": JSON_VALUES}),
        "output_tokens_details": JSON_VALUES | st.fixed_dictionaries({"thinking_tokens": JSON_VALUES}),
    },
)


def _sound(usage: Usage) -> None:
    parts = (usage.input_cached_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens)
    assert all(part >= 0 for part in (*parts, usage.input_tokens, usage.output_tokens, usage.reasoning_tokens))
    assert sum(parts) <= usage.input_tokens
    assert usage.reasoning_tokens <= usage.output_tokens
    assert usage.source in ("reported", "mended", "none")


@PROPERTY
@given(usage=OPENAI_USAGE)
@example(usage={"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": "5"}})
@example(usage={"prompt_tokens": 5, "completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": [1]}})
def test_any_usage_of_openai_is_sound_once_it_is_read(usage: Any) -> None:
    _sound(OPENAI.read(completion(usage=usage)).usage)
    relay = OPENAI.relay(include_usage=True)
    relay.feed(event({**delta(), "choices": [], "usage": usage}))
    _sound(relay.usage or Usage())


@PROPERTY
@given(usage=ANTHROPIC_USAGE)
def test_any_usage_of_anthropic_is_sound_once_it_is_read(usage: Any) -> None:
    _sound(ANTHROPIC.read(anthropic_message(usage=usage)).usage)
    relay = ANTHROPIC.relay(include_usage=True)
    relay.feed(event({"type": "message_start", "message": {"usage": usage}}))
    relay.feed(event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}))
    relay.feed(event({"type": "message_stop"}))
    _sound(relay.usage or Usage())


@PROPERTY
@given(
    body=JSON_VALUES | st.fixed_dictionaries({"choices": JSON_VALUES | st.lists(JSON_VALUES), "content": JSON_VALUES})
)
def test_any_json_is_an_answer_or_unusable(body: Any) -> None:
    for dialect in (OPENAI, ANTHROPIC):
        with contextlib.suppress(Unusable):
            dialect.read(json.dumps(body).encode())
        dialect.error(500, json.dumps(body).encode())
        dialect.delivered(event(body) if isinstance(body, dict) else b"data: 5\n\n")


@PROPERTY
@given(body=st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_unusable(body: bytes) -> None:
    for dialect in (OPENAI, ANTHROPIC):
        with pytest.raises(Unusable):
            dialect.read(body)
        dialect.error(500, body)
        dialect.delivered(body)


# What is asked of OpenAI.


def test_openai_gets_the_request_with_our_model_and_limit() -> None:
    body = said(OPENAI, temperature=0.5, tools=[{"type": "function"}])
    assert body == {
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
        "tools": [{"type": "function"}],
        "model": "m",
        "max_tokens": 9,
    }
    raw = OPENAI.encode({"messages": []}, target(field="max_completion_tokens"), stream=False, max_output_tokens=9)
    assert json.loads(raw)["max_completion_tokens"] == 9


def test_openai_always_reports_usage_of_streams() -> None:
    assert said(OPENAI, stream=True)["stream_options"] == {"include_usage": True}
    assert said(OPENAI, stream=True, stream_options={"include_usage": False})["stream_options"]["include_usage"] is True
    whole = said(OPENAI, stream_options={"include_usage": True})
    assert "stream" not in whole
    assert "stream_options" not in whole


def test_openai_does_not_change_what_it_was_given() -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": False}, "max_tokens": 5}
    before = json.dumps(chat)
    OPENAI.encode(chat, target(), stream=True, max_output_tokens=9)
    assert json.dumps(chat) == before


# What is asked of Anthropic.


def test_anthropic_gets_system_and_turns() -> None:
    body = said(
        ANTHROPIC,
        messages=[
            {"role": "system", "content": "one"},
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"},
            {"role": "developer", "content": [{"type": "text", "text": "two"}]},
            {"role": "user", "content": "d"},
        ],
        temperature=0.5,
        top_p=0.9,
        stop="x",
        user="ann",
    )
    assert body == {
        "model": "m",
        "max_tokens": 9,
        "system": "one\n\ntwo",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
            {"role": "user", "content": [{"type": "text", "text": "d"}]},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_sequences": ["x"],
        "metadata": {"user_id": "ann"},
    }


def test_anthropic_gets_results_of_parallel_tool_calls_in_one_turn() -> None:
    calls = [
        {"id": one, "type": "function", "function": {"name": "f", "arguments": f'{{"n":"{one}"}}'}}
        for one in ("1", "2")
    ]
    body = said(
        ANTHROPIC,
        messages=[
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "1", "content": "x"},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "y"}]},
        ],
    )
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": one, "name": "f", "input": {"n": one}} for one in ("1", "2")],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "x"},
                {"type": "tool_result", "tool_use_id": "2", "content": "y"},
            ],
        },
    ]


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"parallel_tool_calls": False, "tool_choice": "required"},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_anthropic_gets_tools_and_their_choice(more: dict[str, Any], expected: Any) -> None:
    body = said(ANTHROPIC, tools=[TOOL], **more)
    assert body["tools"] == [{"name": "f", "description": "d", "input_schema": FUNCTION["parameters"]}]
    assert body.get("tool_choice") == expected


def test_no_tools_may_be_used_without_a_ban_on_parallel_ones() -> None:
    """The choice `none` has no further field in Anthropic's API, which refuses fields it does not know."""
    body = said(ANTHROPIC, tools=[TOOL], tool_choice="none", parallel_tool_calls=False)
    assert body["tool_choice"] == {"type": "none"}


def test_anthropic_gets_a_schema_natively_or_by_a_tool() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    native = said(ANTHROPIC, response_format=wanted)
    assert native["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    by_tool = said(ANTHROPIC, "json_schema", response_format=wanted)
    assert by_tool["tools"][0]["input_schema"] == schema
    assert by_tool["tool_choice"] == {"type": "tool", "name": by_tool["tools"][0]["name"]}
    answer = {"type": "tool_use", "id": "t", "name": by_tool["tools"][0]["name"], "input": {"a": "x"}}
    reading = ANTHROPIC.read(anthropic_message(content=[answer], stop_reason="tool_use"))
    message = json.loads(reading.body)["choices"][0]
    assert json.loads(message["message"]["content"]) == {"a": "x"}
    assert message["finish_reason"] == reading.finish_reason == "stop"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"1": 2}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("seed", 7),
        ("temperature", 1.5),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("response_format", {"type": "xml"}),
        ("unheard_of", 1),
    ],
)
def test_what_anthropic_cannot_be_told_is_refused_by_name(parameter: str, value: Any) -> None:
    with pytest.raises(RequestError) as found:
        said(ANTHROPIC, **{parameter: value})
    assert found.value.status == 400
    assert found.value.param == parameter


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("n", 1), ("logprobs", False), ("presence_penalty", 0), ("logit_bias", {}), ("seed", None), ("store", False)],
)
def test_what_says_nothing_is_left_out(parameter: str, value: Any) -> None:
    assert set(said(ANTHROPIC, **{parameter: value})) == {"model", "max_tokens", "messages"}


@PROPERTY
@given(
    name=st.sampled_from(
        [
            "temperature",
            "stop",
            "tools",
            "tool_choice",
            "response_format",
            "reasoning_effort",
            "thinking",
            "top_p",
            "user",
        ]
    ),
    value=JSON_VALUES,
    tools=st.booleans(),
)
@example(name="response_format", value={"type": "json_schema", "json_schema": 5}, tools=False)
@example(name="response_format", value={"type": "json_schema", "json_schema": "x"}, tools=False)
def test_any_value_is_said_or_refused(name: str, value: Any, tools: bool) -> None:
    """Between admission and the dialects nothing may fall through."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], **({"tools": [TOOL]} if tools else {})}
    _admitted_and_said({**chat, name: value})


@PROPERTY
@given(
    message=st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": TEXTS},
        optional={"tool_calls": JSON_VALUES, "tool_call_id": JSON_VALUES, "name": JSON_VALUES},
    )
)
@example(message={"role": "assistant", "content": "", "tool_calls": 5})
@example(message={"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": 5}}]})
def test_any_message_is_said_or_refused(message: dict[str, Any]) -> None:
    _admitted_and_said({"messages": [{"role": "user", "content": "x"}, message]})


ADMISSION = ChatAdmission(Workflow("w"), needs_value=True, messages_max=100)


def _admitted_and_said(body: dict[str, Any]) -> None:
    raw = json.dumps({"model": "w", **body}).encode()
    for dialect in (OPENAI, ANTHROPIC):
        try:
            admitted = ADMISSION.admit(parse_body(raw), raw)
            dialect.encode(admitted.chat, target(), stream=admitted.stream, max_output_tokens=9)
        except RequestError as refused:
            if refused.status != 400:
                raise


# What is read.


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("unheard-of", "stop"),
    ],
)
def test_finish_reasons_of_anthropic(theirs: str, ours: str) -> None:
    assert ANTHROPIC.read(anthropic_message(stop_reason=theirs)).finish_reason == ours
    events = b"".join(anthropic_events()).replace(b'"end_turn"', json.dumps(theirs).encode())
    relay = ANTHROPIC.relay(include_usage=False)
    passed = relay.feed(events)
    assert relay.finish_reason == ours
    assert f'"finish_reason":"{ours}"'.encode() in passed


def test_an_answer_of_openai_passes_as_it_is() -> None:
    body = completion("grüße \u2028", extra={"x": 1})
    assert OPENAI.read(body).body is body


def test_a_streamed_tool_call_of_anthropic_becomes_openais() -> None:
    events = [
        {
            "type": "message_start",
            "message": {"id": "m", "model": "c", "usage": {"input_tokens": 1, "output_tokens": 1}},
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "so"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "a", "name": "f"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"x"'}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "b", "name": "g"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ":1}"}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    relay = ANTHROPIC.relay(include_usage=True)
    passed = relay.feed(b"".join(event(one) for one in events))
    chunks = [json.loads(block[6:]) for block in passed.split(b"\n\n") if block]
    calls: dict[int, list[str]] = {}
    for one in chunks:
        for call in one["choices"][0]["delta"].get("tool_calls", []):
            said_now = calls.setdefault(call["index"], ["", "", ""])
            function = call["function"]
            said_now[0] += call.get("id", "")
            said_now[1] += function.get("name", "")
            said_now[2] += function.get("arguments", "")
    assert calls == {0: ["a", "f", '{"x":1}'], 1: ["b", "g", "{}"]}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    tail = [json.loads(block[6:]) for block in relay.tail.split(b"\n\n") if block and b"[DONE]" not in block]
    assert tail[0]["usage"]["completion_tokens"] == 9
    assert relay.tail.endswith(b"data: [DONE]\n\n")
