"""The OpenAI door through OpenAI's own client."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from simulator_wire import OPENAI, chat, send

from drivetrain.simulator import SimulatorProcess

CONFIG = {
    "server": {"keys": ["sk-right", "sk-other"], "allow_overrides": True},
    "models": {
        "plain": {},
        "reasoner": {"reasoning_tokens": 30, "cached_input_share": 0.5, "output_tokens": 100},
        "streamer": {"stream_events": 50, "output_tokens": 400},
        "together": {"stream_events": 50, "output_tokens": 400, "stream_writes": "together"},
        "sized": {"answer_bytes": 1200},
        "limited": {"failures": {"rate_limit": {"requests_per_s": 0.5, "burst": 2}}},
        "other-door": {"dialect": "anthropic"},
    },
}

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 3}},
            "required": ["city", "days"],
        },
    },
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def client(simulator: SimulatorProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="sk-right", max_retries=0, timeout=10) as client:
        yield client


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_an_answer_reports_the_documented_count_of_tokens(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "x" * 9}, {"role": "user", "content": "é" * 4}]
    answer = client.chat.completions.create(model="plain", messages=messages)
    text = answer.choices[0].message.content
    assert text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == (3 + 4) + (2 + 4)
    assert answer.usage.completion_tokens == 40 == -(-len(text.encode()) // 4)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 40
    assert answer.choices[0].finish_reason == "stop"


def test_text_parts_are_one_message(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "12345678"}, {"type": "text", "text": "12"}]}
    ]
    answer = client.chat.completions.create(model="plain", messages=messages)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3 + 4


def test_cached_and_reasoning_tokens_are_reported_in_detail(client: openai.OpenAI) -> None:
    usage = client.chat.completions.create(model="reasoner", messages=user("x" * 64)).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.completion_tokens_details is not None
    assert usage.prompt_tokens == 20
    assert usage.prompt_tokens_details.cached_tokens == 10
    assert usage.completion_tokens == 130
    assert usage.completion_tokens_details.reasoning_tokens == 30


@pytest.mark.parametrize("model", ["streamer", "together"])
def test_a_stream_has_exactly_the_events_asked_for_and_the_same_text(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=user("hi"))
    stream = client.chat.completions.create(
        model=model, messages=user("hi"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(deltas) == 50
    assert "".join(deltas) == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_include_usage_reports_none(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="streamer", messages=user("hi"), stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_a_tool_is_called_with_arguments_that_fit_and_answered_after_its_result(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="plain", messages=user("Weather?"), tools=[WEATHER])
    call: Any = (answer.choices[0].message.tool_calls or [])[0]
    arguments = json.loads(call.function.arguments)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert isinstance(arguments["city"], str)
    assert arguments["days"] >= 3
    followed: Any = [
        *user("Weather?"),
        {
            "role": "assistant",
            "tool_calls": [{"id": call.id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    after = client.chat.completions.create(model="plain", messages=followed, tools=[WEATHER])
    assert after.choices[0].finish_reason == "stop"
    assert after.choices[0].message.content


def test_a_streamed_tool_call_adds_up(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="plain", messages=user("Weather?"), tools=[WEATHER], stream=True)
    calls = [call for chunk in stream for call in (chunk.choices[0].delta.tool_calls or [])]
    names = [call.function.name for call in calls if call.function and call.function.name]
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert names == ["weather"]
    assert set(json.loads(arguments)) == {"city", "days"}


def test_structured_output_fits_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "mood": {"enum": ["good", "bad"]},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        },
        "required": ["mood", "tags"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model="plain", messages=user("How?"), response_format=wanted)
    content = json.loads(answer.choices[0].message.content or "")
    assert content["mood"] in ("good", "bad")
    assert len(content["tags"]) == 2
    assert set(content) == {"mood", "tags"}


def test_json_object_gives_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="plain", messages=user("How?"), response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_the_limit_on_output_tokens_holds_reasoning_included(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="reasoner", messages=user("hi"), max_completion_tokens=50)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 50
    assert len(answer.choices[0].message.content or "") == (50 - 30) * 4


def test_answer_bytes_sizes_the_body(simulator: SimulatorProcess) -> None:
    answer = send(simulator, OPENAI, chat("sized"), {"authorization": "Bearer sk-right"})
    assert abs(len(answer.body) - 1200) <= 20


def test_models_are_listed_by_door(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert "plain" in names
    assert "other-door" not in names


def test_a_wrong_key_is_refused(simulator: SimulatorProcess) -> None:
    with (
        openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.chat.completions.create(model="plain", messages=user("hi"))
    assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize("name", ["no-such-model", "other-door"])
def test_an_unknown_model_is_not_found(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model=name, messages=user("hi"))
    assert refused.value.code == "model_not_found"
    assert name in refused.value.message


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"model":"plain"}', b'{"model":"plain","messages":[]}', b'{"model":1,"messages":[]}']
)
def test_a_body_that_cannot_be_read_is_a_400(simulator: SimulatorProcess, body: bytes) -> None:
    answer = send(simulator, OPENAI, body, {"authorization": "Bearer sk-other"})
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request_error"


def test_the_rate_limit_says_when_to_come_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.with_raw_response.create(model="limited", messages=user("hi"))
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    client.chat.completions.create(model="limited", messages=user("hi"))
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="limited", messages=user("hi"))
    assert refused.value.response.headers["retry-after"] == "2"
    assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("status", [400, 429, 500, 503, 529])
def test_every_status_has_openais_error_shape(client: openai.OpenAI, status: int) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(
            model="plain", messages=user("hi"), extra_headers={"x-simulate": f"failure=status:{status}"}
        )
    assert refused.value.status_code == status
    assert refused.value.response.headers["x-request-id"].startswith("req_")
    assert set(refused.value.response.json()["error"]) == {"message", "type", "param", "code"}
    assert ("retry-after" in refused.value.response.headers) == (status in (429, 503, 529))
